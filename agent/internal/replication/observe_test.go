package replication

import (
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// observed has an agent whose journal is new look at what came of a task.
func (a *agent) observed(id string, spec *agentv1.TaskSpec) *agentv1.TaskOutcome {
	a.t.Helper()
	return a.outcome(&agentv1.Task{Id: id, Resource: "observed/" + id, Term: &agentv1.Term{Epoch: 1, Revision: 10}, Spec: spec, ObserveOnly: true})
}

// interrupted is worth another attempt.
func interrupted(out *agentv1.TaskOutcome) bool {
	return out.GetErrorCode() == CodeInterrupted && out.GetInterrupted()
}

// TestObserve: an agent that has lost its journal does nothing anew, and tells what
// has been done from what zfs says.
func TestObserve(t *testing.T) {
	j := newJob(t, "dst", false, false)
	a := startAgent(t, "a")
	j.snapshot("gone")
	j.snapshot("left")
	var ids []*agentv1.ZfsSnapshotID
	for _, name := range []string{"gone", "left"} {
		ids = append(ids, &agentv1.ZfsSnapshotID{Dataset: j.source, Name: name, Guid: guid(t, j.source+"@"+name)})
	}
	sh(t, "zfs", "destroy", j.source+"@gone")

	create := func(operation string) *agentv1.TaskSpec {
		return &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
			Datasets: []string{j.source}, Name: "dv-1", Operation: operation,
		}}}
	}
	if out := a.observed("1/zfs-snapshot", create("op-1")); !interrupted(out) {
		t.Errorf("not taken: %v", out)
	}
	sh(t, "zfs", "snapshot", "-o", "org.debvisor:operation=op-1", j.source+"@dv-1")
	if out := a.observed("2/zfs-snapshot", create("op-1")); out.GetErrorCode() != "" || out.GetZfs().GetMade()[0].GetGuid() != guid(t, j.source+"@dv-1") {
		t.Errorf("taken: %v", out)
	}
	if out := a.observed("3/zfs-snapshot", create("op-2")); out.GetErrorCode() != "SNAPSHOT_EXISTS" {
		t.Errorf("another's: %v", out)
	}

	destroy := func(ids ...*agentv1.ZfsSnapshotID) *agentv1.TaskSpec {
		return &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotDestroy{ZfsSnapshotDestroy: &agentv1.ZfsSnapshotDestroy{Snapshots: ids}}}
	}
	if out := a.observed("1/zfs-destroy", destroy(ids...)); !interrupted(out) || out.GetZfs().GetDestroyed() != 1 || len(out.GetZfs().GetKept()) > 0 {
		t.Errorf("half destroyed: %v", out)
	}
	if out := a.observed("2/zfs-destroy", destroy(ids[0])); out.GetErrorCode() != "" || out.GetZfs().GetDestroyed() != 1 {
		t.Errorf("destroyed: %v", out)
	}
	guid(t, j.source+"@left")

	release := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicationRelease{ReplicationRelease: &agentv1.ReplicationRelease{JobId: j.id, Dataset: j.source}}}
	if out := a.observed("1/replication-release", release); out.GetErrorCode() != "" {
		t.Errorf("nothing is kept: %v", out)
	}
	sh(t, "zfs", "hold", "debvisor:"+j.id, j.source+"@left")
	if out := a.observed("2/replication-release", release); !interrupted(out) || len(holds(t, j.source)) != 1 {
		t.Errorf("something is kept: %v", out)
	}
}

// TestObserveStreams: what two agents without a journal leave of a replication is gone
// on with by another attempt, and a copy that had been set aside keeps nothing of the
// job's.
func TestObserveStreams(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	sh(t, "zfs", "create", "-o", "org.debvisor:job="+j.id, j.target)
	sh(t, "zfs", "snapshot", j.target+"@old")
	sh(t, "zfs", "hold", "debvisor:"+j.id, j.target+"@old")
	old, aside := guid(t, j.target), j.target+".diverged-20260102t030405"
	j.write(1, "1")
	j.snapshot("s1")
	j.edit = func(_ *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) {
		in.Aside = &agentv1.TargetAside{Guid: old, RenameTo: aside}
	}
	receive, send := j.tasks(j.steps("", "s1"))
	if out := j.to.observed("1/replicate-receive", receive.GetSpec()); !interrupted(out) || guid(t, j.target) != old || len(holds(t, j.target)) != 1 {
		t.Errorf("before the renaming: %v, holds %v", out, holds(t, j.target))
	}
	sh(t, "zfs", "rename", j.target, aside)
	for id, a := range map[string]*agent{"2/replicate-receive": j.to, "3/replicate-receive": j.to, "1/replicate-send": j.from} {
		spec := receive.GetSpec()
		if a == j.from {
			spec = send.GetSpec()
		}
		if out := a.observed(id, spec); !interrupted(out) {
			t.Errorf("%s: %v", id, out)
		}
	}
	if got := sh(t, "zfs", "get", "-H", "-o", "value", "org.debvisor:job", aside); got != "-" || len(holds(t, aside)) > 0 {
		t.Errorf("what was set aside is of job %q, with holds %v", got, holds(t, aside))
	}
	j.edit = nil
	j.must(j.steps("", "s1"))
	j.atRest("s1")
}
