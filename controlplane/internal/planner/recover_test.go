package planner

import (
	"slices"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// recovery lets every disk be used but on one node.
func recovery(starts bool, but string) *Recovery {
	return &Recovery{Starts: starts, Disk: func(node string, d *debvisorv1.VMDisk) (code, message string) {
		if node == but {
			return "NO_DISK", "disk " + d.GetTarget() + " is not there"
		}
		return "", ""
	}}
}

// codesOf are the codes against one node.
func codesOf(r Result, node string) []string {
	var codes []string
	for _, v := range r.Nodes {
		if v.Node == node {
			for _, reason := range v.Reasons {
				codes = append(codes, reason.Code)
			}
		}
	}
	return codes
}

// TestRecovery: a VM whose node is lost goes where its disks are and it has room;
// nothing is asked of its node.
func TestRecovery(t *testing.T) {
	s := snapshot(t, "node a 16 8 unreachable\nnode b 16 8\nnode c 16 8\nnode d 16 1\nvm web a 4 copy=raw:1")
	r := Plan(s, Request{VM: "web", Recovery: recovery(true, "c")})
	if !r.Allowed || r.Target != "b" || r.Method != debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE || r.Estimate != nil || len(r.Disks) != 0 {
		t.Errorf("%+v", r)
	}
	for node, want := range map[string][]string{"a": {AlreadyThere, NodeNotHeard}, "b": nil, "c": {"NO_DISK"}, "d": {Memory}} {
		if got := codesOf(r, node); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", node, got, want)
		}
	}
	if r := Plan(s, Request{VM: "web", Target: "d", Recovery: recovery(false, "")}); !r.Allowed {
		t.Errorf("one that is not started needs no memory: %s", r.Refusal())
	}
	if r := Plan(s, Request{VM: "web"}); r.Allowed || !r.Has(SourceNotHeard) {
		t.Errorf("it moves like any other: %+v", r)
	}
}

// TestLostCopiesAndFailoversAtWork: what has a lost copy is no target, of whatever
// move, and what is being brought back has its room.
func TestLostCopiesAndFailoversAtWork(t *testing.T) {
	with := func(state storev1.LostCopyState, op storev1.OperationState) *cluster.Snapshot {
		d := snapshot(t, "node a 16 8\nnode b 16 8\nnode c 16 8 unreachable\nvm web a 4\nvm db c 4").Draft()
		d.LostCopies.Put("web/b", &storev1.LostCopy{VmUuid: "web", Node: "b", State: state}, 1)
		d.Operations.Put("op", &storev1.Operation{Id: "op", Kind: "failover", State: op, Detail: &storev1.Operation_Failover{
			Failover: &storev1.Failover{VmUuid: "db", Source: "c", Target: "b", Start: true},
		}}, 1)
		return d.Snapshot(2)
	}
	const awaited, gone = storev1.LostCopyState_LOST_COPY_STATE_AWAITED, storev1.LostCopyState_LOST_COPY_STATE_GONE
	for _, c := range []struct {
		copy storev1.LostCopyState
		op   storev1.OperationState
		want []string
	}{
		{awaited, task.OpSucceeded, []string{LostCopy}},
		{gone, task.OpSucceeded, nil},
		{gone, task.OpRunning, []string{Memory}},
		{awaited, task.OpPending, []string{LostCopy, Memory}},
	} {
		if got := codesOf(Plan(with(c.copy, c.op), Request{VM: "web", Target: "b"}), "b"); !slices.Equal(got, c.want) {
			t.Errorf("%v, %v: %v, want %v", c.copy, c.op, got, c.want)
		}
	}
	// Its own room is not in its way.
	r := Plan(with(gone, task.OpRunning), Request{VM: "db", Target: "b", Operation: "op", Recovery: recovery(true, "")})
	if !r.Allowed {
		t.Error(r.Refusal())
	}
}
