package zfs

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestSnapshotIsAtomic(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	raw(t, "zfs", "create", "-V", "16M", dataset+"/v1")
	raw(t, "zfs", "create", "-V", "16M", dataset+"/v2")
	both := []string{dataset + "/v1", dataset + "/v2"}
	properties := map[string]string{PropertyOperation: "op-1", PropertyLabel: "before the upgrade"}
	fine(t, z.Snapshot(ctx, SnapshotSpec{Datasets: both, Name: "one", Properties: properties}))
	txg := map[string]bool{}
	fine(t, z.Snapshots(ctx, []string{dataset}, true, func(s Snapshot) error {
		txg[strconv.FormatUint(s.CreateTXG, 10)] = true
		if s.Name != "one" || s.Properties[PropertyOperation] != "op-1" || s.Properties[PropertyLabel] != "before the upgrade" {
			t.Errorf("taken: %+v", s)
		}
		return nil
	}))
	if len(txg) != 1 {
		t.Errorf("taken in transactions %v", txg)
	}
	refused(t, z.Snapshot(ctx, SnapshotSpec{Datasets: both, Name: "one"}), errdefs.AlreadyExists, CodeSnapshotExists, dataset)
	raw(t, "zfs", "snapshot", dataset+"/v2@two")
	refused(t, z.Snapshot(ctx, SnapshotSpec{Datasets: both, Name: "two"}), errdefs.AlreadyExists, CodeSnapshotExists, dataset+"/v2@two")
	refused(t, z.Snapshot(ctx, SnapshotSpec{Datasets: append(both, dataset+"/v3"), Name: "three"}), errdefs.NotFound, CodeDatasetNotFound, dataset+"/v3")
	for _, name := range []string{dataset + "/v1@two", dataset + "/v1@three", dataset + "/v2@three"} {
		if exists(t, name) {
			t.Errorf("%s was taken although the set was not", name)
		}
	}
}

func TestDestroySnapshots(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	noise(t, dataset, "f", 4, 1)
	for _, s := range []string{"gone", "held", "cloned", "other", "free", "mounted", "sent"} {
		raw(t, "zfs", "snapshot", dataset+"@"+s)
	}
	refs := map[string]Ref{}
	for _, s := range []string{"gone", "held", "cloned", "other", "free", "mounted", "sent"} {
		refs[s] = ref(t, dataset+"@"+s)
	}
	raw(t, "zfs", "destroy", dataset+"@gone")
	raw(t, "zfs", "hold", "x", dataset+"@held")
	raw(t, "zfs", "clone", "-o", "mountpoint=none", dataset+"@cloned", dataset+"/clone")
	raw(t, "zfs", "destroy", dataset+"@other")
	raw(t, "zfs", "snapshot", dataset+"@other") // another, of the same name
	mountpoint := raw(t, "zfs", "get", "-Ho", "value", "mountpoint", dataset)
	if _, err := os.Stat(filepath.Join(mountpoint, ".zfs/snapshot/mounted/f")); err != nil {
		t.Logf("the snapshot is not mounted: %v", err)
	}
	stream, err := z.Send(ctx, SendSpec{To: dataset + "@sent"})
	fine(t, err)
	if _, err := stream.Read(make([]byte, 64<<10)); err != nil { // it is at work, and now waits for us
		t.Fatal(err)
	}

	order := []string{"gone", "held", "cloned", "other", "free", "mounted", "sent"}
	var all []Ref
	for _, s := range order {
		all = append(all, refs[s])
	}
	errs, err := z.DestroySnapshots(ctx, append(all, Ref{Dataset: dataset + "/none", Name: "x", GUID: 7}))
	fine(t, err)
	for i, s := range order {
		switch s {
		case "held":
			refused(t, errs[i], errdefs.FailedPrecondition, CodeSnapshotHeld, dataset+"@held")
		case "cloned":
			refused(t, errs[i], errdefs.FailedPrecondition, CodeSnapshotHasClones, dataset+"@cloned")
		case "other":
			refused(t, errs[i], errdefs.Aborted, CodeDatasetChanged, dataset+"@other")
		case "sent":
			refused(t, errs[i], errdefs.Unavailable, CodeDatasetBusy, dataset+"@sent")
		default:
			fine(t, errs[i])
		}
		if kept := errs[i] != nil; kept != exists(t, dataset+"@"+s) {
			t.Errorf("%s: %v, and it is there: %v", s, errs[i], !kept)
		}
	}
	fine(t, errs[len(order)])
	fine(t, stream.Close())
	gone, err := z.DestroySnapshot(ctx, refs["sent"])
	if err != nil || gone {
		t.Errorf("when it is not sent any more: %v, %v", gone, err)
	}
	if gone, err = z.DestroySnapshot(ctx, refs["sent"]); err != nil || !gone {
		t.Errorf("once more: %v, %v", gone, err)
	}
	refused(t, second(z.DestroySnapshot(ctx, Ref{"nopool/a", "s", 1})), errdefs.NotFound, CodeDatasetNotFound, "nopool")
}

// TestDestroyManySnapshots takes more than one transaction.
func TestDestroyManySnapshots(t *testing.T) {
	z, dataset := room(t)
	var refs []Ref
	for i := range 2 {
		sub := dataset + "/" + strconv.Itoa(i)
		raw(t, "zfs", "create", sub)
	}
	for i := range (atOnce + 20) / 2 {
		raw(t, "zfs", "snapshot", "-r", dataset+"@"+strconv.Itoa(i))
	}
	fine(t, z.Snapshots(t.Context(), []string{dataset}, true, func(s Snapshot) error {
		refs = append(refs, Ref{s.Dataset, s.Name, s.GUID})
		return nil
	}))
	refs[3].GUID++
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := z.DestroySnapshots(ctx, refs); err == nil {
		t.Error("destroyed after the end of its context")
	}
	errs, err := z.DestroySnapshots(t.Context(), refs)
	fine(t, err)
	if len(errs) != len(refs) || len(refs) <= atOnce {
		t.Fatalf("%d answers for %d", len(errs), len(refs))
	}
	for i, err := range errs {
		if (err != nil) != (i == 3) {
			t.Errorf("%s: %v", refs[i].FullName(), err)
		}
	}
	if left := raw(t, "zfs", "list", "-Hrt", "snapshot", "-o", "name", dataset); left != refs[3].FullName() {
		t.Errorf("left: %q", left)
	}
}

func TestEstimateDestroy(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	for i := range 3 {
		noise(t, dataset, "f", 2, uint64(i))
		raw(t, "zpool", "sync", tank)
		raw(t, "zfs", "snapshot", dataset+"@"+strconv.Itoa(i))
	}
	noise(t, dataset, "f", 1, 9)
	raw(t, "zpool", "sync", tank)
	all, err := z.EstimateDestroy(ctx, dataset, []string{"0", "1", "2", "none"})
	if err != nil || all < 6<<20 || all > 7<<20 {
		t.Errorf("all: %d, %v", all, err)
	}
	one, err := z.EstimateDestroy(ctx, dataset, []string{"1"})
	if err != nil || one < 2<<20 || one > 3<<20 {
		t.Errorf("one: %d, %v", one, err)
	}
	names := []string{"0"}
	for i := range 3000 {
		names = append(names, strings.Repeat("long", 10)+strconv.Itoa(i))
	}
	if more, err := z.EstimateDestroy(ctx, dataset, append(names, "1")); err != nil || more < 4<<20 {
		t.Errorf("more than an argument holds: %d, %v", more, err)
	}
	if none, err := z.EstimateDestroy(ctx, dataset, []string{"none"}); err != nil || none != 0 {
		t.Errorf("none: %d, %v", none, err)
	}
	refused(t, second(z.EstimateDestroy(ctx, dataset+"/none", []string{"1"})), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
	raw(t, "zfs", "clone", dataset+"@1", dataset+"/c")
	refused(t, second(z.EstimateDestroy(ctx, dataset, []string{"0", "1"})), errdefs.FailedPrecondition, CodeSnapshotHasClones, dataset+"@1")
	if !exists(t, dataset+"@0") {
		t.Error("an estimate destroyed something")
	}
}
