package zfs

import (
	"io"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestResume(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	src, dst := dataset+"/src", dataset+"/dst"
	raw(t, "zfs", "create", "-o", "mountpoint="+t.TempDir(), src)
	noise(t, src, "a", 4, 1)
	raw(t, "zfs", "snapshot", src+"@1")
	noise(t, src, "a", 12, 2)
	raw(t, "zfs", "snapshot", src+"@2")
	into := ReceiveSpec{Dataset: dst, Resumable: true, Unmounted: true, Snapshot: "as planned"}
	fine(t, transfer(t, z, SendSpec{To: src + "@1"}, ReceiveSpec{Dataset: dst, Unmounted: true}, 0))

	fine(t, z.Bookmark(ctx, src+"@1", src+"#1"))
	from := guidOf(t, src+"@1")
	raw(t, "zfs", "destroy", src+"@1")
	step := SendSpec{From: src + "#1", To: src + "@2", Compressed: true, LargeBlocks: true, Embedded: true}
	refused(t, transfer(t, z, step, into, 6<<20), errdefs.Unavailable, CodeStreamBroken, dst)
	refused(t, transfer(t, z, step, into, 0), errdefs.FailedPrecondition, CodePartialReceive, dst)

	first := token(t, dst)
	said, err := z.DecodeToken(ctx, first)
	fine(t, err)
	if said.Name != src+"@2" || said.ToGUID != guidOf(t, src+"@2") || said.FromGUID != from || said.Bytes < 4<<20 || said.Bytes > 6<<20 ||
		said.Raw || !said.Compressed || !said.Embedded {
		t.Errorf("the token says %+v", said)
	}
	if left, err := z.EstimateSend(ctx, SendSpec{Token: first}); err != nil || left < 5<<20 || left > 9<<20 {
		t.Errorf("left: %d, %v", left, err)
	}
	all, err := z.Datasets(ctx, dst)
	if err != nil || all[0].ResumeToken != first {
		t.Errorf("listed: %+v, %v", all, err)
	}
	// Once more cut, and then to its end; the last bytes of a step are lost with it.
	refused(t, transfer(t, z, SendSpec{Token: first}, into, 3<<20), errdefs.Unavailable, CodeStreamBroken, dst)
	if again := token(t, dst); again == first {
		t.Error("nothing was kept of the second part")
	}
	fine(t, transfer(t, z, SendSpec{Token: token(t, dst)}, into, 0))
	same(t, src+"@2", dst+"@as planned")
	if token(t, dst) != "-" {
		t.Error("there is a token still")
	}
}

func TestDeadToken(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	src, dst := dataset+"/src", dataset+"/dst"
	raw(t, "zfs", "create", "-o", "mountpoint="+t.TempDir(), src)
	noise(t, src, "a", 8, 1)
	raw(t, "zfs", "snapshot", src+"@1")
	into := ReceiveSpec{Dataset: dst, Resumable: true, Unmounted: true}
	refused(t, transfer(t, z, SendSpec{To: src + "@1"}, into, 4<<20), errdefs.Unavailable, CodeStreamBroken, dst)
	dead := token(t, dst)
	guid := guidOf(t, src+"@1")
	raw(t, "zfs", "destroy", src+"@1")
	raw(t, "zfs", "snapshot", src+"@1") // another of the same name

	said, err := z.DecodeToken(ctx, dead)
	if err != nil || said.Name != src+"@1" || said.ToGUID != guid || said.FromGUID != 0 {
		t.Errorf("the token says %+v, %v", said, err)
	}
	refused(t, second(z.EstimateSend(ctx, SendSpec{Token: dead})), errdefs.FailedPrecondition, CodeTokenDead, "")
	stream, err := z.Send(ctx, SendSpec{Token: dead})
	fine(t, err)
	_, err = io.Copy(io.Discard, stream)
	refused(t, err, errdefs.FailedPrecondition, CodeTokenDead, "")
	_ = stream.Close()
	damaged := strings.Replace(dead, "789c", "789d", 1)
	refused(t, second(z.DecodeToken(ctx, damaged)), errdefs.FailedPrecondition, CodeTokenDead, "")
	refused(t, second(z.EstimateSend(ctx, SendSpec{Token: damaged})), errdefs.FailedPrecondition, CodeTokenDead, "")

	// The way out.
	refused(t, transfer(t, z, SendSpec{To: src + "@1"}, into, 0), errdefs.AlreadyExists, CodeDatasetExists, dst)
	fine(t, z.AbortReceive(ctx, dst))
	if exists(t, dst) {
		t.Error("what was received in part is there")
	}
	fine(t, z.AbortReceive(ctx, dst))
	fine(t, transfer(t, z, SendSpec{To: src + "@1"}, into, 0))
	fine(t, z.AbortReceive(ctx, dst))
	same(t, src+"@1", dst+"@1")

	// An increment whose beginning is gone.
	noise(t, src, "a", 8, 2)
	raw(t, "zfs", "snapshot", src+"@2")
	step := SendSpec{From: src + "@1", To: src + "@2"}
	refused(t, transfer(t, z, step, into, 4<<20), errdefs.Unavailable, CodeStreamBroken, dst)
	raw(t, "zfs", "destroy", src+"@1")
	refused(t, second(z.EstimateSend(ctx, SendSpec{Token: token(t, dst)})), errdefs.FailedPrecondition, CodeTokenDead, "")
	fine(t, z.AbortReceive(ctx, dst))
	if !exists(t, dst+"@1") || token(t, dst) != "-" {
		t.Error("more than the part was discarded")
	}
}

func TestTokensThatLie(t *testing.T) {
	const good = "resume token contents:\nnvlist version: 0\n\tobject = 0x2\n\toffset = 0x760000\n\tbytes = 0x785520\n\ttoguid = 0xc3cc939d71c233d8\n\ttoname = tank/a/m@1\n\tembedok = 1\n\tcompressok = 1\n\trawok = 1\nfull\ttank/a/m@1\t13135952\nsize\t13135952\n"
	want := Token{Name: "tank/a/m@1", ToGUID: 0xc3cc939d71c233d8, Bytes: 0x785520, Compressed: true, Embedded: true, Raw: true}
	if said, ok := parseToken(good); !ok || said != want {
		t.Errorf("%+v, %v", said, ok)
	}
	for _, lie := range [][2]string{
		{"tank/a/m@1\n", "tank/a\n"},
		{"tank/a/m@1\n", "tank/../m@1\n"},
		{"tank/a/m@1\n", "\n"},
		{"tank/a/m@1\n", "tank/a@1\n\ttoguid = 0x1\n"},
		{"toguid = 0xc3cc939d71c233d8", "toguid = 0"},
		{"toguid = 0xc3cc939d71c233d8", "toguid = 0xc3cc939d71c233d8ff"},
		{"\ttoname = tank/a/m@1\n", ""},
	} {
		if said, ok := parseToken(strings.Replace(good, lie[0], lie[1], 1)); ok {
			t.Errorf("with %q: %+v", lie[1], said)
		}
	}
}
