package failover

import (
	"testing"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestStart has a start meet what may be on its host.
func TestStart(t *testing.T) {
	for _, c := range []struct {
		name, found string
		runs        bool
		marks       []string // of an agent that died
		code, after string
	}{
		{"nothing there", "absent", true, nil, "", "running"},
		{"it was shut off", "absent", false, nil, "", "off"},
		{"left by a former life", "off", true, nil, "", "running"},
		{"an attempt before has started it", "running", true, nil, "", "running"},
		{"somebody has paused it", "paused", true, nil, "VM_PAUSED", "paused"},
		{"died once it was defined", "off", true, []string{markDefined}, "", "running"},
		{"died once its QEMU stood", "paused", true, []string{markDefined, "boot boot", "boot", "creating"}, "", "running"},
		{"accepted before a boot", "absent", true, []string{"boot another", "boot"}, codeRebooted, "absent"},
		{"accepted before a boot, and defined", "off", true, []string{"boot another", "boot", markDefined}, codeRebooted, "off"},
		{"undefined by somebody since", "absent", true, []string{markDefined}, "VM_NOT_FOUND", "absent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, a := newVM(t, c.found), newAgent(t)
			task := v.start(2, c.runs)
			if c.marks == nil {
				a.run()
			} else {
				a.dieAfter(task, c.marks...)
			}
			out := a.outcome(task)
			if out.GetErrorCode() != c.code || v.state() != c.after {
				t.Errorf("it is %s, after %v", v.state(), out)
			}
			if ran := out.GetFailover().GetRunning(); ran != (c.after == "running") || ran != (out.GetFailover().GetStartedMs() > 0) {
				t.Errorf("told is %v", out.GetFailover())
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	a, v := newAgent(t).run(), newVM(t, "absent")
	another := v.start(2, true)
	another.GetSpec().GetFailoverStart().Definition = newVM(t, "absent").definition()
	if out := a.outcome(another); out.GetErrorCode() != hypervisor.CodeDefinition {
		t.Errorf("of another VM: %v", out)
	}
	disk := v.start(2, true)
	disk.GetSpec().GetFailoverStart().Disks = []*agentv1.FailoverDisk{{Target: "vda", Dataset: "tank/copy", SourcePath: "/dev/zvol/tank/a", Path: "/dev/zvol/tank/copy"}}
	if out := a.outcome(disk); out.GetErrorCode() != hypervisor.CodeDefinition {
		t.Errorf("with a disk that it has not: %v", out)
	}
	for _, none := range []*agentv1.Task{v.start(0, true), v.discard(0)} {
		if out := a.outcome(none); out.GetErrorCode() != codeInternal {
			t.Errorf("of no placement: %v", out)
		}
	}
	a.outcome(v.order(3)) // there is no such VM, but it tells of a placement
	if out := a.outcome(v.start(2, true)); out.GetErrorCode() != codeStale || v.state() != "absent" {
		t.Errorf("for an older placement: %v, it is %s", out, v.state())
	}
}

// TestDiscard has a discard meet what may be on its host.
func TestDiscard(t *testing.T) {
	for _, c := range []struct {
		name, found string
		hangs       bool
		marks       []string
		ran         bool
	}{
		{"running", "running", false, nil, true},
		{"its QEMU stands still", "running", true, nil, true},
		{"paused", "paused", false, nil, true},
		{"off", "off", false, nil, false},
		{"without a definition", "transient", false, nil, true},
		{"gone", "absent", false, nil, false},
		{"died once it was looked at", "running", false, []string{markRan, markLooked}, true},
		{"died once it was destroyed", "off", false, []string{markRan, markLooked}, true},
		{"died once it was gone", "absent", false, []string{markRan, markLooked}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, a := newVM(t, c.found), newAgent(t)
			if c.hangs {
				v.stopQEMU()
			}
			task := v.discard(1)
			if c.marks == nil {
				a.run()
			} else {
				a.dieAfter(task, c.marks...)
			}
			out := a.outcome(task)
			if out.GetErrorCode() != "" || v.state() != "absent" || out.GetFailover().GetWasRunning() != c.ran {
				t.Errorf("it is %s, after %v", v.state(), out)
			}
			// Whoever orders a start for what it was comes too late, also once it is back.
			if out := a.outcome(v.order(1)); out.GetErrorCode() != "STALE_PLACEMENT" {
				t.Errorf("a start for its former placement: %v", out)
			}
			if out := a.outcome(v.discard(1)); out.GetErrorCode() != "" {
				t.Errorf("once more: %v", out)
			}
		})
	}
}

// TestDiscardOvertaken: a VM that has come back to the node by the leader's word is
// not taken for the copy that was lost.
func TestDiscardOvertaken(t *testing.T) {
	a, v := newAgent(t).run(), newVM(t, "absent")
	if out := a.outcome(v.start(3, true)); out.GetErrorCode() != "" {
		t.Fatal(out)
	}
	if out := a.outcome(v.discard(1)); out.GetErrorCode() != codeStale || v.state() != "running" {
		t.Errorf("it is %s, after %v", v.state(), out)
	}
	if out := a.outcome(v.discard(3)); out.GetErrorCode() != "" || v.state() != "absent" {
		t.Errorf("the copy of its newest placement is %s, after %v", v.state(), out)
	}
}

// TestObserve: what is told where the journal was lost.
func TestObserve(t *testing.T) {
	a := newAgent(t).run()
	for _, c := range []struct {
		found   string
		task    func(*vm) *agentv1.Task
		code    string
		running bool
	}{
		{"running", func(v *vm) *agentv1.Task { return v.start(2, true) }, "", true},
		{"off", func(v *vm) *agentv1.Task { return v.start(2, true) }, codeInterrupted, false},
		{"off", func(v *vm) *agentv1.Task { return v.start(2, false) }, "", false},
		{"absent", func(v *vm) *agentv1.Task { return v.start(2, false) }, codeInterrupted, false},
		{"paused", func(v *vm) *agentv1.Task { return v.start(2, true) }, codeInterrupted, false},
		{"absent", func(v *vm) *agentv1.Task { return v.discard(1) }, "", false},
		{"off", func(v *vm) *agentv1.Task { return v.discard(1) }, codeInterrupted, false},
		{"running", func(v *vm) *agentv1.Task { return v.discard(1) }, codeInterrupted, false},
	} {
		v := newVM(t, c.found)
		task := c.task(v)
		task.ObserveOnly = true
		out := a.outcome(task)
		if out.GetErrorCode() != c.code || out.GetInterrupted() != (c.code != "") || out.GetFailover().GetRunning() != c.running || v.state() != c.found {
			t.Errorf("%s with a VM that was %s and is %s: %v", task.GetId(), c.found, v.state(), out)
		}
	}
}
