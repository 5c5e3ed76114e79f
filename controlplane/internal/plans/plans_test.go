package plans

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestAPlanOfAnyReplicaIsComputedByTheLeader(t *testing.T) {
	leader := start(t)
	follower := newReplica(t, leader.client)
	follower.t = t
	leader.lead(leader.elect(), &libvirt{})
	began := time.Now()
	p, plan := follower.must(follower.migrate(web, ""))
	m := plan.GetMigration()
	if p.GetState() != storev1.PlanState_PLAN_STATE_READY || !m.GetAllowed() || nodeID(m.GetTarget()) != "b" || m.GetPlanId() != p.GetId() ||
		plan.GetPrincipal() != "ada" || m.GetVmName() != "web" || len(m.GetNodes()) != 2 {
		t.Errorf("%v came to %v", p, plan)
	}
	if left := p.GetExpiresAt().AsTime().Sub(began); left < KeepFor || left > KeepFor+patience {
		t.Errorf("it is kept for %s", left)
	}
	if len(p.GetGrounds()) != 1 || p.GetGrounds()[0].GetTarget() != "b" || len(p.GetGrounds()[0].GetDefinition()) != 32 {
		t.Errorf("grounds %v", p.GetGrounds())
	}
	_, refused := follower.must(follower.migrate(web, "a"))
	if m := refused.GetMigration(); m.GetAllowed() || m.GetPlanId() != "" || !strings.Contains(m.GetMessage(), "already there") {
		t.Errorf("refused as %v", m)
	}
	_, gone := follower.must(follower.migrate("nope", ""))
	if m := gone.GetMigration(); m.GetAllowed() || !strings.Contains(m.GetMessage(), "nope") {
		t.Errorf("of a VM that is not there: %v", m)
	}
	p, err := follower.desk.Ask(t.Context(), Request{Kind: KindEvacuate, Message: &debvisorv1.EvacuationPlanRequest{Node: nodeRef("nope")}})
	if err == nil {
		_, err = Result(p)
	}
	if !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of a node that is not there: %v", err)
	}
}

func TestNobodyLeads(t *testing.T) {
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.desk.Ask(ctx, Request{Kind: KindMigrate, Message: &debvisorv1.VMMigratePlan{}})
	if !errors.Is(err, context.DeadlineExceeded) || len(r.view.Current().Plans) != 0 {
		t.Errorf("the caller's deadline: %v, %v", err, r.view.Current().Plans)
	}
	r.elect() // it leads and computes nothing
	late := r.desk
	_, err = late.Ask(t.Context(), Request{Kind: KindMigrate, Message: &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: web}}})
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Code != "PLAN_NOT_COMPUTED" || e.Kind != errdefs.Unavailable || e.RetryAfter == 0 {
		t.Errorf("nothing is computed: %v", err)
	}
}

// asking puts a request in the background.
func (r *replica) asking(vm, target string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := r.migrate(vm, target)
		done <- err
	}()
	return done
}

func TestAStaleLeaderWritesNothing(t *testing.T) {
	r := start(t)
	old := &libvirt{gate: make(chan struct{}), says: map[string]bool{"g h": true}}
	r.cpus()
	ended := make(chan error, 1)
	first := New(r.view, r.store, old, r.log())
	l := r.elect()
	go func() { ended <- first.Lead(t.Context(), l) }()
	asked := r.asking(web, "b")
	r.eventually("asked for", func(s *cluster.Snapshot) bool { return len(s.Plans) == 1 })
	next := r.elect() // while the old leader waits for an agent
	close(old.gate)
	select {
	case err := <-ended:
		if !errors.Is(err, store.ErrFenced) {
			t.Fatalf("the old leader ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the old leader goes on")
	}
	for _, p := range r.view.Current().Plans {
		if p.Value.GetState() != storev1.PlanState_PLAN_STATE_REQUESTED {
			t.Errorf("the old leader wrote %v", p.Value)
		}
	}
	// The next one computes what was asked of the former.
	r.lead(next, &libvirt{says: map[string]bool{"g h": true}})
	if err := <-asked; err != nil {
		t.Errorf("after a change of leaders: %v", err)
	}
}

// cpus gives web a CPU and both nodes hosts, so that agents are to be asked.
func (r *replica) cpus() {
	r.t.Helper()
	capabilities := encode(r.t, &debvisorv1.NodeCapabilities{CpuHash: "h"})
	for _, id := range []string{"a", "b"} {
		r.node(id, func(_ *storev1.Node, s *storev1.NodeStatus) { s.Capabilities = capabilities })
	}
	r.vm(web, "web", "a", func(_ *storev1.VM, d *agentv1.Domain) { d.CpuHash = "g" })
}

func TestPlansEnd(t *testing.T) {
	r := start(t)
	now := time.Now()
	write := func(id string, created time.Time, size int) {
		r.put(store.PutProto(store.PlanKey(id), &storev1.Plan{
			Id: id, State: storev1.PlanState_PLAN_STATE_READY, Result: make([]byte, size),
			CreatedAt: timestamppb.New(created), ExpiresAt: timestamppb.New(created.Add(KeepFor)),
		}))
	}
	write("old", now.Add(-KeepFor), 0)
	write("young", now, 0)
	l := r.elect()
	c := New(r.view, r.store, &libvirt{}, r.log())
	stale := l
	fence := *l.Fence
	fence.Term.Revision++
	stale.Fence = &fence
	if err := c.sweep(t.Context(), stale, now); !errors.Is(err, store.ErrFenced) || len(r.view.Current().Plans) != 2 {
		t.Errorf("one that does not lead: %v", err)
	}
	r.lead(l, &libvirt{})
	r.eventually("the old one is gone", func(s *cluster.Snapshot) bool {
		_, young := s.Plans["young"]
		return young && len(s.Plans) == 1
	})
	d := cluster.Empty().Draft()
	for i := range 2 * keepMost {
		at := now.Add(-time.Duration(i) * time.Millisecond)
		d.Plans.Put(fmt.Sprint(i), &storev1.Plan{Id: fmt.Sprint(i), CreatedAt: timestamppb.New(at), ExpiresAt: timestamppb.New(now.Add(KeepFor))}, 1)
	}
	if gone := outdated(d.Snapshot(1), now); len(gone) != keepMost || gone[0] != store.PlanKey(fmt.Sprint(keepMost)) {
		t.Errorf("of too many go %d, the first %s", len(gone), gone[0])
	}
	d = cluster.Empty().Draft()
	for i := range 3 {
		at := now.Add(-time.Duration(i) * time.Second)
		d.Plans.Put(fmt.Sprint(i), &storev1.Plan{
			Id: fmt.Sprint(i), CreatedAt: timestamppb.New(at), ExpiresAt: timestamppb.New(now.Add(KeepFor)), Result: make([]byte, keepBytes/2),
		}, 1)
	}
	if gone := outdated(d.Snapshot(1), now); len(gone) != 2 {
		t.Errorf("of too large ones go %v", gone)
	}
}

func TestWhatAgentsSay(t *testing.T) {
	r := start(t)
	r.cpus()
	stop := r.lead(r.elect(), &libvirt{says: map[string]bool{"g h": false}})
	_, plan := r.must(r.migrate(web, "b"))
	if m := plan.GetMigration(); m.GetAllowed() || !hasReason(m, "b", planner.CPUIncompatible) {
		t.Errorf("libvirt says no: %v", m)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	silent := &libvirt{}
	r.lead(r.elect(), silent)
	_, plan = r.must(r.migrate(web, "b"))
	if m := plan.GetMigration(); m.GetAllowed() || !hasReason(m, "b", planner.CPUNotCompared) || silent.asked == 0 {
		t.Errorf("nobody answers: %v after %d questions", m, silent.asked)
	}
}

func hasReason(m *debvisorv1.MigrationPlanResult, node, code string) bool {
	for _, n := range m.GetNodes() {
		for _, r := range n.GetReasons() {
			if nodeID(n.GetNode()) == node && r.GetCode() == code {
				return true
			}
		}
	}
	return false
}

func TestChanges(t *testing.T) {
	r := start(t)
	r.lead(r.elect(), &libvirt{})
	back := func() {
		r.node("a", nil)
		r.node("b", nil)
		r.vm(web, "web", "a", nil)
	}
	p, _ := r.must(r.migrate(web, "b"))
	for name, c := range map[string]struct {
		happens func()
		want    string
	}{
		"nothing": {func() {}, ""},
		"it only runs": {func() {
			r.vm(web, "web", "a", func(_ *storev1.VM, d *agentv1.Domain) { d.DirtyBytesPerSecond = 1 << 20 })
		}, ""},
		"moved": {func() { r.vm(web, "web", "b", nil) }, "web:VM_MOVED "},
		"moved and came back": {func() {
			r.vm(web, "web", "a", func(vm *storev1.VM, _ *agentv1.Domain) { vm.Generation = 3 })
		}, "web:GENERATION_CHANGED "},
		"more memory": {func() {
			r.vm(web, "web", "a", func(_ *storev1.VM, d *agentv1.Domain) { d.MemoryBytes++ })
		}, "web:DEFINITION_CHANGED "},
		"shut off": {func() {
			r.vm(web, "web", "a", func(_ *storev1.VM, d *agentv1.Domain) { d.State = debvisorv1.VMState_VM_STATE_SHUTOFF })
		}, "web:METHOD_CHANGED "},
		"cordoned": {func() { r.node("b", func(n *storev1.Node, _ *storev1.NodeStatus) { n.Cordoned = true }) }, "web:NODE_CORDONED "},
		"unreachable": {func() {
			r.node("b", func(_ *storev1.Node, s *storev1.NodeStatus) {
				s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
			})
		}, "web:NODE_NOT_REACHABLE "},
		"full": {func() {
			r.node("b", func(_ *storev1.Node, s *storev1.NodeStatus) {
				s.Capacity = encode(t, &debvisorv1.NodeCapacity{MemoryBytes: 16 * gib, MemoryAvailableBytes: gib, Cpus: 8})
			})
		}, "web:MEMORY "},
		"in use": {func() { r.put(store.PutString(store.InUseKey("vm/"+web), "op-1")) }, "web:VM_IN_USE "},
	} {
		c.happens()
		changes, err := Changes(r.view.Current(), p)
		if got := codes(changes); err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, c.want)
		}
		for _, one := range changes {
			if one.VM != web || one.Message == "" {
				t.Errorf("%s: %+v", name, one)
			}
		}
		if _, err := r.store.Commit(t.Context(), store.Change{Deletes: []string{store.InUseKey("vm/" + web)}}); err != nil {
			t.Fatal(err)
		}
		back()
	}
	gone := r.view.Current().Draft()
	gone.VMs.Delete(web)
	gone.Nodes.Delete("b")
	if changes, err := Changes(gone.Snapshot(1), p); err != nil || codes(changes) != "web:VM_GONE " {
		t.Errorf("gone: %v, %v", changes, err)
	}
}

func TestRecordsStaySmall(t *testing.T) {
	long := strings.Repeat("é", textBytes)
	m := &debvisorv1.MigrationPlanResult{Target: nodeRef("n-1999"), Message: strings.Repeat(long, 50)}
	for i := range 2000 {
		v := &debvisorv1.NodeVerdict{Node: nodeRef(fmt.Sprint("n-", i))}
		for range 5 {
			v.Reasons = append(v.Reasons, &debvisorv1.PlanReason{Code: "MEMORY", Message: long})
		}
		m.Nodes = append(m.Nodes, v)
	}
	clipMigration(m)
	last := m.GetNodes()[len(m.GetNodes())-1]
	if size := proto.Size(m); size > nodesBytes+16*textBytes || int(m.GetNodesLeftOut())+len(m.GetNodes()) != 2000 || nodeID(last.GetNode()) != "n-1999" {
		t.Errorf("%d bytes, %d nodes, %d left out, the last is %v", size, len(m.GetNodes()), m.GetNodesLeftOut(), last.GetNode())
	}
	moves := &debvisorv1.MovePlan{}
	for range 3 * mostMoves {
		id := &debvisorv1.VMRef{VmId: web}
		moves.Moves = append(moves.Moves, &debvisorv1.PlannedMove{Vm: id, VmName: strings.Repeat("n", 255), Source: nodeRef(strings.Repeat("a", 63)), Target: nodeRef(strings.Repeat("b", 63))})
		moves.Blocked = append(moves.Blocked, &debvisorv1.BlockedVM{Vm: id, Reasons: []*debvisorv1.PlanReason{{Message: long}}})
	}
	clipMoves(moves)
	if size := proto.Size(moves); size > store.MaxRecordBytes*4/5 || moves.GetMovesLeftOut() != 2*mostMoves || len(moves.GetMoves()) != mostMoves ||
		int(moves.GetBlockedLeftOut())+len(moves.GetBlocked()) != 3*mostMoves {
		t.Errorf("%d bytes, %d and %d left out", size, moves.GetMovesLeftOut(), moves.GetBlockedLeftOut())
	}
}

func TestBrokenRecords(t *testing.T) {
	r := start(t)
	r.lead(r.elect(), &libvirt{})
	for id, p := range map[string]*storev1.Plan{
		"kind":    {Kind: "dance"},
		"request": {Kind: KindMigrate, Request: []byte{0xff}},
	} {
		p.Id, p.State, p.ExpiresAt = id, storev1.PlanState_PLAN_STATE_REQUESTED, timestamppb.New(time.Now().Add(KeepFor))
		r.put(store.PutProto(store.PlanKey(id), p))
		r.eventually(id+" fails", func(s *cluster.Snapshot) bool {
			p := s.Plans[id].Value
			return p.GetState() == storev1.PlanState_PLAN_STATE_FAILED && p.GetErrorCode() == "BROKEN_RECORD" && p.GetErrorMessage() != ""
		})
	}
}
