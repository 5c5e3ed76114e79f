package dispatch_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestAJustElectedLeaderWaitsForTheNodesOwnAgent has a second agent of a node come first to the next leader.
func TestAJustElectedLeaderWaitsForTheNodesOwnAgent(t *testing.T) {
	r := newReplica(t)
	r.later.Store(-int64(time.Hour))
	l := r.lead(t)
	first := r.session(t, "node-1", "j1")
	r.eventually(t, "session written", func() bool { return r.view.Current().Statuses["node-1"].Value.GetJournalId() == "j1" })
	l.stop()
	r.later.Add(int64(time.Minute)) // as long as it was, the next leader has not heard anybody yet
	r.lead(t)
	first.leave()

	thief := r.dial(t, "node-1", hello("node-1", "j2"))
	if err := thief.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), "another journal") {
		t.Errorf("another journal before the node's own agent was heard: %v", err)
	}
	newcomer := r.session(t, "node-2", "j3") // never had a session: nobody is waited for
	newcomer.leave()
	r.later.Add(int64(9 * time.Second)) // it is waited for from when it was last heard, not from the leader's beginning
	own := r.session(t, "node-1", "j1")
	own.leave()
	r.eventually(t, "session gone", func() bool { open, _ := r.Sessions(); return open == 0 })

	r.later.Add(int64(5 * time.Second))
	thief = r.dial(t, "node-1", hello("node-1", "j2"))
	if err := thief.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("another journal 5 s after the node's own agent was heard: %v", err)
	}
	enrolled := timestamppb.New(time.Now().Add(-30 * time.Minute)) // after it was last heard: its certificate counts no more
	r.put(t, store.PutProto(store.NodeKey("node-1"), &storev1.Node{Id: "node-1", EnrolledAt: enrolled}))
	anew := r.dial(t, "node-1", hello("node-1", "j2"))
	anew.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil })
}

// TestAnAgentOfANodeEnrolledAnewIsLetInAtOnce, though the former was heard until the records said that it is none any more.
func TestAnAgentOfANodeEnrolledAnewIsLetInAtOnce(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	r.pki.age = time.Minute
	former := r.session(t, "node-1", "j1")
	r.eventually(t, "session written", func() bool { return r.view.Current().Statuses["node-1"].Value.GetJournalId() == "j1" })
	enrolled := timestamppb.Now()
	former.beat(t, 2)
	former.await(t, "answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck().GetSeq() == 2 })
	r.put(t, store.PutProto(store.NodeKey("node-1"), &storev1.Node{Id: "node-1", EnrolledAt: enrolled}))
	if err := former.awaitEnd(t); !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("the former agent's session: %v", err)
	}
	r.eventually(t, "session gone", func() bool { open, _ := r.Sessions(); return open == 0 })
	r.pki.age = 0
	anew := r.dial(t, "node-1", hello("node-1", "j2"))
	anew.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil })
}
