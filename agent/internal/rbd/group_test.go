//go:build ceph_preview

package rbd

import (
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// two makes the images of a VM, in two pools.
func (r *room) two() []*agentv1.RbdImageID {
	r.t.Helper()
	data := r.id("fast", "data")
	r.admin("rbd", "create", "--size", "4M", Shown(data))
	return []*agentv1.RbdImageID{r.disk("root"), data}
}

func TestAGroupsSnapshotIsTakenAndRemovedWhole(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	images := r.two()
	spec := GroupSpec{Group: "vm-1", Images: images, Name: "daily", Operation: "op-1", Label: "nightly", Set: "set-1"}
	first, err := r.CreateGroupSnapshot(t.Context(), spec)
	if err != nil || len(first) != 2 {
		t.Fatalf("made %v: %v", first, err)
	}
	again, err := r.CreateGroupSnapshot(t.Context(), spec)
	if err != nil || len(again) != 2 || !proto.Equal(first[0], again[0]) || !proto.Equal(first[1], again[1]) {
		t.Errorf("again %v: %v", again, err)
	}
	for n, id := range images {
		_, snapshots, err := r.Image(t.Context(), id, false)
		if err != nil || len(snapshots) != 1 {
			t.Fatalf("snapshots %v: %v", snapshots, err)
		}
		s := snapshots[0]
		if s.GetGroup() != "vm-1" || s.GetGroupSnapshot() != "daily" || s.GetSnapshot().GetName() != "daily" || s.GetOperation() != "op-1" ||
			s.GetLabel() != "nightly" || s.GetSet() != "set-1" || s.GetSnapshot().GetId() != first[n].GetId() {
			t.Errorf("part %v", s)
		}
	}
	_, _, err = r.Clone(t.Context(), CloneSpec{Template: first[0], Image: r.id("vms", "x"), Operation: "op-x"})
	refused(t, err, CodeNoTemplate)
	spec.Operation = "op-2"
	_, err = r.CreateGroupSnapshot(t.Context(), spec)
	refused(t, err, CodeSnapshotExists)
	spec.Name, spec.Group = "other", "vm-2"
	_, err = r.CreateGroupSnapshot(t.Context(), spec)
	refused(t, err, CodeInGroup)
	// A VM that has a disk less: its set is of the others only.
	spec.Group, spec.Images = "vm-1", images[:1]
	fewer, err := r.CreateGroupSnapshot(t.Context(), spec)
	if err != nil || len(fewer) != 1 {
		t.Fatalf("made %v: %v", fewer, err)
	}
	if _, snapshots, err := r.Image(t.Context(), images[1], false); err != nil || len(snapshots) != 1 {
		t.Errorf("snapshots %v: %v", snapshots, err)
	}

	for n, want := range []bool{false, true} {
		if gone, err := r.RemoveSnapshot(t.Context(), first[n]); err != nil || gone != want {
			t.Errorf("part %d: gone %v: %v", n, gone, err)
		}
	}
	for _, id := range first {
		if gone, err := r.RemoveSnapshot(t.Context(), id); err != nil || !gone {
			t.Errorf("gone %v: %v", gone, err)
		}
	}
	if gone, err := r.RemoveSnapshot(t.Context(), fewer[0]); err != nil || !gone {
		t.Errorf("gone %v: %v", gone, err)
	}
	for _, id := range images {
		if image, snapshots, err := r.Image(t.Context(), id, false); err != nil || len(snapshots) != 0 {
			t.Errorf("%v has %v: %v", image, snapshots, err)
		}
		if meta := r.admin("rbd", "image-meta", "ls", Shown(id)); meta != "" && meta != "There are 0 metadata on this image." {
			t.Errorf("metadata is left: %s", meta)
		}
	}
}

func TestADeadChildLeavesOneGroupSnapshotOrNone(t *testing.T) {
	t.Parallel()
	for _, point := range []string{pointGroupFilled, pointGroupTaken} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			c := r.client(point)
			spec := GroupSpec{Group: "vm-1", Images: r.two(), Name: "daily", Operation: "op-1"}
			_, err := c.CreateGroupSnapshot(t.Context(), spec)
			refused(t, err, CodeUnknown)
			made, err := c.CreateGroupSnapshot(t.Context(), spec)
			if err != nil || len(made) != 2 {
				t.Fatalf("made %v: %v", made, err)
			}
			for _, id := range spec.Images {
				if _, snapshots, err := c.Image(t.Context(), id, false); err != nil || len(snapshots) != 1 {
					t.Errorf("snapshots %v: %v", snapshots, err)
				}
			}
		})
	}
	for _, point := range []string{pointGroupLeaving, pointGroupRemoved} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			made, err := r.CreateGroupSnapshot(t.Context(), GroupSpec{Group: "vm-1", Images: r.two(), Name: "daily", Operation: "op-1"})
			if err != nil {
				t.Fatal(err)
			}
			c := r.client(point)
			failures := 0
			for try := 0; try < 4; try++ {
				for _, id := range made {
					if _, err := c.RemoveSnapshot(t.Context(), id); err != nil {
						refused(t, err, CodeUnknown)
						failures++
					}
				}
			}
			for _, id := range made {
				if _, snapshots, err := c.Image(t.Context(), id.GetImage(), false); err != nil || len(snapshots) != 0 || failures != 1 {
					t.Errorf("snapshots %v after %d failures: %v", snapshots, failures, err)
				}
				if meta := r.admin("rbd", "image-meta", "ls", Shown(id.GetImage())); meta != "" && meta != "There are 0 metadata on this image." {
					t.Errorf("metadata is left: %s", meta)
				}
			}
		})
	}
}
