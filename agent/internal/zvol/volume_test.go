package zvol

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/integration/machine"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestMain runs the tests in a machine with a pool.
func TestMain(m *testing.M) {
	if machine.Inside() {
		out, err := exec.Command("zpool", "create", "-O", "compression=lz4", "-O", "mountpoint=none", "tank", "/dev/ubda").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "no pool: %v: %s\n", err, out)
			os.Exit(1)
		}
	}
	machine.Main(m, machine.Spec{Name: "zvol", MemoryMiB: 700, Disks: []machine.Disk{{MiB: 1024}}})
}

const volumeBytes = 32 << 20

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// pair gives a volume of a VM on the source, with something in it, and the same of
// the target, which is a dataset of its own here.
func pair(t *testing.T) (source, target Volume) {
	t.Helper()
	base := "tank/" + strings.ToLower(t.Name())
	run(t, "zfs", "create", base)
	run(t, "zfs", "create", base+"/source")
	run(t, "zfs", "create", base+"/target")
	t.Cleanup(func() {
		run(t, "sh", "-c", "zfs list -H -o name -t snapshot -r "+base+" | xargs -r -n1 zfs holds -H | while read s h _; do zfs release $h $s; done; zfs destroy -R "+base)
	})
	on := func(side string) Volume {
		name := base + "/" + side + "/w"
		return Volume{
			ZFS: zfs.New(zfs.Config{}), Right: "0123456789abcdef" + t.Name(), Operation: "01JOPERATION",
			Disk: &agentv1.DiskTransfer{
				Target: "vda", Type: "block", Path: Dir + name, ZfsDataset: name, Format: "raw", CapacityBytes: volumeBytes, VolumeBlockBytes: 8192,
			},
		}
	}
	source, target = on("source"), on("target")
	run(t, "zfs", "create", "-s", "-V", fmt.Sprint(volumeBytes), "-b", "8192", source.name())
	if err := source.appear(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, source, 4)
	return source, target
}

// fill writes MiB of noise as a guest with cache=none would.
func fill(t *testing.T, v Volume, mib int) {
	t.Helper()
	run(t, "dd", "if=/dev/urandom", "of="+v.Disk.GetPath(), "bs=1M", fmt.Sprint("count=", mib), "oflag=direct", "status=none")
}

func content(t *testing.T, v Volume) string {
	t.Helper()
	out := run(t, "sh", "-c", "dd if="+v.Disk.GetPath()+" bs=1M iflag=direct status=none | sha256sum")
	return out
}

func look(t *testing.T, v Volume) *agentv1.LookVolumeResponse {
	t.Helper()
	has, err := v.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// send sends one stream, cut after so many bytes where that is not 0.
func send(t *testing.T, source, target Volume, to zfs.Ref, cut int64) (done bool, err error) {
	t.Helper()
	next, done, err := source.Next(t.Context(), look(t, target), to)
	if err != nil || done {
		return done, err
	}
	from, err := source.Send(t.Context(), next)
	if err != nil {
		return false, err
	}
	var r io.Reader = from
	if cut > 0 {
		r = io.MultiReader(io.LimitReader(from, cut), broken{})
	}
	err = target.Take(t.Context(), next.From, next.To, next.Token != "", r)
	if closed := from.Close(); err == nil {
		err = closed
	}
	return false, err
}

type broken struct{}

var errCut = errdefs.New(errdefs.Unavailable, "STREAM_BROKEN", "cut")

func (broken) Read([]byte) (int, error) { return 0, errCut }

func deliver(t *testing.T, source, target Volume) zfs.Ref {
	t.Helper()
	to, err := source.Snap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		done, err := send(t, source, target, to, 0)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return to
		}
	}
	t.Fatalf("the target does not get %s", to.FullName())
	return to
}

func nothingLeft(t *testing.T, v Volume) {
	t.Helper()
	if left := run(t, "zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", v.name()); left != "" {
		t.Errorf("snapshots are left: %s", left)
	}
	if mark := run(t, "zfs", "get", "-H", "-o", "value", propertyRight, v.name()); mark != "-" {
		t.Errorf("%s is marked %s", v.name(), mark)
	}
}

func TestMakeKeepDiscard(t *testing.T) {
	_, v := pair(t)
	ctx := t.Context()
	if err := v.Check(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it
		if err := v.Make(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(t, "zfs", "get", "-H", "-p", "-o", "value", "volsize,volblocksize,refreservation", v.name()); got != fmt.Sprintf("%d\n8192\n0", volumeBytes) {
		t.Errorf("size, blocks and reservation are %q", got)
	}
	other := v
	other.Right = "another"
	if err := other.Check(ctx); err == nil || errdefs.Of(err).Code != codeExists {
		t.Errorf("another migration's volume: %v", err)
	}
	if err := other.Discard(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(ctx); err != nil {
		t.Fatalf("another migration has discarded it: %v", err)
	}
	fill(t, v, 1)
	if err := v.Keep(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, v)
	if err := v.Discard(ctx); err != nil { // what is kept is the VM's
		t.Fatal(err)
	}
	run(t, "zfs", "list", v.name())
	if err := v.Check(ctx); err == nil || errdefs.Of(err).Code != codeExists {
		t.Errorf("a kept volume: %v", err)
	}
}

func TestMakeReservedAndDiscard(t *testing.T) {
	_, v := pair(t)
	v.Disk.VolumeReserved = true
	if err := v.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "zfs", "get", "-H", "-p", "-o", "value", "refreservation", v.name()); got == "0" {
		t.Error("nothing is reserved")
	}
	if err := v.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, ok, err := v.find(t.Context(), v.name()); ok || err != nil {
		t.Errorf("%+v is left: %v", f, err)
	}
	v.Disk.ZfsDataset, v.Disk.Path = v.Disk.GetZfsDataset()+"/none/w", v.Disk.GetPath()+"/none/w"
	if err := v.Check(t.Context()); err == nil || errdefs.Of(err).Code != codeParent {
		t.Errorf("no parent: %v", err)
	}
}

// The whole way of a disk whose guest is written to meanwhile and which a paused
// QEMU has open on the target before the last snapshot has come.
func TestIncrements(t *testing.T) {
	source, target := pair(t)
	ctx := t.Context()
	deliver(t, source, target)
	reader, err := os.Open(target.Disk.GetPath())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	before := make([]byte, 1<<20)
	if _, err := reader.ReadAt(before, 0); err != nil { // this host's cache has it now
		t.Fatal(err)
	}
	fill(t, source, 2)
	last := deliver(t, source, target)
	if f, err := os.OpenFile(target.Disk.GetPath(), os.O_RDWR, 0); err == nil {
		_ = f.Close()
		t.Error("the volume can be written to before it is whole")
	}
	if behind, err := target.Open(ctx, last.GUID+1); err != nil || !behind {
		t.Errorf("behind %v, %v", behind, err)
	}
	if behind, err := target.Open(ctx, last.GUID); err != nil || behind {
		t.Fatalf("behind %v, %v", behind, err)
	}
	after := make([]byte, 1<<20)
	if _, err := reader.ReadAt(after, 0); err != nil {
		t.Fatal(err)
	}
	direct := run(t, "sh", "-c", "dd if="+source.Disk.GetPath()+" bs=1M count=1 iflag=direct status=none | sha256sum")
	if got := fmt.Sprintf("%x  -", sha256.Sum256(after)); got != direct || bytes.Equal(before, after) {
		t.Error("who had the volume open reads what was there before")
	}
	if content(t, source) != content(t, target) {
		t.Error("the two differ")
	}
	fill(t, target, 1) // the guest goes on
	if behind, err := target.Open(ctx, last.GUID); err != nil || behind {
		t.Errorf("once more: behind %v, %v", behind, err)
	}
	if err := errors.Join(target.Keep(ctx), source.Clear(ctx)); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, target)
	nothingLeft(t, source)
	if aside, err := source.Remove(ctx, func(uint64) bool { return true }); aside || err != nil {
		t.Errorf("aside %v, %v", aside, err)
	}
	if left := run(t, "zfs", "list", "-H", "-o", "name", "-t", "all", "-r", "-d", "1", strings.TrimSuffix(source.name(), "/w")); strings.Contains(left, "\n") {
		t.Errorf("left on the source: %s", left)
	}
}

// Streams that are cut anywhere go on where they were, or begin anew, and what
// comes of it is the same.
func TestCutStreams(t *testing.T) {
	source, target := pair(t)
	first, err := source.Snap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resumed := 0
	through := func(to zfs.Ref) {
		t.Helper()
		for cut := int64(700_000); ; cut += 500_000 {
			if look(t, target).GetResumeToken() != "" {
				resumed++
			}
			done, err := send(t, source, target, to, cut)
			if done {
				return
			}
			if err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			if cut > 20_000_000 {
				t.Fatal("it comes to no end")
			}
		}
	}
	through(first)
	fill(t, source, 3)
	second, err := source.Snap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	through(second)
	if resumed < 2 {
		t.Errorf("%d streams were gone on with", resumed)
	}
	if content(t, source) != content(t, target) {
		t.Error("the two differ")
	}
	// What was cut and is not wanted any more.
	fill(t, source, 3)
	third, err := source.Snap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := send(t, source, target, third, 1_500_000); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if err := target.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := run(t, "zfs", "list", "-H", "-o", "name", "-t", "all", "-r", strings.TrimSuffix(target.name(), "/w")); strings.Contains(left, "\n") {
		t.Errorf("left on the target: %s", left)
	}
}

// A target takes what its task is about and nothing else, and a source sends no
// more than what is its own.
func TestRefusals(t *testing.T) {
	source, target := pair(t)
	ctx := t.Context()
	to, err := source.Snap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, take := range map[string]func(ctx context.Context, r io.Reader) error{
		"another name": func(ctx context.Context, r io.Reader) error {
			return target.Take(ctx, 0, zfs.Ref{Name: "dv-20260101", GUID: to.GUID}, false, r)
		},
		"another beginning": func(ctx context.Context, r io.Reader) error { return target.Take(ctx, 77, to, false, r) },
		"nothing to resume": func(ctx context.Context, r io.Reader) error { return target.Take(ctx, 0, to, true, r) },
		"another guid": func(ctx context.Context, r io.Reader) error {
			return target.Take(ctx, 0, zfs.Ref{Name: to.Name, GUID: to.GUID + 1}, false, r)
		},
	} {
		from, err := source.Send(ctx, Stream{To: to})
		if err != nil {
			t.Fatal(err)
		}
		if err := take(ctx, from); err == nil {
			t.Errorf("%s: taken", name)
		}
		_ = from.Close()
		if err := target.Discard(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for name, stream := range map[string]io.Reader{
		"nothing": strings.NewReader(""), "garbage": strings.NewReader(strings.Repeat("x", 4096)),
		"a package of streams": sent(t, "-R", to.FullName()), "a raw stream": sent(t, "-w", encrypted(t, source)+"@s"),
		"of a file system": sent(t, fileSystem(t, source)+"@s"),
	} {
		if err := target.Take(ctx, 0, to, false, stream); err == nil || errdefs.Of(err).Code != codeFailed {
			t.Errorf("%s: %v", name, err)
		}
		if f, ok, err := target.find(ctx, target.own()); ok || err != nil {
			t.Errorf("%s: there is %+v, %v", name, f, err)
		}
	}
	if _, _, err := source.Next(ctx, &agentv1.LookVolumeResponse{Guid: 4711}, to); err == nil {
		t.Error("an increment to a snapshot that the source never sent")
	}
	// A token for something else of the source's.
	secret := Volume{ZFS: source.ZFS, Right: "another", Operation: "01JANOTHER1", Disk: source.Disk}
	if _, err := secret.Snap(ctx); err != nil {
		t.Fatal(err)
	}
	liar := target
	liar.Right, liar.Operation = secret.Right, secret.Operation
	cut, err := secret.Snap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := send(t, secret, liar, cut, 1_000_000); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	next, _, err := source.Next(ctx, &agentv1.LookVolumeResponse{ResumeToken: look(t, liar).GetResumeToken()}, to)
	if err != nil || next.Token != "" {
		t.Errorf("a token of another migration is sent for: %+v, %v", next, err)
	}
	if err := errors.Join(liar.Discard(ctx), secret.Clear(ctx)); err != nil {
		t.Fatal(err)
	}
}

// sent is a stream of zfs's.
func sent(t *testing.T, args ...string) io.Reader {
	t.Helper()
	out, err := exec.Command("zfs", append([]string{"send"}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(out)
}

// fileSystem and encrypted are datasets with a snapshot, beside the source's.
func fileSystem(t *testing.T, v Volume) string {
	t.Helper()
	run(t, "zfs", "create", v.name()+"-fs")
	run(t, "zfs", "snapshot", v.name()+"-fs@s")
	return v.name() + "-fs"
}

func encrypted(t *testing.T, v Volume) string {
	t.Helper()
	run(t, "sh", "-c", "echo a secret of many letters | zfs create -s -V 8M -o encryption=on -o keyformat=passphrase "+v.name()+"-secret")
	run(t, "zfs", "snapshot", v.name()+"-secret@s")
	return v.name() + "-secret"
}

func TestRemove(t *testing.T) {
	source, _ := pair(t)
	ctx := t.Context()
	guid, err := source.GUID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if aside, err := source.Remove(ctx, func(g uint64) bool { return g != guid }); aside || err != nil {
		t.Errorf("aside %v, %v", aside, err)
	}
	run(t, "zfs", "list", source.name()) // it was not ours
	run(t, "zfs", "snapshot", source.name()+"@mine")
	for range 2 { // the second finds it aside
		if aside, err := source.Remove(ctx, func(g uint64) bool { return g == guid }); !aside || err != nil {
			t.Errorf("aside %v, %v", aside, err)
		}
	}
	if got := run(t, "zfs", "get", "-H", "-o", "value", "readonly", source.Aside()); got != "on" {
		t.Errorf("readonly is %s", got)
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); ; {
		if name, _ := deviceOf(source.Disk.GetPath()); name == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the VM's name still leads to it")
		}
	}
}
