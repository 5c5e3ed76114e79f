package zfs

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestHolds(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	raw(t, "zfs", "snapshot", dataset+"@1")
	raw(t, "zfs", "snapshot", dataset+"@2")
	one, two, none := dataset+"@1", dataset+"@2", dataset+"@none"
	fine(t, z.Hold(ctx, "-job:1", one))
	fine(t, z.Hold(ctx, "-job:1", one))
	fine(t, z.Hold(ctx, "-job:1", one, two))
	fine(t, z.Hold(ctx, "other", two))
	refused(t, z.Hold(ctx, "x", none), errdefs.NotFound, CodeDatasetNotFound, none)
	refused(t, z.Hold(ctx, "x", none, one), errdefs.NotFound, CodeDatasetNotFound, none)
	refused(t, z.Hold(ctx, "x", dataset+"/none@1"), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
	fine(t, z.Release(ctx, "x", one))

	held, err := z.Holds(ctx, one, two, none)
	fine(t, err)
	if len(held) != 2 || len(held[one]) != 1 || held[one][0].Tag != "-job:1" || len(held[two]) != 2 {
		t.Fatalf("held: %+v", held)
	}
	if since := time.Since(held[one][0].Created); since < 0 || since > 10*time.Minute {
		t.Errorf("held for %v", since)
	}
	refused(t, second(z.DestroySnapshot(ctx, ref(t, one))), errdefs.FailedPrecondition, CodeSnapshotHeld, one)

	fine(t, z.Release(ctx, "-job:1", none, dataset+"/none@1", one, two))
	fine(t, z.Release(ctx, "-job:1", one))
	if held, err = z.Holds(ctx, one, two); err != nil || len(held) != 1 || len(held[two]) != 1 || held[two][0].Tag != "other" {
		t.Errorf("held: %+v, %v", held, err)
	}
	if held, err = z.Holds(ctx); err != nil || len(held) != 0 {
		t.Errorf("of none: %+v, %v", held, err)
	}
}

func TestBookmark(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	raw(t, "zfs", "snapshot", dataset+"@1")
	raw(t, "zfs", "snapshot", dataset+"@2")
	mark := dataset + "#m"
	fine(t, z.Bookmark(ctx, dataset+"@1", mark))
	fine(t, z.Bookmark(ctx, dataset+"@1", mark))
	refused(t, z.Bookmark(ctx, dataset+"@2", mark), errdefs.AlreadyExists, CodeSnapshotExists, mark)
	refused(t, z.Bookmark(ctx, dataset+"@none", dataset+"#n"), errdefs.NotFound, CodeDatasetNotFound, dataset+"@none")
	fine(t, z.DestroyBookmark(ctx, mark))
	fine(t, z.DestroyBookmark(ctx, mark))
	fine(t, z.DestroyBookmark(ctx, dataset+"/none#m"))
	if exists(t, mark) {
		t.Error("the bookmark is there")
	}
}
