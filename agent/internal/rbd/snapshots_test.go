//go:build ceph_preview

package rbd

import (
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/integration/ceph"
)

func TestInventoryIsTheCluster(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	inv, err := r.Inventory(t.Context())
	disk := r.disk("disk")
	r.writer(disk)
	r.locked(disk)
	if image, _, looked := r.Image(t.Context(), disk, true); looked != nil || inv.GetAddress() == "" || !strings.HasPrefix(image.GetWatchers()[0].GetAddress(), inv.GetAddress()+":") {
		t.Errorf("clients come from %q: %v, %v", inv.GetAddress(), image.GetWatchers(), looked)
	}
	if err != nil {
		t.Fatal(err)
	}
	if inv.GetFsid() != r.admin("ceph", "fsid") || inv.GetVersion() == "" || inv.GetHealth() == "" || inv.GetEntity() != "client.debvisor" {
		t.Errorf("inventory %v", inv)
	}
	if len(inv.GetPools()) != 2 || inv.GetPools()[0].GetName() != "fast" || !inv.GetPools()[0].GetRbd() || inv.GetPools()[1].GetId() == 0 {
		t.Errorf("pools %v", inv.GetPools())
	}
}

func TestASnapshotIsTakenOncePerOperation(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	spec := SnapshotSpec{Image: disk, Name: "daily", Operation: "op-1", Label: "nightly", Set: "set-1", Template: true}
	first, err := r.CreateSnapshot(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.CreateSnapshot(t.Context(), spec)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("again: %v, %v; first %v", again, err, first)
	}
	spec.Operation = "op-2"
	_, err = r.CreateSnapshot(t.Context(), spec)
	refused(t, err, CodeSnapshotExists)
	r.admin("rbd", "snap", "create", Shown(disk)+"@byhand")
	spec.Name = "byhand"
	_, err = r.CreateSnapshot(t.Context(), spec)
	refused(t, err, CodeSnapshotExists)

	image, snapshots, err := r.Image(t.Context(), disk, true)
	if err != nil || len(snapshots) != 2 || image.GetImage().GetId() == "" || image.GetSizeBytes() != 16<<20 || image.GetCreated() == 0 {
		t.Fatalf("image %v, snapshots %v: %v", image, snapshots, err)
	}
	s := snapshots[0]
	if s.GetSnapshot().GetId() != first.GetId() || s.GetOperation() != "op-1" || s.GetLabel() != "nightly" || s.GetSet() != "set-1" || !s.GetTemplate() || s.GetCreated() == 0 {
		t.Errorf("snapshot %v", s)
	}
	if len(image.GetWatchers()) != 0 || len(image.GetLockers()) != 0 {
		t.Errorf("somebody has it open: %v", image)
	}
	if snapshots[1].GetOperation() != "" {
		t.Errorf("a foreign snapshot looks ours: %v", snapshots[1])
	}
}

func TestWhatIsNotThereIsSaidSo(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	_, _, err := r.Image(t.Context(), r.id("vms", "other"), false)
	refused(t, err, CodeImageNotFound)
	_, _, err = r.Image(t.Context(), r.id("none", "disk"), false)
	refused(t, err, CodePoolNotFound)
	disk.Id = "123"
	_, _, err = r.Image(t.Context(), disk, false)
	refused(t, err, CodeImageReplaced)
	none := New(Config{Conf: t.TempDir() + "/ceph.conf"})
	if none.Present() {
		t.Error("a Ceph without configuration")
	}
	_, err = none.Inventory(t.Context())
	refused(t, err, CodeNoCeph)
}

// TestARefusedSnapshotLeavesNoMark: one that somebody else gives the name is not ours.
func TestARefusedSnapshotLeavesNoMark(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	r.snapshot(disk, "other", "op-0")
	r.admin("rbd", "snap", "limit", "set", "--limit", "1", Shown(disk))
	_, err := r.CreateSnapshot(t.Context(), SnapshotSpec{Image: disk, Name: "daily", Operation: "op-1"})
	refused(t, err, CodeNoSpace)
	r.admin("rbd", "snap", "limit", "clear", Shown(disk))
	r.admin("rbd", "snap", "create", Shown(disk)+"@daily")
	if _, snapshots, err := r.Image(t.Context(), disk, false); err != nil || len(snapshots) != 2 || snapshots[1].GetOperation() != "" {
		t.Errorf("%v, %v", snapshots, err)
	}
}

func TestADeadChildLeavesOneSnapshot(t *testing.T) {
	t.Parallel()
	for _, point := range []string{pointSnapshotMarked, pointSnapshotTaken} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			disk := r.disk("disk")
			c := r.client(point)
			spec := SnapshotSpec{Image: disk, Name: "daily", Operation: "op-1"}
			_, err := c.CreateSnapshot(t.Context(), spec)
			refused(t, err, CodeUnknown)
			made, err := c.CreateSnapshot(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			_, snapshots, err := c.Image(t.Context(), disk, true)
			if err != nil || len(snapshots) != 1 || snapshots[0].GetOperation() != "op-1" || snapshots[0].GetSnapshot().GetId() != made.GetId() {
				t.Errorf("snapshots %v: %v", snapshots, err)
			}
		})
	}
}

// What is read past librbd is what librbd would have said.
func TestTheNewestSnapshotIsReadFromTheHeader(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	for _, name := range []string{"first", "second"} {
		made := r.snapshot(disk, name, "op-"+name)
		c, _, err := connect(r.cluster.Conf(), ceph.Agent)
		if err != nil {
			t.Fatal(err)
		}
		asking := &request{server: &server{out: io.Discard}}
		i, err := c.open(t.Context(), asking, disk, false)
		if err != nil {
			t.Fatal(err)
		}
		for asked, want := range map[string]uint64{name: made.GetId(), "other": 0} {
			if id, err := c.newest(t.Context(), asking, i, asked); err != nil || id != want {
				t.Errorf("%s is said to be %d, not %d: %v", asked, id, want, err)
			}
		}
		i.close()
		c.conn.Shutdown()
	}
}
