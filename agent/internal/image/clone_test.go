package image

import (
	"strings"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func cloneTask(op string, attempt int, template *agentv1.RbdSnapshotID, image *agentv1.RbdImageID) *agentv1.Task {
	return task(op, attempt, "rbd-clone", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdClone{RbdClone: &agentv1.RbdClone{
		Template: template, Image: image, Operation: op, MaxDepth: 3,
	}}})
}

func flattenTask(op string, attempt int, image *agentv1.RbdImageID, by string) *agentv1.Task {
	return task(op, attempt, "rbd-flatten", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdFlatten{RbdFlatten: &agentv1.RbdFlatten{Image: image, ClonedBy: by}}})
}

func deleteTask(op string, attempt int, image *agentv1.RbdImageID, by string) *agentv1.Task {
	return task(op, attempt, "rbd-image-remove", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdImageRemove{RbdImageRemove: &agentv1.RbdImageRemove{Image: image, ClonedBy: by}}})
}

// template makes an image with something in it and a snapshot that is cloned.
func (s *site) template() *agentv1.RbdSnapshotID {
	s.t.Helper()
	s.image("rbd/base")
	s.rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "16M", "rbd/base")
	return s.snap("rbd/base", "golden")
}

// TestOneRequestOneClone: the same operation twice is one clone, in another pool
// and namespace, also when the agent died on the way; and it is removed once,
// whatever dies then. Nothing is left in any trash.
func TestOneRequestOneClone(t *testing.T) {
	t.Parallel()
	s := newSite(t, "vms")
	golden := s.template()
	s.rbd("namespace", "create", "vms/blue")
	for _, point := range []string{"", pointCloneBefore, pointCloned} {
		op := operation()
		image := &agentv1.RbdImageID{Pool: "vms", Namespace: "blue", Name: "vm1"}
		var id string
		for attempt := range 2 {
			out := s.do(cloneTask(op, attempt+1, golden, image), dieAt(point))
			if out.GetErrorCode() != "" || out.GetRbd().GetDepth() != 1 || out.GetRbd().GetImage().GetName() != "vm1" {
				t.Fatalf("%q: %v", point, out)
			}
			if id == "" {
				id = out.GetRbd().GetImage().GetId()
			}
			if now := s.id("vms/blue/vm1").GetId(); now != id || out.GetRbd().GetImage().GetId() != id {
				t.Errorf("%q: attempt %d made %s, before %s, there is %s", point, attempt, out.GetRbd().GetImage().GetId(), id, now)
			}
		}
		s.only("vms/blue", "vm1")
		if out := s.do(cloneTask(operation(), 1, golden, image)); out.GetErrorCode() != "IMAGE_EXISTS" || out.GetInterrupted() {
			t.Errorf("another's: %v", out)
		}
		image.Id = id
		if out := s.do(deleteTask(operation(), 1, image, "another")); out.GetErrorCode() != "FOREIGN_IMAGE" {
			t.Errorf("not its own: %v", out)
		}
		s.only("vms/blue", "vm1")
		die := strings.Replace(strings.Replace(point, pointCloneBefore, pointDeleteBefore, 1), pointCloned, pointDeleted, 1)
		for attempt := range 2 {
			if out := s.do(deleteTask("delete-"+op, attempt+1, image, op), dieAt(die)); out.GetErrorCode() != "" {
				t.Errorf("%q: removing: %v", die, out)
			}
		}
		s.only("vms/blue")
	}
	s.only("rbd", "base")
	if got := s.snapshots("rbd/base", "--all"); len(got) != 1 {
		t.Errorf("the template has %v", got)
	}
}

// TestImagesThatStay: with snapshots, with clones, or open, an image is not
// removed.
func TestImagesThatStay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	golden := s.template()
	op := operation()
	image := s.do(cloneTask(op, 1, golden, &agentv1.RbdImageID{Pool: "rbd", Name: "vm1"})).GetRbd().GetImage()
	own := s.snap("rbd/vm1", "own")
	if out := s.do(deleteTask(operation(), 1, image, op)); out.GetErrorCode() != "IMAGE_HAS_SNAPSHOTS" || !strings.Contains(out.GetErrorMessage(), "own") {
		t.Errorf("with a snapshot: %v", out)
	}
	second := operation()
	deeper := s.do(cloneTask(second, 1, own, &agentv1.RbdImageID{Pool: "rbd", Name: "vm2"}))
	if deeper.GetRbd().GetDepth() != 2 {
		t.Errorf("a clone's clone: %v", deeper)
	}
	if out := s.do(deleteTask(operation(), 1, image, op)); out.GetErrorCode() != "IMAGE_HAS_SNAPSHOTS" && out.GetErrorCode() != "IMAGE_HAS_CLONES" {
		t.Errorf("with a clone: %v", out)
	}
	s.only("rbd", "base", "vm1", "vm2")
}

// TestFlatten: what is copied stays copied, whoever dies; and it can be cancelled
// in the middle.
func TestFlatten(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	golden := s.template()
	for _, point := range []string{"", pointFlattenBefore, pointFlattening, pointFlattened} {
		op := operation()
		image := s.do(cloneTask(op, 1, golden, &agentv1.RbdImageID{Pool: "rbd", Name: op})).GetRbd().GetImage()
		if out := s.do(flattenTask(operation(), 1, image, "another")); out.GetErrorCode() != "FOREIGN_IMAGE" {
			t.Errorf("not its own: %v", out)
		}
		look := flattenTask(operation(), 1, image, op)
		look.ObserveOnly = true
		if out := s.do(look); !out.GetInterrupted() {
			t.Errorf("before: %v", out)
		}
		if out := s.do(flattenTask(operation(), 1, image, op), cancelAt(pointFlattening)); out.GetErrorCode() != "CANCELLED" && out.GetErrorCode() != "" {
			t.Errorf("cancelled: %v", out)
		}
		if out := s.do(flattenTask(operation(), 1, image, op), dieAt(point)); out.GetErrorCode() != "" {
			t.Errorf("%q: %v", point, out)
		}
		if info := s.rbd("info", "rbd/"+op); strings.Contains(info, "parent:") {
			t.Errorf("%q: %s", point, info)
		}
		look = flattenTask(operation(), 1, image, op)
		look.ObserveOnly = true
		if out := s.do(look); out.GetErrorCode() != "" {
			t.Errorf("after: %v", out)
		}
	}
}

// TestObservedClones: what another journal began is looked for, under its name.
func TestObservedClones(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	golden := s.template()
	op := operation()
	image := &agentv1.RbdImageID{Pool: "rbd", Name: "vm1"}
	look := func(op string, attempt int) *agentv1.TaskOutcome {
		task := cloneTask(op, attempt, golden, image)
		task.ObserveOnly = true
		return s.do(task)
	}
	if out := look(op, 1); !out.GetInterrupted() {
		t.Errorf("before: %v", out)
	}
	made := s.do(cloneTask(op, 2, golden, image)).GetRbd().GetImage()
	if out := look(op, 3); out.GetErrorCode() != "" || out.GetRbd().GetImage().GetId() != made.GetId() || out.GetRbd().GetDepth() != 1 {
		t.Errorf("after: %v", out)
	}
	if out := look(operation(), 1); !out.GetInterrupted() {
		t.Errorf("another's: %v", out)
	}
	gone := deleteTask(operation(), 1, made, op)
	gone.ObserveOnly = true
	if out := s.do(gone); !out.GetInterrupted() {
		t.Errorf("a removal: %v", out)
	}
}
