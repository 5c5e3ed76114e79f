package image

import (
	"strings"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func snapshotTask(op string, attempt int, spec *agentv1.RbdSnapshotCreate) *agentv1.Task {
	spec.Operation = op
	return task(op, attempt, "rbd-snapshot", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdSnapshotCreate{RbdSnapshotCreate: spec}})
}

// TestOneRequestOneSnapshot: the same operation twice is one snapshot of each
// image, also when the agent died on the way.
func TestOneRequestOneSnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	images := []*agentv1.RbdImageID{s.image("rbd/a"), s.image("rbd/b"), s.image("rbd/c")}
	for _, group := range []bool{false, true} {
		for _, point := range []string{"", pointSnapshotBefore, pointSnapshotTaken} {
			op := operation()
			spec := &agentv1.RbdSnapshotCreate{Images: images[:1], Name: "dv-" + op, Label: "nightly", Set: "set-1"}
			if group {
				spec.Images, spec.Group = images[1:], "dv-group"
			}
			var first *agentv1.TaskOutcome
			for attempt := range 2 {
				out := s.do(snapshotTask(op, attempt+1, spec), dieAt(point))
				if out.GetErrorCode() != "" || len(out.GetRbd().GetMade()) != len(spec.GetImages()) {
					t.Fatalf("group=%v %q: %v", group, point, out)
				}
				if first == nil {
					first = out
				}
				for i, made := range out.GetRbd().GetMade() {
					if made.GetId() == 0 || made.GetId() != first.GetRbd().GetMade()[i].GetId() || made.GetImage().GetName() != spec.GetImages()[i].GetName() {
						t.Errorf("group=%v %q: attempt %d made %v, the first %v", group, point, attempt, out.GetRbd(), first.GetRbd())
					}
				}
			}
			if out := s.do(snapshotTask(operation(), 1, spec)); out.GetErrorCode() != "SNAPSHOT_EXISTS" || out.GetInterrupted() {
				t.Errorf("group=%v, another's: %v", group, out)
			}
		}
	}
	for name, want := range map[string]int{"rbd/a": 3, "rbd/b": 3, "rbd/c": 3} {
		if got := s.snapshots(name, "--all"); len(got) != want {
			t.Errorf("%s has %d snapshots, want %d: %v", name, len(got), want, got)
		}
	}
}

// TestSnapshotsThatCannotBeTaken end at once.
func TestSnapshotsThatCannotBeTaken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.image("rbd/a")
	replaced := &agentv1.RbdImageID{Pool: "rbd", Name: "a", Id: "0123456789ab"}
	for name, c := range map[string]struct {
		image *agentv1.RbdImageID
		edit  func(*agentConfig)
		code  string
	}{
		"no image":      {&agentv1.RbdImageID{Pool: "rbd", Name: "none"}, dieAt(""), "IMAGE_NOT_FOUND"},
		"no pool":       {&agentv1.RbdImageID{Pool: "none", Name: "a"}, dieAt(""), "POOL_NOT_FOUND"},
		"another image": {replaced, dieAt(""), "IMAGE_REPLACED"},
		"cancelled":     {a, cancelAt("start"), "CANCELLED"},
		"no Ceph":       {a, func(c *agentConfig) { c.Conf = "/nowhere/ceph.conf" }, "NO_CEPH"},
		"nameless":      {nil, dieAt(""), "INTERNAL"},
	} {
		spec := &agentv1.RbdSnapshotCreate{Name: "s"}
		if c.image != nil {
			spec.Images = append(spec.Images, c.image)
		}
		if out := s.do(snapshotTask(operation(), 1, spec), c.edit); out.GetErrorCode() != c.code || out.GetInterrupted() {
			t.Errorf("%s: %v", name, out)
		}
	}
	if got := s.snapshots("rbd/a", "--all"); len(got) != 0 {
		t.Errorf("snapshots %v", got)
	}
}

// TestSnapshotsOfFrozenGuests: a snapshot that has to be of a frozen guest is there
// only where that is known.
func TestSnapshotsOfFrozenGuests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.image("rbd/a")
	for name, c := range map[string]struct {
		required bool
		thaws    string
		die      string
		code     string
		frozen   bool
		reason   string
	}{
		"frozen":                            {true, "", "", "", true, ""},
		"not frozen, and need not":          {false, "none", "", "", false, "no agent"},
		"not frozen, and must":              {true, "none", "", "NO_GUEST_AGENT", false, "no agent"},
		"thawed too soon, and may":          {false, "expired", "", "", false, "too slow"},
		"thawed too soon, and must not":     {true, "expired", "", "FREEZE_EXPIRED", false, "too slow"},
		"died with the snapshot, must":      {true, "", pointSnapshotTaken, "", true, ""},
		"died with the snapshot, may":       {false, "", pointSnapshotTaken, "", false, "cannot tell"},
		"died when it was noted":            {true, "", pointSnapshotFrozen, "", true, ""},
		"died when it was noted, and may":   {false, "", pointSnapshotFrozen, "", true, ""},
		"died before it":                    {true, "", pointSnapshotBefore, "", true, ""},
		"died while it was to go":           {true, "expired", pointSnapshotUndo, "FREEZE_EXPIRED", false, "too slow"},
		"died before it, of one that needs": {false, "none", pointSnapshotBefore, "", false, "no agent"},
	} {
		op := operation()
		spec := &agentv1.RbdSnapshotCreate{
			Images: []*agentv1.RbdImageID{a}, Name: "dv-" + op, Freeze: &agentv1.Freeze{VmUuid: "u", BudgetMs: 20000, Required: c.required},
		}
		out := s.do(snapshotTask(op, 1, spec), dieAt(c.die), func(cfg *agentConfig) { cfg.Thaws = c.thaws })
		_, there := s.snapshots("rbd/a")["dv-"+op]
		if out.GetErrorCode() != c.code || out.GetFreeze().GetFrozen() != c.frozen || !strings.Contains(out.GetFreeze().GetReason(), c.reason) ||
			there != (c.code == "") || len(out.GetRbd().GetMade()) == 1 != there {
			t.Errorf("%s: %v; there %v", name, out, there)
		}
		if c.code != "" || c.die != "" {
			continue
		}
		// The next attempt of it does not know what the first one did.
		first := s.snapshots("rbd/a")["dv-"+op]
		again := s.do(snapshotTask(op, 2, spec))
		if kept := s.snapshots("rbd/a")["dv-"+op] == first; again.GetErrorCode() != "" || kept == c.required || again.GetFreeze().GetFrozen() != c.required {
			t.Errorf("%s, again: %v; kept %v", name, again, kept)
		}
	}
}

// TestObservedSnapshots: what another journal began is looked for.
func TestObservedSnapshots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.image("rbd/a")
	op := operation()
	spec := &agentv1.RbdSnapshotCreate{Images: []*agentv1.RbdImageID{a}, Name: "dv-1"}
	look := snapshotTask(op, 1, spec)
	look.ObserveOnly = true
	if out := s.do(look); out.GetErrorCode() != CodeInterrupted || !out.GetInterrupted() || len(s.snapshots("rbd/a", "--all")) != 0 {
		t.Errorf("before: %v", out)
	}
	if out := s.do(snapshotTask(op, 2, spec)); out.GetErrorCode() != "" {
		t.Fatal(out)
	}
	look = snapshotTask(op, 3, spec)
	look.ObserveOnly = true
	if out := s.do(look); out.GetErrorCode() != "" || len(out.GetRbd().GetMade()) != 1 || out.GetRbd().GetMade()[0].GetId() != s.snapshots("rbd/a")["dv-1"] {
		t.Errorf("after: %v", out)
	}
	for attempt, required := range []bool{true, false} {
		spec.Freeze = &agentv1.Freeze{VmUuid: "u", Required: required}
		look := snapshotTask(op, 4+attempt, spec)
		look.ObserveOnly = true
		if out := s.do(look); out.GetInterrupted() != required || out.GetErrorCode() == "" == required || out.GetFreeze().GetFrozen() {
			t.Errorf("frozen, required=%v: %v", required, out)
		}
	}
}
