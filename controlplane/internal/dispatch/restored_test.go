package dispatch_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// A cluster that was restored takes no sessions before an operator's word, of whichever version the agent is; then it says which
// epoch was confirmed.
func TestARestoredClusterTakesNoSessionsBeforeTheWord(t *testing.T) {
	r := newReplica(t)
	r.put(t, store.PutProto(store.NodeKey("n1"), &storev1.Node{Id: "n1"}), store.PutProto(store.RestoreKey(), &storev1.Restore{Epoch: 9}))
	r.lead(t)
	a := r.dial(t, "n1", &agentv1.Hello{NodeId: "n1", JournalId: "j", BootId: "b"})
	if err := a.awaitEnd(t); err == nil || !strings.Contains(err.Error(), "takes no sessions until an operator says") {
		t.Fatalf("a session with an unconfirmed cluster ends with %v", err)
	}
	if status := r.view.Current().Statuses["n1"].Value; status.GetLastSeen() != nil {
		t.Errorf("the node counts as heard: %v", status)
	}
	// One that the backup does not know, once it is confirmed.
	r.put(t, store.PutProto(store.RestoreKey(), &storev1.Restore{Epoch: 9, ConfirmedAt: timestamppb.New(time.Now())}))
	b := r.dial(t, "n7", &agentv1.Hello{NodeId: "n7", JournalId: "j", BootId: "b"})
	if err := b.awaitEnd(t); err == nil || !strings.Contains(err.Error(), "not registered") {
		t.Fatalf("a node that is not in the records: %v", err)
	}
	r.eventually(t, "it is waited for", func() bool { return slices.Contains(r.view.Current().Unheard(), "n7") })
	c := r.dial(t, "n1", &agentv1.Hello{NodeId: "n1", JournalId: "j", BootId: "b"})
	welcome := c.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil })
	if got := welcome.GetWelcome().GetConfirmedEpoch(); got != 9 {
		t.Errorf("Welcome says that epoch %d is confirmed", got)
	}
}

// A node whose agent is still at what the former cluster ordered is waited for: it may be about to start a VM.
func TestWhatTheFormerClusterOrderedIsWaitedFor(t *testing.T) {
	r := newReplica(t)
	r.put(t, store.PutProto(store.NodeKey("n1"), &storev1.Node{Id: "n1"}), store.PutProto(store.RestoreKey(), &storev1.Restore{Epoch: 9, ConfirmedAt: timestamppb.New(time.Now())}))
	r.lead(t)
	at := &agentv1.TaskReport{TaskId: "former/1/vm-power", State: task.Running}
	a := r.dial(t, "n1", &agentv1.Hello{NodeId: "n1", JournalId: "j", BootId: "b", Tasks: []*agentv1.TaskReport{at}})
	a.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil })
	complete := true
	for _, uuid := range []string{"v1", "v2", "v3"} { // each is a look of its own
		a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: &agentv1.Inventory{
			Complete: complete, Domains: []*agentv1.Domain{{Uuid: uuid, Name: uuid, State: debvisorv1.VMState_VM_STATE_RUNNING}},
		}}})
		complete = false
		r.eventually(t, uuid+" is in the records", func() bool { _, ok := r.view.Current().VMs[uuid]; return ok })
	}
	if !slices.Contains(r.view.Current().Unheard(), "n1") {
		t.Error("it is not waited for")
	}
	a.await(t, "Cancel", func(m *agentv1.LeaderMessage) bool { return m.GetCancelTask().GetTaskId() == at.GetTaskId() })
	a.report(t, &agentv1.TaskReport{TaskId: at.GetTaskId(), State: task.Cancelled})
	a.awaitAck(t, at.GetTaskId())
	r.eventually(t, "it is heard", func() bool { return !slices.Contains(r.view.Current().Unheard(), "n1") })
}
