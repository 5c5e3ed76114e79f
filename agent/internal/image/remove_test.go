package image

import (
	"fmt"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func removeTask(op string, snapshots ...*agentv1.RbdSnapshotID) *agentv1.Task {
	return task(op, 1, "rbd-snapshot-remove", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdSnapshotRemove{RbdSnapshotRemove: &agentv1.RbdSnapshotRemove{Snapshots: snapshots}}})
}

// TestRemoveSnapshots: what is gone is done; what others need, or is another,
// stays. The agent dies on the way.
func TestRemoveSnapshots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i, point := range []string{"", pointRemoveBefore, pointRemoved} {
		a := fmt.Sprintf("rbd/a%d", i)
		s.image(a)
		var all []*agentv1.RbdSnapshotID
		for _, name := range []string{"one", "two", "gone", "protected", "cloned", "other"} {
			all = append(all, s.snap(a, name))
		}
		s.rbd("snap", "rm", a+"@gone", "--no-progress")
		s.rbd("snap", "protect", a+"@protected")
		s.rbd("clone", "--rbd-default-clone-format", "2", a+"@cloned", a+"-clone")
		all[5].Id++
		out := s.do(removeTask(operation(), all...), dieAt(point))
		// What was removed before the death is gone afterwards.
		if out.GetErrorCode() != "" || out.GetRbd().GetRemoved() != 3 || len(out.GetRbd().GetKept()) != 3 {
			t.Fatalf("%q: %v", point, out)
		}
		for i, code := range []string{"SNAPSHOT_PROTECTED", "SNAPSHOT_CLONED", "SNAPSHOT_REPLACED"} {
			if k := out.GetRbd().GetKept()[i]; k.GetCode() != code || k.GetReason() == "" {
				t.Errorf("%q: %v; want %s", point, k, code)
			}
		}
		if left := s.snapshots(a, "--all"); len(left) != 3 {
			t.Errorf("%q: left %v", point, left)
		}
	}
}

// TestRemoveSnapshotsOfAGroup: they go together, once all are named.
func TestRemoveSnapshotsOfAGroup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i, point := range []string{"", pointRemoveBefore, pointRemoved} {
		op, a, b := operation(), fmt.Sprintf("rbd/a%d", i), fmt.Sprintf("rbd/b%d", i)
		made := s.do(snapshotTask(op, 1, &agentv1.RbdSnapshotCreate{
			Images: []*agentv1.RbdImageID{s.image(a), s.image(b)}, Name: "dv-1", Group: "dv-" + op,
		})).GetRbd().GetMade()
		if len(made) != 2 {
			t.Fatalf("made %v", made)
		}
		if out := s.do(removeTask(operation(), made[0])); len(out.GetRbd().GetKept()) != 1 || out.GetRbd().GetKept()[0].GetCode() != CodeInGroup {
			t.Errorf("one of two: %v", out)
		}
		if out := s.do(removeTask(operation(), made...), dieAt(point)); out.GetErrorCode() != "" || out.GetRbd().GetRemoved() != 2 {
			t.Errorf("%q: %v", point, out)
		}
		for _, name := range []string{a, b} {
			if left := s.snapshots(name, "--all"); len(left) != 0 {
				t.Errorf("%q: %s has %v", point, name, left)
			}
		}
	}
}

// TestObservedRemovals: what another journal began is looked at.
func TestObservedRemovals(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("rbd/a")
	there, gone := s.snap("rbd/a", "there"), s.snap("rbd/a", "gone")
	s.rbd("snap", "rm", "rbd/a@gone", "--no-progress")
	look := removeTask(operation(), there, gone)
	look.ObserveOnly = true
	out := s.do(look)
	if !out.GetInterrupted() || out.GetRbd().GetRemoved() != 1 || len(out.GetRbd().GetKept()) != 1 || len(s.snapshots("rbd/a")) != 1 {
		t.Errorf("%v", out)
	}
}
