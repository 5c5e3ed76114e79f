package zfs

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// transfer sends to a dataset, of the stream at most so many bytes (0: all). It
// gives what Finish does.
func transfer(t *testing.T, z *ZFS, s SendSpec, r ReceiveSpec, most int64) error {
	t.Helper()
	before := kept(r.Dataset)
	from, err := z.Send(t.Context(), s)
	fine(t, err)
	to, err := z.Receive(t.Context(), r)
	fine(t, err)
	var stream io.Reader = from
	if most > 0 {
		stream = io.LimitReader(from, most)
	}
	_, copied := io.Copy(to, stream)
	// Of what is in no transaction yet, nothing is kept.
	for deadline := time.Now().Add(30 * time.Second); most > 0 && kept(r.Dataset) == before; raw(t, "zpool", "sync", tank) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing of %d bytes is kept", most)
		}
	}
	finished := to.Finish()
	if err := from.Close(); err != nil {
		t.Errorf("sending %+v: %v", s, err)
	}
	if copied != nil {
		return copied
	}
	return finished
}

// kept is how much of a stream has come to stay, as far as the token tells it.
func kept(dataset string) string {
	out, _ := exec.Command("zfs", "get", "-Hpo", "value", "receive_resume_token", dataset).Output()
	if token := strings.TrimSpace(string(out)); token != "-" {
		return token
	}
	return ""
}

// same demands that two snapshots have one guid and the same content.
func same(t *testing.T, a, b string) {
	t.Helper()
	if guidOf(t, a) != guidOf(t, b) {
		t.Errorf("%s is not %s", b, a)
	}
	if sum(t, a) != sum(t, b) {
		t.Errorf("%s and %s have not the same content", a, b)
	}
}

// sum is a checksum of the files of a snapshot.
func sum(t *testing.T, snapshot string) string {
	t.Helper()
	dir := t.TempDir()
	raw(t, "mount", "-t", "zfs", "-o", "ro", snapshot, dir)
	defer func() { raw(t, "umount", dir) }()
	return raw(t, "sh", "-c", "cd "+dir+" && sha256sum *")
}

// token is what a dataset that was cut off can be resumed with.
func token(t *testing.T, dataset string) string {
	t.Helper()
	return raw(t, "zfs", "get", "-Hpo", "value", "receive_resume_token", dataset)
}

func TestSendAndReceive(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	src, dst := dataset+"/src", dataset+"/dst"
	raw(t, "zfs", "create", "-o", "mountpoint="+t.TempDir(), src)
	noise(t, src, "a", 8, 1)
	raw(t, "zfs", "snapshot", src+"@1")
	into := ReceiveSpec{
		Dataset: dst, Resumable: true, Unmounted: true, Exclude: []string{"mountpoint"},
		Properties: map[string]string{"readonly": "on", PropertyJob: "job 1"},
	}
	fast := SendSpec{To: src + "@1", Compressed: true, LargeBlocks: true, Embedded: true}
	size, err := z.EstimateSend(ctx, fast)
	if err != nil || size < 8<<20 || size > 9<<20 {
		t.Errorf("estimated %d, %v", size, err)
	}
	fine(t, transfer(t, z, fast, into, 0))
	same(t, src+"@1", dst+"@1")
	found, err := z.Get(ctx, dst, "readonly", PropertyJob, "mounted")
	if err != nil || found["readonly"] != (Property{"on", "local"}) || found[PropertyJob].Value != "job 1" || found["mounted"].Value != "no" {
		t.Errorf("received as %+v, %v", found, err)
	}

	// From a bookmark, the snapshot gone, and by another name.
	fine(t, z.Bookmark(ctx, src+"@1", src+"#1"))
	if _, err := z.DestroySnapshot(ctx, ref(t, src+"@1")); err != nil {
		t.Fatal(err)
	}
	noise(t, src, "b", 3, 2)
	raw(t, "zfs", "snapshot", src+"@2")
	step := SendSpec{From: src + "#1", To: src + "@2", Compressed: true}
	if size, err := z.EstimateSend(ctx, step); err != nil || size < 3<<20 || size > 4<<20 {
		t.Errorf("estimated %d, %v", size, err)
	}
	named := into
	named.Snapshot = "planned"
	fine(t, transfer(t, z, step, named, 0))
	same(t, src+"@2", dst+"@planned")

	// What is refused.
	refused(t, transfer(t, z, SendSpec{To: src + "@2"}, into, 0), errdefs.AlreadyExists, CodeDatasetExists, dst)
	refused(t, transfer(t, z, step, into, 0), errdefs.FailedPrecondition, CodeDestinationModified, dst)
	refused(t, transfer(t, z, step, ReceiveSpec{Dataset: dataset + "/new"}, 0), errdefs.FailedPrecondition, CodeDestinationModified, dataset+"/new")
	noise(t, src, "c", 1, 3)
	raw(t, "zfs", "snapshot", src+"@3")
	raw(t, "zfs", "set", "readonly=off", "mountpoint="+t.TempDir(), dst)
	noise(t, dst, "own", 1, 4)
	raw(t, "zfs", "snapshot", dst+"@own")
	step = SendSpec{From: src + "@2", To: src + "@3"}
	refused(t, transfer(t, z, step, into, 0), errdefs.FailedPrecondition, CodeDestinationModified, dst)
	if _, err := z.DestroySnapshot(ctx, ref(t, dst+"@own")); err != nil {
		t.Error(err)
	}
	refused(t, transfer(t, z, step, into, 0), errdefs.FailedPrecondition, CodeDestinationModified, dst)
	fine(t, z.Rollback(ctx, ref(t, dst+"@planned")))
	raw(t, "zfs", "snapshot", dst+"@empty") // one that changes nothing is not in the way
	fine(t, transfer(t, z, step, into, 0))
	same(t, src+"@3", dst+"@3")

	for name, c := range map[string]struct {
		spec SendSpec
		kind errdefs.Kind
		code string
	}{
		"no snapshot":  {SendSpec{To: src + "@none"}, errdefs.NotFound, CodeDatasetNotFound},
		"no bookmark":  {SendSpec{From: src + "#none", To: src + "@3"}, errdefs.NotFound, CodeDatasetNotFound},
		"backwards":    {SendSpec{From: src + "@3", To: src + "@2"}, errdefs.FailedPrecondition, CodeNotEarlier},
		"from another": {SendSpec{From: dst + "@planned", To: src + "@3"}, errdefs.FailedPrecondition, CodeNotEarlier},
		"no dataset":   {SendSpec{To: dataset + "/none@3"}, errdefs.NotFound, CodeDatasetNotFound},
	} {
		stream, err := z.Send(ctx, c.spec)
		fine(t, err)
		n, err := io.Copy(io.Discard, stream)
		refused(t, err, c.kind, c.code, dataset)
		if closed := stream.Close(); n != 0 || closed == nil {
			t.Errorf("%s: %d bytes, closed with %v", name, n, closed)
		}
		refused(t, second(z.EstimateSend(ctx, c.spec)), c.kind, c.code, dataset)
	}
}

// TestBrokenStreams receives what is no stream, one with zeros in it, one too
// short, and one that goes on behind its end.
func TestBrokenStreams(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	noise(t, dataset, "a", 4, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	from, err := z.Send(ctx, SendSpec{To: dataset + "@1"})
	fine(t, err)
	whole, err := io.ReadAll(from)
	fine(t, err)
	fine(t, from.Close())
	receive := func(name string, resumable bool, content []byte) error {
		to, err := z.Receive(ctx, ReceiveSpec{Dataset: dataset + "/" + name, Resumable: resumable, Unmounted: true})
		fine(t, err)
		for len(content) > 0 {
			n := min(len(content), 100000)
			if _, err := to.Write(content[:n]); err != nil {
				return err
			}
			content = content[n:]
		}
		return to.Finish()
	}
	zeros := bytes.Clone(whole)
	clear(zeros[2<<20 : 2<<20+1024])
	for name, content := range map[string][]byte{
		"nothing": nil, "text": []byte("no stream\n"), "long": bytes.Repeat([]byte("text"), 1<<20), "zeros": zeros, "short": whole[:len(whole)-100], "half": whole[:len(whole)/2],
	} {
		for _, resumable := range []bool{false, true} {
			refused(t, receive(name, resumable, content), errdefs.Unavailable, CodeStreamBroken, dataset+"/"+name)
			if exists(t, dataset+"/"+name+"@1") {
				t.Errorf("%s made a snapshot", name)
			}
			fine(t, z.AbortReceive(ctx, dataset+"/"+name))
			if exists(t, dataset+"/"+name) {
				t.Errorf("%s left something", name)
			}
		}
	}
	refused(t, receive("more", true, append(bytes.Clone(whole), make([]byte, 4<<20)...)), errdefs.Unavailable, CodeStreamBroken, dataset+"/more")
	same(t, dataset+"@1", dataset+"/more@1")
}

func TestRawEncrypted(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	key := t.TempDir() + "/key"
	raw(t, "sh", "-c", "echo correct horse >"+key)
	src, dst := dataset+"/src", dataset+"/dst"
	raw(t, "zfs", "create", "-o", "encryption=on", "-o", "keyformat=passphrase", "-o", "keylocation=file://"+key, "-o", "mountpoint="+t.TempDir(), src)
	noise(t, src, "a", 4, 1)
	raw(t, "zfs", "snapshot", src+"@1")
	before := sum(t, src+"@1")
	raw(t, "zfs", "unmount", src)
	raw(t, "zfs", "unload-key", src)
	stream, err := z.Send(ctx, SendSpec{To: src + "@1"})
	fine(t, err)
	_, err = io.Copy(io.Discard, stream)
	refused(t, err, errdefs.FailedPrecondition, CodeKeyNotLoaded, src)
	_ = stream.Close()
	refused(t, z.Create(ctx, CreateSpec{Name: src + "/below"}), errdefs.FailedPrecondition, CodeKeyNotLoaded, src)

	into := ReceiveSpec{Dataset: dst, Resumable: true, Unmounted: true}
	refused(t, transfer(t, z, SendSpec{To: src + "@1", Raw: true}, into, 2<<20), errdefs.Unavailable, CodeStreamBroken, dst)
	if said, err := z.DecodeToken(ctx, token(t, dst)); err != nil || !said.Raw {
		t.Errorf("the token says %+v, %v", said, err)
	}
	fine(t, transfer(t, z, SendSpec{Token: token(t, dst)}, into, 0))
	all, err := z.Datasets(ctx, src, dst)
	fine(t, err)
	for _, d := range all {
		if !d.Encrypted() || d.KeyLoaded || d.EncryptionRoot != d.Name {
			t.Errorf("%+v", d)
		}
	}
	raw(t, "zfs", "load-key", "-L", "file://"+key, dst)
	if after := sum(t, dst+"@1"); after != before || before == "" {
		t.Error("the content is another")
	}

	// A version that corrupts refuses before anything is read.
	z.probed = &Capabilities{EncryptedSendUnsafe: unsafeToSend("2.4.3")}
	refused(t, second(z.Send(ctx, SendSpec{To: src + "@1", Raw: true})), errdefs.FailedPrecondition, CodeEncryptedSendUnsafe, src)
	raw(t, "zfs", "snapshot", dataset+"@plain")
	plain, err := z.Send(ctx, SendSpec{To: dataset + "@plain"})
	fine(t, err)
	fine(t, plain.Close())
}
