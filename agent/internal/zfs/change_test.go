package zfs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestCreate(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	fine(t, z.Create(ctx, CreateSpec{Name: dataset + "/v", VolumeSize: 32 << 20, Sparse: true, Properties: map[string]string{"volblocksize": "8192", PropertyJob: "j"}}))
	fine(t, z.Create(ctx, CreateSpec{Name: dataset + "/thick", VolumeSize: 32 << 20}))
	fine(t, z.Create(ctx, CreateSpec{Name: dataset + "/f", Properties: map[string]string{"mountpoint": "none", "quota": "10M"}}))
	all, err := z.Datasets(ctx, dataset)
	fine(t, err)
	if len(all) != 4 {
		t.Fatalf("made %+v", all)
	}
	f, thick, v := all[1], all[2], all[3]
	if !v.Volume || v.VolumeSize != 32<<20 || v.RefReservation != 0 || v.BlockSize != 8192 || v.Properties[PropertyJob] != "j" {
		t.Errorf("the volume is %+v", v)
	}
	if thick.RefReservation < 32<<20 || f.Volume || f.Quota != 10<<20 || f.Mounted {
		t.Errorf("made %+v and %+v", thick, f)
	}
	refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/v", VolumeSize: 32 << 20}), errdefs.AlreadyExists, CodeDatasetExists, dataset+"/v")
	refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/f"}), errdefs.AlreadyExists, CodeDatasetExists, dataset+"/f")
	for _, size := range []uint64{0, 32 << 20} {
		refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/none/x", VolumeSize: size}), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
	}
	refused(t, z.Create(ctx, CreateSpec{Name: "nopool/x"}), errdefs.NotFound, CodeDatasetNotFound, "nopool")
	refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/big", VolumeSize: 1 << 40}), errdefs.ResourceExhausted, CodeNoSpace, dataset+"/big")
	refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/odd", VolumeSize: 32 << 20, Properties: map[string]string{"volblocksize": "5000"}}), errdefs.InvalidArgument, CodeZFS, dataset+"/odd")
	refused(t, z.Create(ctx, CreateSpec{Name: dataset + "/odd", Properties: map[string]string{"nonsense": "1"}}), errdefs.InvalidArgument, CodeZFS, dataset+"/odd")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := z.Create(ended, CreateSpec{Name: dataset + "/late"}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
	if exists(t, dataset+"/none") || exists(t, dataset+"/late") {
		t.Error("made what nobody asked for")
	}
}

func TestRenameAndProperties(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	a, b := dataset+"/a", dataset+"/b"
	raw(t, "zfs", "create", "-o", "mountpoint="+t.TempDir(), a)
	guid := guidOf(t, a)
	fine(t, z.Set(ctx, a, map[string]string{PropertyJob: "job = 1", "quota": "20M"}))
	found, err := z.Get(ctx, a, "guid", "quota", PropertyJob, PropertyLabel)
	if err != nil || found["quota"] != (Property{"20971520", "local"}) || found[PropertyJob] != (Property{"job = 1", "local"}) || found[PropertyLabel] != (Property{"-", "-"}) {
		t.Errorf("set: %+v, %v", found, err)
	}
	fine(t, z.Inherit(ctx, a, PropertyJob))
	fine(t, z.Inherit(ctx, a, PropertyJob))
	if found, err = z.Get(ctx, a, PropertyJob); err != nil || found[PropertyJob].Value != "-" {
		t.Errorf("taken away: %+v, %v", found, err)
	}
	refused(t, z.Set(ctx, a, map[string]string{"nonsense": "1"}), errdefs.InvalidArgument, CodeZFS, a)
	noise(t, a, "f", 3, 1)
	raw(t, "zpool", "sync", tank)
	refused(t, z.Set(ctx, a, map[string]string{"quota": "1M"}), errdefs.ResourceExhausted, CodeQuota, a)
	refused(t, z.Set(ctx, b, map[string]string{"a:b": "c"}), errdefs.NotFound, CodeDatasetNotFound, b)
	refused(t, z.Inherit(ctx, b, "a:b"), errdefs.NotFound, CodeDatasetNotFound, b)
	refused(t, second(z.Get(ctx, b, "guid")), errdefs.NotFound, CodeDatasetNotFound, b)
	refused(t, second(z.Get(ctx, a+"#none", "guid")), errdefs.NotFound, CodeDatasetNotFound, a)

	refused(t, z.Rename(ctx, a, b, guid+1), errdefs.Aborted, CodeDatasetChanged, a)
	refused(t, z.Rename(ctx, b, dataset+"/c", guid), errdefs.NotFound, CodeDatasetNotFound, b)
	refused(t, z.Rename(ctx, a, dataset+"/none/b", guid), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
	raw(t, "zfs", "create", "-o", "mountpoint=none", b)
	refused(t, z.Rename(ctx, a, b, guid), errdefs.AlreadyExists, CodeDatasetExists, "tank")
	open, err := os.Open(filepath.Join(raw(t, "zfs", "get", "-Ho", "value", "mountpoint", a), "f"))
	fine(t, err)
	refused(t, second(z.DestroyDataset(ctx, a, guid)), errdefs.Unavailable, CodeDatasetBusy, a)
	fine(t, open.Close())
	fine(t, z.Rename(ctx, a, dataset+"/c", guid))
	if guidOf(t, dataset+"/c") != guid {
		t.Error("another has the new name")
	}
}

func TestDestroyDataset(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	v := dataset + "/v"
	raw(t, "zfs", "create", "-V", "16M", v)
	guid := guidOf(t, v)
	raw(t, "zfs", "snapshot", v+"@1")
	raw(t, "zfs", "snapshot", v+"@2")
	raw(t, "zfs", "bookmark", v+"@1", v+"#1")
	refused(t, second(z.DestroyDataset(ctx, v, guid+1)), errdefs.Aborted, CodeDatasetChanged, v)
	refused(t, second(z.DestroyDataset(ctx, dataset, guidOf(t, dataset))), errdefs.FailedPrecondition, CodeDatasetHasChildren, dataset)
	raw(t, "zfs", "hold", "x", v+"@2")
	refused(t, second(z.DestroyDataset(ctx, v, guid)), errdefs.FailedPrecondition, CodeSnapshotHeld, v+"@2")
	raw(t, "zfs", "release", "x", v+"@2")
	raw(t, "zfs", "clone", v+"@2", dataset+"/c")
	refused(t, second(z.DestroyDataset(ctx, v, guid)), errdefs.FailedPrecondition, CodeSnapshotHasClones, v+"@2")
	raw(t, "zfs", "destroy", dataset+"/c")
	for _, s := range []string{"@1", "@2", "#1"} {
		if !exists(t, v+s) {
			t.Errorf("%s went although the dataset stays", s)
		}
	}
	if gone, err := z.DestroyDataset(ctx, v, guid); err != nil || gone || exists(t, v) {
		t.Errorf("destroyed: %v, %v", gone, err)
	}
	if gone, err := z.DestroyDataset(ctx, v, guid); err != nil || !gone {
		t.Errorf("once more: %v, %v", gone, err)
	}

	// What is left of a receive goes too.
	noise(t, dataset, "f", 6, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	noise(t, dataset, "f", 6, 2)
	raw(t, "zfs", "snapshot", dataset+"@2")
	into := ReceiveSpec{Dataset: v, Resumable: true, Unmounted: true}
	refused(t, transfer(t, z, SendSpec{To: dataset + "@1"}, into, 3<<20), errdefs.Unavailable, CodeStreamBroken, v)
	if _, err := z.DestroyDataset(ctx, v, guidOf(t, v)); err != nil || exists(t, v) {
		t.Errorf("of a first receive: %v", err)
	}
	fine(t, transfer(t, z, SendSpec{To: dataset + "@1"}, into, 0))
	refused(t, transfer(t, z, SendSpec{From: dataset + "@1", To: dataset + "@2"}, into, 2<<20), errdefs.Unavailable, CodeStreamBroken, v)
	if _, err := z.DestroyDataset(ctx, v, guidOf(t, v)); err != nil || exists(t, v) {
		t.Errorf("of an increment: %v", err)
	}
}

func TestRollback(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	noise(t, dataset, "f", 1, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	first := ref(t, dataset+"@1")
	before := sum(t, dataset+"@1")
	noise(t, dataset, "f", 1, 2)
	raw(t, "zfs", "snapshot", dataset+"@2")
	refused(t, z.Rollback(ctx, first), errdefs.FailedPrecondition, CodeNotLatest, dataset+"@1")
	refused(t, z.Rollback(ctx, Ref{dataset, "2", first.GUID}), errdefs.Aborted, CodeDatasetChanged, dataset+"@2")
	refused(t, z.Rollback(ctx, Ref{dataset, "3", 7}), errdefs.NotFound, CodeDatasetNotFound, dataset+"@3")
	raw(t, "zfs", "destroy", dataset+"@2")
	fine(t, z.Rollback(ctx, first))
	raw(t, "zfs", "snapshot", dataset+"@now")
	if sum(t, dataset+"@now") != before {
		t.Error("it is not as it was")
	}
}

// TestFull fills a dataset up to its quota, and a pool.
func TestFull(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	noise(t, dataset, "f", 20, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	raw(t, "zfs", "create", "-o", "quota=5M", "-o", "mountpoint=none", dataset+"/small")
	into := ReceiveSpec{Dataset: dataset + "/small/r", Resumable: true, Unmounted: true}
	refused(t, transfer(t, z, SendSpec{To: dataset + "@1"}, into, 0), errdefs.ResourceExhausted, CodeQuota, into.Dataset)

	pool, _ := smallPool(t, "64M", "100M")
	into.Dataset = pool + "/r1"
	fine(t, transfer(t, z, SendSpec{To: dataset + "@1"}, into, 0))
	into.Dataset = pool + "/r2"
	refused(t, transfer(t, z, SendSpec{To: dataset + "@1"}, into, 0), errdefs.ResourceExhausted, CodeNoSpace, into.Dataset)
	refused(t, z.Create(ctx, CreateSpec{Name: pool + "/x"}), errdefs.ResourceExhausted, CodeNoSpace, pool)
	refused(t, z.Snapshot(ctx, SnapshotSpec{Datasets: []string{pool + "/r1"}, Name: "x"}), errdefs.ResourceExhausted, CodeNoSpace, pool)
	// Room is made by destroying, also when there is none.
	fine(t, z.AbortReceive(ctx, into.Dataset))
	if _, err := z.DestroyDataset(ctx, pool+"/r1", guidOf(t, pool+"/r1")); err != nil {
		t.Error(err)
	}
}

// smallPool makes a pool on a file of a file system of its own, of the sizes.
func smallPool(t *testing.T, disk, under string) (pool, dir string) {
	t.Helper()
	dir, pool = t.TempDir(), "small"+t.Name()
	raw(t, "mount", "-t", "tmpfs", "-o", "size="+under, "tmpfs", dir)
	t.Cleanup(func() { raw(t, "umount", dir) })
	raw(t, "truncate", "-s", disk, dir+"/disk")
	raw(t, "zpool", "create", "-O", "mountpoint=none", pool, dir+"/disk")
	t.Cleanup(func() { raw(t, "zpool", "destroy", "-f", pool) })
	return pool, dir
}

// TestSuspended takes the disk away from under a pool, and gives it back.
func TestSuspended(t *testing.T) {
	z := New(Config{})
	ctx := t.Context()
	pool, dir := smallPool(t, "300M", "40M")
	raw(t, "zfs", "create", "-o", "mountpoint=none", pool+"/a")
	raw(t, "zfs", "snapshot", pool+"/a@1")
	r := ref(t, pool+"/a@1")
	raw(t, "zfs", "set", "mountpoint="+t.TempDir(), pool+"/a")
	cmd := exec.Command("dd", "if=/dev/urandom", "of="+filepath.Join(raw(t, "zfs", "get", "-Ho", "value", "mountpoint", pool+"/a"), "f"), "bs=1M", "count=60")
	fine(t, cmd.Start())
	t.Cleanup(func() { // before anything else waits for the pool
		raw(t, "mount", "-o", "remount,size=400M", dir)
		raw(t, "zpool", "clear", pool)
		_ = cmd.Wait()
		fine(t, z.Snapshot(context.Background(), SnapshotSpec{Datasets: []string{pool + "/a"}, Name: "after"}))
	})
	var pools []Pool
	if !soon(30*time.Second, func() (suspended bool) {
		var err error
		pools, err = z.Pools(ctx)
		fine(t, err)
		return slices.ContainsFunc(pools, func(p Pool) bool { return p.Name == pool && p.Health == "SUSPENDED" })
	}) {
		t.Fatalf("the pools are %+v", pools)
	}
	for name, err := range map[string]error{
		"snapshot": z.Snapshot(ctx, SnapshotSpec{Datasets: []string{pool + "/a"}, Name: "2"}),
		"destroy":  second(z.DestroySnapshot(ctx, r)),
		"create":   z.Create(ctx, CreateSpec{Name: pool + "/b"}),
		"datasets": second(z.Datasets(ctx, pool)),
		"hold":     z.Hold(ctx, "x", pool+"/a@1"),
		"set":      z.Set(ctx, pool+"/a", map[string]string{"a:b": "c"}),
		"estimate": second(z.EstimateSend(ctx, SendSpec{To: pool + "/a@1"})),
	} {
		t.Log(name)
		refused(t, err, errdefs.Unavailable, CodePoolSuspended, pool)
	}
}

// TestNotPermitted runs the commands as nobody.
func TestNotPermitted(t *testing.T) {
	_, dataset := room(t)
	dir := t.TempDir()
	for _, program := range []string{"zfs", "zpool"} {
		path, err := exec.LookPath(program)
		fine(t, err)
		fine(t, os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\nexec setpriv --reuid 65534 --clear-groups "+path+" \"$@\"\n"), 0o755))
	}
	raw(t, "zfs", "snapshot", dataset+"@1")
	r := ref(t, dataset+"@1")
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	z, ctx := New(Config{}), t.Context()
	errs := map[string]error{
		"snapshot": z.Snapshot(ctx, SnapshotSpec{Datasets: []string{dataset}, Name: "2"}),
		"destroy":  second(z.DestroySnapshot(ctx, r)),
		"hold":     z.Hold(ctx, "x", dataset+"@1"),
		"abort":    z.AbortReceive(ctx, dataset),
		"set":      z.Set(ctx, dataset, map[string]string{"a:b": "c"}),
		"bookmark": z.Bookmark(ctx, dataset+"@1", dataset+"#1"),
	}
	t.Setenv("PATH", path)
	for name, err := range errs {
		t.Log(name)
		refused(t, err, errdefs.PermissionDenied, CodeNotPermitted, "")
	}
}
