package dispatch_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

func hello(node, journal string) *agentv1.Hello {
	return &agentv1.Hello{NodeId: node, JournalId: journal, BootId: "boot"}
}

func TestAReplicaThatDoesNotLeadNamesTheLeader(t *testing.T) {
	r := newReplica(t)
	r.put(t, store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1", AgentsAddress: r.address}),
		store.PutProto(store.ReplicaKey("r2"), &storev1.Replica{Name: "r2", AgentsAddress: "192.0.2.2:7444"}),
		store.PutProto(store.ElectionPrefix()+"/r2", &storev1.Leader{Name: "r2", AgentsAddress: "192.0.2.2:7444"}))
	a := r.dial(t, "node-1", hello("node-1", "j"))
	n := a.await(t, "NotLeader", func(m *agentv1.LeaderMessage) bool { return m.GetNotLeader() != nil }).GetNotLeader()
	if n.GetLeaderAddress() != "192.0.2.2:7444" || len(n.GetReplicas()) != 2 {
		t.Errorf("NotLeader: %v", n)
	}
}

func TestATaskFromItsRecordToItsEnd(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	r.assign(t, l, "op/1/migrate-send", "node-1")
	r.assign(t, l, "op/1/other", "node-2")
	a := r.session(t, "node-1", "j1")
	sent := a.awaitTask(t, "op/1/migrate-send")
	if sent.GetObserveOnly() || sent.GetSpec().GetMigrateSend() == nil || task.TermOf(sent.GetTerm()) != l.Term {
		t.Errorf("sent %v", sent)
	}
	s := r.view.Current().Statuses["node-1"].Value
	if task.TermOf(s.GetAcknowledgedTerm()) != l.Term || s.GetJournalId() != "j1" || s.GetBootId() != "boot" ||
		s.GetPeerAddress() == "" || s.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		t.Errorf("the task was sent before this was written: %v", s)
	}
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Accepted})
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Running})
	r.eventually(t, "RUNNING recorded", func() bool {
		return task.State(r.task("op/1/migrate-send").GetState()) == task.Running && r.task("op/1/migrate-send").GetJournalId() == "j1"
	})
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Accepted}) // late: states only grow
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Succeeded, Outcome: &agentv1.TaskOutcome{DowntimeMs: 9}})
	a.awaitAck(t, "op/1/migrate-send")
	if got := r.task("op/1/migrate-send"); task.State(got.GetState()) != task.Succeeded || got.GetEndedAt() == nil || len(got.GetOutcome()) == 0 {
		t.Errorf("acknowledged before this was written: %v", got)
	}
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Succeeded}) // its acknowledgement was lost
	a.awaitAck(t, "op/1/migrate-send")
	if other := r.task("op/1/other"); task.State(other.GetState()) != task.Assigned {
		t.Errorf("another node's task: %v", other)
	}
}

func TestUnknownTasks(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	r.assign(t, l, "op/1/theirs", "node-2")
	a := r.session(t, "node-1", "j1", &agentv1.TaskReport{TaskId: "gone/1/k", State: task.Running})
	a.await(t, "CancelTask", func(m *agentv1.LeaderMessage) bool { return m.GetCancelTask().GetTaskId() == "gone/1/k" })
	a.report(t, &agentv1.TaskReport{TaskId: "gone/1/k", State: task.Cancelled})
	a.awaitAck(t, "gone/1/k")
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/theirs", State: task.Succeeded})
	a.awaitAck(t, "op/1/theirs")
	if got := r.task("op/1/theirs"); task.State(got.GetState()) != task.Assigned {
		t.Errorf("an agent ended another node's task: %v", got)
	}
}

func TestCancelAndRelay(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	r.assign(t, l, "op/1/migrate-receive", "node-2")
	r.assign(t, l, "op/1/migrate-send", "node-1", func(t *storev1.Task) { t.CancelRequested = true })
	source, target := r.session(t, "node-1", "j1"), r.session(t, "node-2", "j2")
	source.awaitTask(t, "op/1/migrate-send")
	source.await(t, "CancelTask", func(m *agentv1.LeaderMessage) bool { return m.GetCancelTask().GetTaskId() == "op/1/migrate-send" })
	side := func(s agentv1.SideState) *agentv1.TaskReport {
		return &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Running, Progress: &agentv1.TaskProgress{
			Kind: &agentv1.TaskProgress_MigrateSend{MigrateSend: &agentv1.MigrateSendProgress{Side: &agentv1.Side{State: s}}},
		}}
	}
	relayed := func(s agentv1.SideState) func(*agentv1.LeaderMessage) bool {
		return func(m *agentv1.LeaderMessage) bool {
			return m.GetPeerSide().GetTaskId() == "op/1/migrate-receive" && m.GetPeerSide().GetSide().GetState() == s
		}
	}
	source.report(t, side(agentv1.SideState_SIDE_STATE_OUTGOING))
	target.await(t, "the source's side", relayed(agentv1.SideState_SIDE_STATE_OUTGOING))
	source.report(t, &agentv1.TaskReport{TaskId: "op/1/migrate-send", State: task.Succeeded, Outcome: &agentv1.TaskOutcome{
		Side: &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT, Ended: true},
	}})
	target.await(t, "the source's end", relayed(agentv1.SideState_SIDE_STATE_ABSENT))
	source.awaitAck(t, "op/1/migrate-send")
	target.leave()

	target = r.session(t, "node-2", "j2") // from the record now
	target.await(t, "the source's end again", relayed(agentv1.SideState_SIDE_STATE_ABSENT))
}

func TestOneSessionANode(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	r.assign(t, l, "op/1/k", "node-1")
	first := r.session(t, "node-1", "j1")
	first.awaitTask(t, "op/1/k")

	thief := r.dial(t, "node-1", hello("node-1", "j2"))
	if err := thief.awaitEnd(t); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("another journal beside a live session: %v", err)
	}
	if log := r.log.String(); !strings.Contains(log, "two agents claim one node") || !strings.Contains(log, "refused_journal=j2") {
		t.Errorf("the log says nothing of it:\n%s", log)
	}
	first.beat(t, 2)
	first.await(t, "answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck().GetSeq() == 2 })

	again := r.session(t, "node-1", "j1") // the first is half-open, for all its agent knows
	if err := first.awaitEnd(t); !errdefs.Is(err, errdefs.Aborted) {
		t.Errorf("the half-open session: %v", err)
	}
	again.awaitTask(t, "op/1/k")
	again.leave()
	r.eventually(t, "session gone", func() bool { open, _ := r.Sessions(); return open == 0 }) // the log says so a moment before

	thief = r.dial(t, "node-1", hello("node-1", "j2"))
	if err := thief.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("another journal right after a session: %v", err)
	}
	r.later.Add(int64(11 * time.Second))
	other := r.session(t, "node-1", "j2") // nobody else lives: accepted, but it may do nothing anew
	if sent := other.awaitTask(t, "op/1/k"); !sent.GetObserveOnly() {
		t.Errorf("a task that another journal may have begun: %v", sent)
	}
	r.assign(t, l, "op/2/k", "node-1")
	if sent := other.awaitTask(t, "op/2/k"); sent.GetObserveOnly() {
		t.Errorf("a task that is this journal's from the first: %v", sent)
	}
	other.leave()
	r.eventually(t, "session gone", func() bool { return strings.Count(r.log.String(), "session ended") >= 3 })
	other = r.session(t, "node-1", "j2") // not forgotten with the session
	if sent := other.awaitTask(t, "op/1/k"); !sent.GetObserveOnly() {
		t.Errorf("in the journal's second session: %v", sent)
	}
	if sent := other.awaitTask(t, "op/2/k"); sent.GetObserveOnly() {
		t.Errorf("its own task in its second session: %v", sent)
	}
}

func TestRefusals(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	t.Run("an agent speaks for another node", func(t *testing.T) {
		if err := r.dial(t, "node-2", hello("node-1", "j")).awaitEnd(t); !errdefs.Is(err, errdefs.PermissionDenied) {
			t.Errorf("got %v", err)
		}
		if log := r.log.String(); !strings.Contains(log, "speaks for another node") || !strings.Contains(log, "claims=node-1") {
			t.Errorf("the log says nothing of it:\n%s", log)
		}
	})
	t.Run("a node that is not registered", func(t *testing.T) {
		if err := r.dial(t, "node-9", hello("node-9", "j")).awaitEnd(t); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no Hello", func(t *testing.T) {
		if err := r.dial(t, "node-1", nil).awaitEnd(t); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an agent that has heard a newer leader", func(t *testing.T) {
		h := hello("node-1", "j")
		h.HighestTerm = &agentv1.Term{Epoch: 1, Revision: l.Term.Revision + 1}
		if err := r.dial(t, "node-1", h).awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a certificate that is revoked while in use", func(t *testing.T) {
		a := r.session(t, "node-1", "j")
		leaf := r.pki.serial(t, "node-1")
		r.put(t, store.PutString(store.RevokedKey(leaf), "stolen"))
		if err := a.awaitEnd(t); !errdefs.Is(err, errdefs.PermissionDenied) {
			t.Errorf("got %v", err)
		}
	})
}

// serial is that of the certificate last made for the name.
func (p pki) serial(t *testing.T, name string) string {
	t.Helper()
	r, err := certs.NewReloader(certs.Files{CA: p.dir + "/ca.pem", Cert: p.dir + "/" + name + ".pem", Key: p.dir + "/" + name + "-key.pem"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Serial(r.Leaf())
}

func TestALeaderThatIsNotSureSaysNothing(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	a := r.session(t, "node-1", "j1")
	a.await(t, "answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck() != nil })
	l.fresh.Store(false) // it slept past its lease
	r.assign(t, l, "op/1/k", "node-1")
	if err := a.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("the session ended with %v", err)
	}
	for len(a.got) > 0 {
		if m := <-a.got; m.GetTask() != nil {
			t.Errorf("sent %v", m)
		}
	}
	b := r.dial(t, "node-1", hello("node-1", "j1"))
	b.await(t, "NotLeader", func(m *agentv1.LeaderMessage) bool { return m.GetNotLeader() != nil })
}

func TestAReplacedLeaderWritesNothing(t *testing.T) {
	r := newReplica(t)
	old := r.lead(t)
	r.assign(t, old, "op/1/k", "node-1")
	a := r.session(t, "node-1", "j1")
	a.awaitTask(t, "op/1/k")
	// Another is elected while the old one still believes.
	if _, err := r.client.Delete(t.Context(), old.Fence.Key); err != nil {
		t.Fatal(err)
	}
	a.report(t, &agentv1.TaskReport{TaskId: "op/1/k", State: task.Running})
	if err := a.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("the session ended with %v", err)
	}
	old.stop()
	if got := r.task("op/1/k"); task.State(got.GetState()) != task.Assigned {
		t.Errorf("a replaced leader wrote %v", got)
	}

	next := r.lead(t) // it hears the same once more, in Hello
	b := r.session(t, "node-1", "j1", &agentv1.TaskReport{TaskId: "op/1/k", State: task.Running})
	r.eventually(t, "RUNNING recorded", func() bool { return task.State(r.task("op/1/k").GetState()) == task.Running })
	b.beat(t, 2)
	m := b.await(t, "answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck().GetSeq() == 2 })
	if task.TermOf(m.GetTerm()) != next.Term {
		t.Errorf("the next leader's term is %v", m.GetTerm())
	}
}

func TestInventoryThatComesFirst(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.dial(t, "node-1", hello("node-1", "j1"))
	a.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil })
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: &agentv1.Inventory{
		Seq: 1, Complete: true, Domains: []*agentv1.Domain{{Uuid: "v", Name: "web", State: debvisorv1.VMState_VM_STATE_RUNNING}},
	}}})
	r.eventually(t, "the VM's record", func() bool {
		vm := r.view.Current().VMs["v"].Value
		return vm.GetNode() == "node-1" && vm.GetGeneration() == 1 && vm.GetName() == "web" && len(vm.GetDomain()) > 0
	})
	r.eventually(t, "the node's list", func() bool {
		return len(r.view.Current().Statuses["node-1"].Value.GetDomains()) == 1
	})
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: &agentv1.Inventory{Seq: 2, Gone: []string{"v"}}}})
	b := r.session(t, "node-2", "j2")
	b.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: &agentv1.Inventory{
		Seq: 1, Complete: true, Domains: []*agentv1.Domain{{Uuid: "v", Name: "web", State: debvisorv1.VMState_VM_STATE_RUNNING}},
	}}})
	r.eventually(t, "the VM adopted", func() bool {
		vm := r.view.Current().VMs["v"].Value
		return vm.GetNode() == "node-2" && vm.GetGeneration() == 2
	})
}

func TestManyHeartbeatsCostNoWrites(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.session(t, "node-1", "j1")
	r.eventually(t, "session written", func() bool { return r.view.Current().Statuses["node-1"].Value.GetJournalId() == "j1" })
	before := r.view.Current().Statuses["node-1"].ModRevision
	began := time.Now()
	for seq := uint64(2); seq < 500; seq++ {
		a.beat(t, seq)
		a.await(t, "answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck().GetSeq() == seq })
	}
	resp, err := r.client.Get(t.Context(), store.StatusKey("node-1"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Kvs[0].ModRevision != before && time.Since(began) < 25*time.Second {
		t.Error("heartbeats without news were written")
	}
}

func TestTheFormerAgentOfANodeThatWasEnrolledAnew(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	enrolled := func(at time.Time) {
		r.put(t, store.PutProto(store.NodeKey("node-1"), &storev1.Node{Id: "node-1", EnrolledAt: timestamppb.New(at)}))
	}
	enrolled(time.Now().Truncate(time.Second))
	former := r.session(t, "node-1", "former") // of the very second of its enrolment
	former.await(t, "acknowledgement", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck() != nil })
	enrolled(time.Now().Add(5 * time.Second))
	if err := former.awaitEnd(t); errdefs.FromStatus(err).Code != "NODE_REPLACED" {
		t.Errorf("its session ends with %v", err)
	}
	if err := r.dial(t, "node-1", hello("node-1", "former")).awaitEnd(t); errdefs.FromStatus(err).Code != "NODE_REPLACED" {
		t.Errorf("a new session is refused with %v", err)
	}
	if log := r.log.String(); !strings.Contains(log, "session ended: ") || !strings.Contains(log, "session refused: ") {
		t.Errorf("the log says nothing of it:\n%s", log)
	}
}
