//go:build ceph_preview

package rbd

import (
	"slices"
	"testing"

	"github.com/ceph/go-ceph/rados"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func TestSnapshotsGoUnlessSomebodyKeepsThem(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	s := r.snapshot(disk, "daily", "op-1")
	for range 2 {
		if gone, err := r.RemoveSnapshot(t.Context(), s); err != nil || !gone {
			t.Errorf("gone %v: %v", gone, err)
		}
	}
	if meta := r.admin("rbd", "image-meta", "ls", Shown(disk)); meta != "" && meta != "There are 0 metadata on this image." {
		t.Errorf("metadata is left: %s", meta)
	}
	newer := r.snapshot(disk, "daily", "op-2")
	_, err := r.RemoveSnapshot(t.Context(), s)
	refused(t, err, CodeSnapshotReplaced)
	clone, _, err := r.Clone(t.Context(), CloneSpec{Template: newer, Image: r.id("vms", "clone"), Operation: "op-3"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.RemoveSnapshot(t.Context(), newer)
	refused(t, err, CodeSnapshotCloned)
	r.admin("rbd", "snap", "create", Shown(disk)+"@byhand")
	r.admin("rbd", "snap", "protect", Shown(disk)+"@byhand")
	_, err = r.RemoveSnapshot(t.Context(), &agentv1.RbdSnapshotID{Image: disk, Name: "byhand"})
	refused(t, err, CodeSnapshotProtected)

	_, err = r.RemoveImage(t.Context(), disk, "op-3")
	refused(t, err, CodeForeignImage)
	own := r.snapshot(clone, "own", "op-4")
	_, err = r.RemoveImage(t.Context(), clone, "op-3")
	refused(t, err, CodeHasSnapshots)
	grandchild, _, err := r.Clone(t.Context(), CloneSpec{Template: own, Image: r.id("fast", "grandchild"), Operation: "op-5"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.RemoveImage(t.Context(), clone, "op-3")
	refused(t, err, CodeHasClones)
	for _, step := range []func() (bool, error){
		func() (bool, error) { return r.RemoveImage(t.Context(), grandchild, "op-5") },
		func() (bool, error) { return r.RemoveImage(t.Context(), grandchild, "op-5") },
		func() (bool, error) { return r.RemoveSnapshot(t.Context(), own) },
		func() (bool, error) { return r.RemoveImage(t.Context(), clone, "op-3") },
		func() (bool, error) { return r.RemoveSnapshot(t.Context(), newer) },
	} {
		if gone, err := step(); err != nil || !gone {
			t.Errorf("gone %v: %v", gone, err)
		}
	}
	if all := r.everything(); all != "vms ls: disk" {
		t.Errorf("there is\n%s", all)
	}
}

func TestADeadChildLeavesNothingInTheTrash(t *testing.T) {
	t.Parallel()
	for _, point := range []string{pointImageTrashed, pointImageRemoved} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			template := r.snapshot(r.disk("golden"), "v1", "op-template")
			c := r.client(point)
			clone, _, err := c.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.RemoveImage(t.Context(), clone, "op-1")
			refused(t, err, CodeUnknown)
			if gone, err := c.RemoveImage(t.Context(), clone, "op-1"); err != nil || !gone {
				t.Errorf("gone %v: %v", gone, err)
			}
			if all := r.everything(); all != "vms ls: golden" {
				t.Errorf("there is\n%s", all)
			}
		})
	}
}

// A move to the trash that died before its last step goes on.
func TestAHalfTrashedImageIsRemoved(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	template := r.snapshot(r.disk("golden"), "v1", "op-template")
	c := r.client(pointImageTrashed)
	clone, _, err := c.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.RemoveImage(t.Context(), clone, "op-1")
	refused(t, err, CodeUnknown)
	direct, _, err := connect(r.cluster.Conf(), ceph.Agent)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.conn.Shutdown()
	pool, err := direct.conn.OpenIOContext("fast")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Destroy()
	pool.SetNamespace(r.space)
	op := rados.CreateWriteOp()
	defer op.Release()
	const normal, moving = 0, 1
	op.Exec("rbd", "trash_state_set", append(encode(nil, clone.GetId()), moving, normal))
	if err := op.Operate(pool, trashObject, rados.OperationNoFlag); err != nil {
		t.Fatal(err)
	}
	if gone, err := c.RemoveImage(t.Context(), clone, "op-1"); err != nil || !gone {
		t.Errorf("gone %v: %v", gone, err)
	}
	if all := r.everything(); all != "vms ls: golden" {
		t.Errorf("there is\n%s", all)
	}
}

func TestListTellsOfAllPoolsAndNamespaces(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	r.snapshot(disk, "daily", "op-1")
	r.admin("rbd", "create", "--size", "1M", Shown(r.id("fast", "other")))
	list := func(ids ...*agentv1.RbdImageID) (names []string, snapshots int) {
		t.Helper()
		if err := r.List(t.Context(), &agentv1.ListRbd{Images: ids, Snapshots: true, Watchers: true, Children: true}, func(l *agentv1.RbdListing) error {
			for _, image := range l.GetImages() {
				if image.GetImage().GetNamespace() == r.space {
					names = append(names, image.GetImage().GetPool()+"/"+image.GetImage().GetName())
				}
			}
			for _, s := range l.GetSnapshots() {
				if s.GetSnapshot().GetImage().GetNamespace() == r.space {
					snapshots++
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names, snapshots
	}
	if names, snapshots := list(&agentv1.RbdImageID{}); len(names) != 2 || names[0] != "fast/other" || names[1] != "vms/disk" || snapshots != 1 {
		t.Errorf("all: %v, %d snapshots", names, snapshots)
	}
	if names, _ := list(r.id("fast", "")); len(names) != 1 || names[0] != "fast/other" {
		t.Errorf("one pool: %v", names)
	}
	if names, snapshots := list(disk, r.id("vms", "none"), r.id("none", "none")); len(names) != 1 || snapshots != 1 {
		t.Errorf("images: %v, %d snapshots", names, snapshots)
	}
}
