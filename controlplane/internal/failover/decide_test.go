package failover

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

func decided(t *testing.T, said string) (*step, *facts) {
	t.Helper()
	snapshot, x := records(t, said)
	return decide(snapshot, snapshot.Operations[opID], moment{now: noon, term: task.Term{Revision: 8}}), x
}

// TestDecide: want is as told has it; empty: no step.
func TestDecide(t *testing.T) {
	for said, want := range map[string]string{
		// What it begins with.
		"pending":                          "fence 1/rbd-fence",
		"pending,cancel":                   "cancelled CANCELLED",
		"pending,up a":                     "fail NODE_REACHABLE",
		"pending,seen":                     "fail NODE_REACHABLE",
		"pending,novm":                     "fail VM_NOT_FOUND",
		"pending,moved":                    "fail NODE_REACHABLE",
		"pending,down b":                   "fail NO_TARGET",
		"pending,zfs":                      "fail NO_PROOF",
		"pending,zfs,word,loss 3m":         "start 1/failover-start",
		"pending,zfs,word,loss 1m":         "fail DATA_TOO_OLD",
		"pending,zfs,word,loss 3m,seen":    "fail NODE_REACHABLE",
		"pending,both,word,loss 3m":        "fence 1/rbd-fence",
		"pending,zfs,off a,loss 3m":        "start 1/failover-start",
		"pending,zfs,word,loss 3m,norepl":  "fail NOT_PROTECTED",
		"pending,holds c":                  "fail VM_ELSEWHERE",
		"pending,zfs,word,loss 3m,other":   "start 1/failover-start",
		"pending,zfs,word,loss 3m,nodef":   "fail DEFINITION_UNKNOWN",
		"pending,lost b awaited":           "fail NO_TARGET",
		"pending,zfs,word,loss 3m,blind b": "start 1/failover-start",

		// The fence, which may be undone.
		"fence":                                  "fail BROKEN_RECORD",
		"fence,task rbd-fence assigned":          "note fencing on b",
		"fence,task rbd-fence running,down b":    "note fencing on b: waiting for the agent of b, which is not heard",
		"fence,task rbd-fence succeeded,entries": "start 1/failover-start",
		"fence,task rbd-fence succeeded":         "fail NO_PROOF",
		"fence,try 2,task rbd-fence/1 failed CEPH_DOWN,entries,task rbd-fence/2 succeeded":            "unfence undo-1/rbd-unfence NO_PROOF",
		"fence,from 192.0.2.1,task rbd-fence succeeded,entries":                                       "start 1/failover-start",
		"fence,from 192.0.2.10,task rbd-fence succeeded,entries":                                      "unfence undo-1/rbd-unfence NO_PROOF", // somebody else was at the image
		"fence,from 192.0.2.10,word,task rbd-fence succeeded,entries":                                 "start 1/failover-start",
		"fence,word,task rbd-fence succeeded":                                                         "start 1/failover-start",
		"fence,off a,task rbd-fence succeeded":                                                        "start 1/failover-start",
		"fence,shut,task rbd-fence succeeded":                                                         "start 1/failover-start",
		"fence,task rbd-fence succeeded,entries,lost c awaited":                                       "fail NO_PROOF", // only c's was found
		"fence,task rbd-fence succeeded,entries,lost c gone":                                          "start 1/failover-start",
		"fence,task rbd-fence succeeded,entries,up a,lost c awaited":                                  "fail NODE_REACHABLE", // c's stays
		"fence,task rbd-fence running,up a":                                                           "cancel-task 1/rbd-fence",
		"fence,task rbd-fence running,asked,up a":                                                     "note ending: node a is heard again: VM web stays there",
		"fence,task rbd-fence succeeded,entries,up a":                                                 "unfence undo-1/rbd-unfence NODE_REACHABLE",
		"fence,task rbd-fence succeeded,up a":                                                         "fail NODE_REACHABLE",
		"fence,task rbd-fence succeeded,entries,seen":                                                 "unfence undo-1/rbd-unfence NODE_REACHABLE",
		"fence,task rbd-fence succeeded,entries,cancel":                                               "unfence undo-1/rbd-unfence CANCELLED",
		"fence,task rbd-fence running,cancel":                                                         "cancel-task 1/rbd-fence",
		"fence,task rbd-fence cancelled,asked,cancel":                                                 "cancelled CANCELLED",
		"fence,task rbd-fence cancelled,asked,seen":                                                   "fail INTERNAL",
		"fence,task rbd-fence succeeded,entries,conflict":                                             "unfence undo-1/rbd-unfence VM_CONFLICT",
		"fence,task rbd-fence succeeded,entries,down b":                                               "unfence undo-1/rbd-unfence NO_TARGET",
		"fence,task rbd-fence succeeded,now,entries,down b":                                           "note waiting until b can take it: b: its agent is not heard (unreachable)",
		"fence,task rbd-fence succeeded,entries,up a,down b,blind a,blind c":                          "note waiting to undo the fence: Ceph does not answer c: it does not answer",
		"fence,task rbd-fence failed NO_EXCLUSIVE_LOCK":                                               "fail NO_EXCLUSIVE_LOCK",
		"fence,task rbd-fence failed NO_EXCLUSIVE_LOCK,entries":                                       "unfence undo-1/rbd-unfence NO_EXCLUSIVE_LOCK",
		"fence,task rbd-fence failed CEPH_DOWN":                                                       "fence 2/rbd-fence",
		"fence,task rbd-fence failed CEPH_DOWN,now":                                                   "note waiting to fence again: the agent says CEPH_DOWN",
		"fence,task rbd-fence failed CEPH_DOWN,seen":                                                  "fail NODE_REACHABLE",
		"fence,task rbd-fence failed INTERNAL,interrupted":                                            "fence 2/rbd-fence",
		"fence,try 5,task rbd-fence/5 failed CEPH_DOWN":                                               "fail CEPH_DOWN",
		"fence,try 2,task rbd-fence/1 failed CEPH_DOWN,entries,task rbd-fence/2 failed NO_PERMISSION": "unfence undo-1/rbd-unfence NO_PERMISSION",
		"fence,both,word,loss 3m,task rbd-fence succeeded":                                            "start 1/failover-start",

		// Undoing it, whatever else happens.
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 running":               "note undoing the fence on b",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 running,cancel":        "note undoing the fence on b",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 succeeded":             "fail NODE_REACHABLE",
		"fence,undoing CANCELLED,cancel,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 succeeded":           "cancelled CANCELLED",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 failed CEPH_DOWN":      "unfence undo-2/rbd-unfence NODE_REACHABLE",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 failed CEPH_DOWN,now":  "note waiting to undo the fence: the agent says CEPH_DOWN",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 running,off b":         "node-gone undo-1/rbd-unfence NODE_REACHABLE",
		"fence,undoing NODE_REACHABLE,task rbd-fence succeeded,entries,task rbd-unfence/undo-1 failed NODE_OFF,off b": "unfence undo-2/rbd-unfence NODE_REACHABLE",
		"fence,undoing NODE_REACHABLE,task rbd-fence running":                                                         "cancel-task 1/rbd-fence NODE_REACHABLE",
		"fence,task rbd-fence running,nonode b":                                                                       "node-gone 1/rbd-fence",
		"fence,task rbd-fence failed NODE_OFF,off b":                                                                  "fail NODE_OFF",

		// The placement has moved: only onward.
		"start,task failover-start running":                            "note bringing it up on b",
		"start,task failover-start running,up a":                       "note bringing it up on b",
		"start,task failover-start running,down b":                     "note bringing it up on b: waiting for the agent of b, which is not heard",
		"start,task failover-start succeeded":                          "succeed",
		"start,task failover-start succeeded,cancel":                   "succeed",
		"start,task failover-start failed LIBVIRT_ERROR":               "start-again 2/failover-start",
		"start,task failover-start failed LIBVIRT_ERROR,up a,seen":     "start-again 2/failover-start",
		"start,task failover-start failed LIBVIRT_ERROR,now":           "note waiting to bring it up again (attempt 1 failed): the agent says LIBVIRT_ERROR",
		"start,task failover-start failed INTERRUPTED,interrupted,now": "start-again 2/failover-start",
		"start,task failover-start failed LIBVIRT_ERROR,down b":        "note waiting to bring it up again: waiting for the agent of b, which is not heard",
		"start,task failover-start failed STALE_PLACEMENT":             "fail STALE_PLACEMENT",
		"start,task failover-start failed LIBVIRT_ERROR,moved":         "fail PLACEMENT_CHANGED",
		"start,task failover-start running,cancel":                     "cancel-task 1/failover-start",
		"start,task failover-start running,cancel,asked":               "note cancelling",
		"start,task failover-start running,cancel,down b":              "cancelled 1/failover-start CANCELLED",
		"start,task failover-start cancelled CANCELLED,cancel":         "cancelled CANCELLED",
		"start,task failover-start failed LIBVIRT_ERROR,cancel":        "cancelled CANCELLED",
		"start,task failover-start running,off b":                      "node-gone 1/failover-start",
		"start,task failover-start failed NODE_OFF,off b":              "fail NODE_OFF",
		"start": "fail BROKEN_RECORD",
	} {
		t.Run(said, func(t *testing.T) {
			s, _ := decided(t, said)
			if got := told(s); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if s == nil {
				return
			}
			if task.OpEnded(s.op.GetState()) != freesVM(s) {
				t.Errorf("it is %s and frees %v", s.op.GetState(), s.change.Deletes)
			}
			if s.name != stepStart && s.name != stepSucceed && s.vm != nil {
				t.Errorf("%s moves the placement", s.name)
			}
		})
	}
}

func freesVM(s *step) bool {
	return slices.Contains(s.change.Deletes, store.InUseKey("vm/"+vmID))
}

// TestTheFenceIsTold: what the target is told to fence, for how long.
func TestTheFenceIsTold(t *testing.T) {
	s, _ := decided(t, "pending,both,word,loss 3m")
	fence := specOf(t, s).GetRbdFence()
	if len(fence.GetImages()) != 1 || !proto.Equal(fence.GetImages()[0], image()) || fence.GetFsid() != fsid || fence.GetExpireSeconds() < 365*24*3600 {
		t.Errorf("%v", fence)
	}
	if s.task.GetNode() != "b" || s.op.GetState() != task.OpRunning || s.op.GetFailover().GetPhase() != phaseFence {
		t.Errorf("%v: %v", s.task, s.op)
	}
	s, _ = decided(t, "fence,task rbd-fence succeeded,entries,up a")
	unfence := specOf(t, s).GetRbdUnfence()
	if unfence.GetFsid() != fsid || !slices.Equal(unfence.GetEntries(), []string{client}) {
		t.Errorf("%v", unfence)
	}
}

// TestWhatFormerFencesDidIsKnown: what an attempt fenced before it broke off is taken
// away with the rest, or told of where nobody knows.
func TestWhatFormerFencesDidIsKnown(t *testing.T) {
	s, _ := decided(t, "fence,word,try 2,task rbd-fence/1 failed CEPH_DOWN,entries,task rbd-fence/2 succeeded")
	evidence := &agentv1.FenceEvidence{}
	if err := proto.Unmarshal(s.copy.GetEvidence(), evidence); err != nil || !slices.Equal(evidence.GetBlocklisted(), []string{client}) {
		t.Errorf("%v: %v", evidence, err)
	}
	s, _ = decided(t, "fence,up a,task rbd-fence failed CEPH_UNKNOWN")
	if told(s) != "fail NODE_REACHABLE" || !strings.Contains(s.op.GetErrorMessage(), "ceph osd blocklist ls") {
		t.Errorf("%s: %s", told(s), s.op.GetErrorMessage())
	}
	s, _ = decided(t, "fence,off b,task rbd-fence failed NODE_OFF")
	if told(s) != "fail NODE_OFF" || !strings.Contains(s.op.GetErrorMessage(), "ceph osd blocklist ls") {
		t.Errorf("%s: %s", told(s), s.op.GetErrorMessage())
	}
}

// TestThePlacementMovesAtOnce: all that a failover changes is one transaction, which
// a sign of life of the lost node breaks.
func TestThePlacementMovesAtOnce(t *testing.T) {
	s, x := decided(t, "fence,both,word,loss 3m,other,task rbd-fence succeeded,entries")
	if told(s) != "start 1/failover-start" {
		t.Fatal(told(s))
	}
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(s.vm.GetDomain(), domain); err != nil {
		t.Fatal(err)
	}
	if s.vm.GetNode() != "b" || s.vm.GetGeneration() != 5 || domain.GetState() != debvisorv1.VMState_VM_STATE_UNSPECIFIED {
		t.Errorf("%v: %v", s.vm, domain)
	}
	start := specOf(t, s).GetFailoverStart()
	if start.GetGeneration() != 5 || !start.GetStart() || start.GetDefinition() != "<domain/>" || len(start.GetDisks()) != 2 ||
		!proto.Equal(start.GetDisks()[1], x.disks[1]) || !proto.Equal(start.GetDisks()[0], x.disks[0]) {
		t.Errorf("%v", start)
	}
	c := s.copy
	evidence, former, back := &agentv1.FenceEvidence{}, &agentv1.FailoverFormerSource{}, &storev1.ReplicationJob{}
	if len(c.GetDatasets()) != 1 || len(c.GetReverseJobs()) != 1 || proto.Unmarshal(c.GetDatasets()[0], former) != nil ||
		proto.Unmarshal(c.GetReverseJobs()[0], back) != nil || proto.Unmarshal(c.GetEvidence(), evidence) != nil {
		t.Fatalf("%v", c)
	}
	if c.GetNode() != "a" || c.GetGeneration() != 4 || c.GetBroughtBackOn() != "b" || c.GetState() != awaited || c.GetJournalId() != "journal-a" ||
		!slices.Equal(evidence.GetBlocklisted(), []string{client}) || len(c.GetProof()) != 2 {
		t.Errorf("%v", c)
	}
	if former.GetDataset() != "tank/web" || former.GetGuid() != 7 || former.GetJobId() != "j" || former.GetReverseJobId() != "j-back" {
		t.Errorf("%v", former)
	}
	if back.GetId() != "j-back" || back.GetSource() != "b" || back.GetDataset() != "back/web" || back.GetTarget() != "a" || back.GetTargetDataset() != "tank/web" {
		t.Errorf("%v", back)
	}
	if !slices.Equal(s.change.Deletes, []string{store.ReplicationKey("j")}) {
		t.Errorf("it removes %v", s.change.Deletes)
	}
	for _, want := range []store.Condition{
		store.Unchanged(store.StatusKey("a"), 3), store.Unchanged(store.NodeKey("a"), 3), store.Unchanged(store.NodeKey("b"), 3),
		store.Unchanged(store.VMKey(vmID), 4), store.Unchanged(store.DefinitionKey(vmID), 4), store.Unchanged(store.ReplicationKey("j"), 4),
		store.Unchanged(store.ReplicationKey("k"), 4), store.Absent(store.LostCopyKey(vmID, "a")), store.Unchanged(store.OperationKey(opID), 5),
		store.Absent(store.TaskKey(opID + "/1/failover-start")),
	} {
		if !slices.Contains(s.change.Require, want) {
			t.Errorf("it does not require %v", want)
		}
	}
}

// TestAStartIsToldAgain: a further attempt is told what the one before was, whatever
// has become of the definition's record since.
func TestAStartIsToldAgain(t *testing.T) {
	first, _ := decided(t, "pending,zfs,word,loss 3m")
	x := newFacts(t)
	for _, fact := range []string{"zfs", "start", "nodef", "task failover-start failed LIBVIRT_ERROR"} {
		x.say(fact)
	}
	x.tasks[0].Spec = first.task.GetSpec()
	snapshot := x.snapshot()
	s := decide(snapshot, snapshot.Operations[opID], moment{now: noon})
	if !proto.Equal(specOf(t, s), specOf(t, first)) || s.task.GetId() != opID+"/2/failover-start" {
		t.Errorf("%v\nand not\n%v", specOf(t, s), specOf(t, first))
	}
}

// TestTheStartOfAnEndedFailoverIsDoneAgain: a VM that never came up where it was
// brought is asked for again, and told the same.
func TestTheStartOfAnEndedFailoverIsDoneAgain(t *testing.T) {
	first, _ := decided(t, "fence,task rbd-fence succeeded,entries")
	ended := proto.CloneOf(first.op)
	ended.Id, ended.State = "op-0", task.OpCancelled
	first.copy.Operation = "op-0"
	asked := func(said string) (*cluster.Snapshot, *facts) {
		x := newFacts(t)
		for _, fact := range append([]string{"pending", "nodef"}, strings.Fields(said)...) {
			x.say(fact)
		}
		x.vm.Node, x.vm.Generation, x.dom.State = "b", 5, debvisorv1.VMState_VM_STATE_UNSPECIFIED
		x.d.LostCopies.Put(vmID+"/a", first.copy, 8)
		x.d.Operations.Put("op-0", ended, 8)
		k := proto.CloneOf(first.task)
		k.Id, k.OperationId, k.State = "op-0/1/failover-start", "op-0", task.Recorded(task.Failed)
		x.d.Tasks.Put(k.GetId(), k, 8)
		return x.snapshot(), x
	}
	snapshot, _ := asked("")
	s := decide(snapshot, snapshot.Operations[opID], moment{now: noon})
	if told(s) != "start-again 1/failover-start" || !proto.Equal(specOf(t, s), specOf(t, first)) || s.vm != nil || s.copy != nil {
		t.Errorf("%s: %v\nand not\n%v", told(s), specOf(t, s), specOf(t, first))
	}
	if f := s.op.GetFailover(); f.GetPhase() != phaseStart || f.GetSource() != "a" || f.GetGeneration() != 4 || len(f.GetEvidence()) == 0 {
		t.Errorf("%v", f)
	}
	snapshot, x := asked("")
	x.req.Operation = opID
	if v := Judge(snapshot, x.req); !v.Allowed || v.Target != "b" || v.Source != "a" || len(v.Disks) != 1 {
		t.Errorf("%v to %s: %s", v.Codes(), v.Target, v.Refusal())
	}
	x.req.Target = "c"
	if v := Judge(snapshot, x.req); v.Allowed || v.Code() != "PLACEMENT_CHANGED" {
		t.Errorf("%v", v.Codes())
	}
	// Lost in turn it is brought back from there, as any other.
	snapshot, x = asked("")
	x.state["b"].Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	if v := Judge(snapshot, x.req); v.Again != nil {
		t.Errorf("%v", v.Again)
	}
	// Once the node has told of it, it is its own like any other.
	snapshot, x = asked("")
	x.dom.State = debvisorv1.VMState_VM_STATE_SHUTOFF
	x.vm.Domain = encoded(x.dom)
	if v := Judge(snapshot, x.req); !contains(v.Codes(), NodeReachable) {
		t.Errorf("%v", v.Codes())
	}
}

// TestNamesOfJobsBack: they are theirs for sure, and go back and forth.
func TestNamesOfJobsBack(t *testing.T) {
	long := "x123456789012345678901234567890123456789012345678901234567890123"
	for id, want := range map[string]string{"j": "j-back", "j-back": "j", "-back": "-back-back", long[:59]: long[:59] + "-back"} {
		if got := backID(&storev1.ReplicationJob{Id: id}); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	if got := backID(&storev1.ReplicationJob{Id: long}); len(got) > maxJobID || got == backID(&storev1.ReplicationJob{Id: long + "y"}) {
		t.Errorf("%s: %s", long, got)
	}
}

// TestDecideCopy: what becomes of a lost copy.
func TestDecideCopy(t *testing.T) {
	for said, want := range map[string]string{
		"lost a awaited":                "",
		"lost a awaited,moved,up a":     "discard discard-1/failover-discard",
		"lost a awaited,up a":           "tried awaited", // it is a's again
		"lost a awaited,moved,nonode a": "discarded gone",
		"lost a discarding,moved,nonode a,task failover-discard/discard-1 running":               "discarded discard-1/failover-discard gone",
		"lost a discarding,moved,up a,task failover-discard/discard-1 running":                   "",
		"lost a discarding,moved,task failover-discard/discard-1 running":                        "",
		"lost a discarding,moved,up a,task failover-discard/discard-1 succeeded":                 "discarded unfencing",
		"lost a discarding,moved,task failover-discard/discard-1 succeeded":                      "discarded unfencing",
		"lost a discarding,moved,up a,reinstalled,task failover-discard/discard-1 succeeded":     "discarded gone",
		"lost a discarding,moved,up a,task failover-discard/discard-1 failed VM_STILL_THERE":     "discard discard-2/failover-discard",
		"lost a discarding,moved,up a,task failover-discard/discard-1 failed VM_STILL_THERE,now": "tried discarding",
		"lost a discarding,moved,task failover-discard/discard-1 failed VM_STILL_THERE":          "",
		"lost a discarding,moved,up a":                                                "discard discard-2/failover-discard", // its task was forgotten
		"lost a unfencing,moved,up a":                                                 "unfence unfence-2/rbd-unfence",
		"lost a unfencing,moved,up a,task rbd-unfence/unfence-1 running":              "",
		"lost a unfencing,moved,up a,down b,task rbd-unfence/unfence-1 running":       "unfence unfence-2/rbd-unfence",
		"lost a unfencing,moved,up a,task rbd-unfence/unfence-1 succeeded":            "discarded gone",
		"lost a unfencing,moved,nonode a,task rbd-unfence/unfence-1 succeeded":        "discarded gone",
		"lost a unfencing,moved,up a,task rbd-unfence/unfence-1 failed CEPH_DOWN,now": "tried unfencing",
		"lost a unfencing,moved,up a,task rbd-unfence/unfence-1 failed CEPH_DOWN":     "unfence unfence-2/rbd-unfence",
		"lost a unfencing,moved,blind a,blind b,blind c":                              "tried unfencing",
		"lost a gone,moved,up a":                                                      "",
	} {
		t.Run(said, func(t *testing.T) {
			snapshot, _ := records(t, said)
			s := decideCopy(snapshot, snapshot.LostCopies[vmID+"/a"], moment{now: noon, term: task.Term{Revision: 8}})
			if got := told(s); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// TestACopyIsToldOfForAMonth: then it is forgotten, but only when it is gone.
func TestACopyIsToldOfForAMonth(t *testing.T) {
	for said, want := range map[string]string{"lost a gone,moved": "forget gone", "lost a awaited,moved": ""} {
		snapshot, _ := records(t, said)
		entry := snapshot.LostCopies[vmID+"/a"]
		s := decideCopy(snapshot, entry, moment{now: noon.Add(31 * 24 * time.Hour)})
		if told(s) != want {
			t.Errorf("%s: %q", said, told(s))
		}
	}
}

// TestTheCopyIsToldWhatItWas: a returning node is told the placement that it had.
func TestTheCopyIsToldWhatItWas(t *testing.T) {
	first, _ := decided(t, "fence,both,word,loss 3m,task rbd-fence succeeded,entries")
	_, x := records(t, "moved,up a")
	d := x.snapshot().Draft()
	d.LostCopies.Put(vmID+"/a", first.copy, 8)
	snapshot := d.Snapshot(10)
	s := decideCopy(snapshot, snapshot.LostCopies[vmID+"/a"], moment{now: noon})
	discard := specOf(t, s).GetFailoverDiscard()
	if s.task.GetNode() != "a" || discard.GetGeneration() != 4 || discard.GetVmUuid() != vmID || len(discard.GetDatasets()) != 1 ||
		discard.GetDatasets()[0].GetReverseJobId() != "j-back" || s.copy.GetState() != discarding {
		t.Errorf("%v: %v", s.task, discard)
	}
}

// TestWhatIsHeldByALostCopyIsLeft: a lock owner that an earlier failover has fenced is
// found again, and stays fenced whatever becomes of this one.
func TestWhatIsHeldByALostCopyIsLeft(t *testing.T) {
	const other = "192.0.2.3:0/99"
	for said, want := range map[string]string{
		"lost c awaited":   other,
		"lost c unfencing": other,
		"lost c gone":      client + "," + other, // taken off, and put on again by this one
		"":                 client + "," + other,
	} {
		x := newFacts(t)
		for _, fact := range append([]string{"fence", "task rbd-fence succeeded", "entries", "up a"}, strings.Split(said, ",")...) {
			if fact != "" {
				x.say(fact)
			}
		}
		x.last.Rbd.Evidence.Blocklisted = []string{client, other}
		x.tasks[0].Outcome = encoded(x.last)
		snapshot := x.snapshot()
		s := decide(snapshot, snapshot.Operations[opID], moment{now: noon})
		if got := strings.Join(specOf(t, s).GetRbdUnfence().GetEntries(), ","); got != want {
			t.Errorf("%s: %s is taken away, want %s", said, got, want)
		}
	}
}

// TestAVMThatNobodyToldOfIsStartedAsItWas: one that was off when it was brought to a
// node which is lost in turn stays off.
func TestAVMThatNobodyToldOfIsStartedAsItWas(t *testing.T) {
	for _, start := range []bool{true, false} {
		x := newFacts(t)
		x.say("lost c awaited")
		x.say("unsaid")
		x.copy.BroughtBackOn, x.copy.Generation, x.copy.Operation = "a", 3, "op-0"
		x.d.Operations.Put("op-0", &storev1.Operation{
			Id: "op-0", State: task.OpCancelled, Detail: &storev1.Operation_Failover{Failover: &storev1.Failover{Start: start}},
		}, 8)
		if v := Judge(x.snapshot(), x.req); v.Start != start || !v.Allowed {
			t.Errorf("started is %v, want %v: %s", v.Start, start, v.Refusal())
		}
	}
}
