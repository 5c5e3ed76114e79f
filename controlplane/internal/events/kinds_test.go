package events_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/events"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

var (
	early = timestamppb.New(time.Unix(1000, 0))
	late  = timestamppb.New(time.Unix(2000, 5))
)

// step is one transaction and what it is to be told as: "kind subject message", or
// with "(why; by)" after it.
type step struct {
	change store.Change
	want   []string
}

func put(key string, m proto.Message) store.Change {
	return store.Change{Puts: []store.Put{store.PutProto(key, m)}}
}

func drop(key string) store.Change { return store.Change{Deletes: []string{key}} }

func encoded(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

const uuid = "11111111-1111-4111-8111-111111111111"

// one and other have what is on both sides of a change.
func nodeSteps() []step {
	key, status := store.NodeKey("n1"), store.StatusKey("n1")
	node := func(change func(*storev1.Node)) store.Change {
		n := &storev1.Node{Id: "n1", RegisteredAt: early, EnrolledAt: early}
		change(n)
		return put(key, n)
	}
	is := func(liveness storev1.NodeLiveness, change func(*storev1.NodeStatus)) store.Change {
		s := &storev1.NodeStatus{Id: "n1", Liveness: liveness, BootId: "b1", JournalId: "j1", AgentVersion: "1", LastSeen: late}
		if change != nil {
			change(s)
		}
		return put(status, s)
	}
	zfs := func(health string) store.Change {
		return put(store.NodeZFSKey("n1"), &storev1.NodeZFS{Node: "n1", Inventory: encoded(&agentv1.ZfsInventory{Pools: []*agentv1.ZfsPool{{Name: "tank", Health: health}}})})
	}
	const online = storev1.NodeLiveness_NODE_LIVENESS_ONLINE
	return []step{
		{node(func(*storev1.Node) {}), []string{"node.registered node/n1 node n1 was registered"}},
		{node(func(n *storev1.Node) { n.Cordoned, n.CordonReason = true, "disks" }), []string{"node.cordoned node/n1 node n1 takes no further VMs (disks; )"}},
		{node(func(*storev1.Node) {}), []string{"node.uncordoned node/n1 node n1 takes VMs again"}},
		{node(func(n *storev1.Node) { n.OffConfirmedAt, n.OffReason, n.OffConfirmedBy = late, "seen dark", "ann" }), []string{"node.off-confirmed node/n1 node n1 was said to be powered off (seen dark; ann)"}},
		{node(func(n *storev1.Node) { n.EnrolledAt = late }), []string{"node.reenrolled node/n1 node n1 was enrolled anew: certificates that it had before are not renewed"}},
		{node(func(n *storev1.Node) { n.EnrolledAt, n.ParallelMigrations = late, 7 }), nil},
		{drop(key), []string{"node.removed node/n1 node n1 was removed"}},
		{is(online, nil), []string{"node.online node/n1 node n1 is online"}},
		{is(storev1.NodeLiveness_NODE_LIVENESS_SUSPECT, nil), []string{"node.suspect node/n1 node n1 has missed heartbeats"}},
		{is(storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, nil), []string{"node.unreachable node/n1 node n1 is not heard any more"}},
		{is(online, func(s *storev1.NodeStatus) { s.BootId, s.JournalId, s.AgentVersion = "b2", "j2", "2" }), []string{
			"node.online node/n1 node n1 is online", "node.booted node/n1 node n1 has booted",
			"node.journal-replaced node/n1 the agent of node n1 has another journal: what it had noted before is lost", "node.agent-version node/n1 the agent of node n1 is another version",
		}},
		{is(online, func(s *storev1.NodeStatus) {
			s.BootId, s.JournalId, s.AgentVersion, s.LibvirtDown = "b2", "j2", "2", true
		}), []string{"node.libvirt-down node/n1 libvirt on node n1 does not answer"}},
		{is(online, func(s *storev1.NodeStatus) { s.BootId, s.JournalId, s.AgentVersion = "b2", "j2", "2" }), []string{"node.libvirt-up node/n1 libvirt on node n1 answers again"}},
		{zfs("ONLINE"), nil},
		{zfs("DEGRADED"), []string{"node.pool-degraded node/n1 pool tank on node n1 is DEGRADED"}},
		{zfs("ONLINE"), []string{"node.pool-healthy node/n1 pool tank on node n1 is ONLINE"}},
	}
}

func vmSteps() []step {
	key := store.VMKey(uuid)
	vm := func(change func(*storev1.VM, *agentv1.Domain)) *storev1.VM {
		d := &agentv1.Domain{State: debvisorv1.VMState_VM_STATE_RUNNING}
		v := &storev1.VM{Uuid: uuid, Name: "web", Node: "n1", Generation: 1}
		if change != nil {
			change(v, d)
		}
		v.Domain = encoded(d)
		return v
	}
	moved := func(v *storev1.VM, _ *agentv1.Domain) { v.Node, v.Generation = "n2", 2 }
	lost := func(state storev1.LostCopyState) store.Change {
		return put(store.LostCopyKey(uuid, "n1"), &storev1.LostCopy{VmUuid: uuid, VmName: "web", Node: "n1", BroughtBackOn: "n2", State: state, Proof: []string{"a word"}})
	}
	about := " vm/" + uuid + " VM web "
	return []step{
		{put(key, vm(nil)), []string{"vm.appeared" + about + "appeared on n1"}},
		{store.Change{Puts: []store.Put{
			store.PutProto(key, vm(moved)),
			store.PutProto(store.OperationKey("op-1"), &storev1.Operation{
				Id: "op-1", Kind: "migrate", State: task.OpSucceeded, Resources: []string{"vm/" + uuid}, EndedAt: late, Principal: "ann",
				Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmName: "web", Source: "n1", Target: "n2"}},
			}),
		}}, []string{"vm.moved" + about + "moved from n1 to n2 by op-1", "operation.succeeded operation/op-1 migrate of VM web from n1 to n2 has succeeded (; ann) by op-1"}},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); d.MemoryBytes = 5 })), nil},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); v.Name = "site" })), []string{"vm.renamed vm/" + uuid + " VM site has a new name; it was web"}},
		{put(key, vm(moved)), []string{"vm.renamed" + about + "has a new name; it was site"}},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); d.State = debvisorv1.VMState_VM_STATE_SHUTOFF })), []string{"vm.state" + about + "is shutoff on n2"}},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); d.State = debvisorv1.VMState_VM_STATE_CRASHED })), []string{"vm.crashed" + about + "is crashed on n2"}},
		{put(key, vm(moved)), []string{"vm.state" + about + "is running on n2"}},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); v.ConflictNodes = []string{"n1", "n2"} })), []string{"vm.conflict" + about + "is reported running by n1 and n2: every operation on it is refused"}},
		{put(key, vm(moved)), []string{"vm.conflict-resolved" + about + "runs on one node only again: n2"}},
		{put(key, vm(func(v *storev1.VM, d *agentv1.Domain) { moved(v, d); v.Policy = []byte{1}; v.Autostart = true })), []string{
			"vm.policy-changed" + about + "has another VM policy", "vm.autostart-changed" + about + "is started after a boot of its node: yes",
		}},
		{drop(key), []string{"vm.gone" + about + "is on no node any more; it was on n2"}},
		{lost(storev1.LostCopyState_LOST_COPY_STATE_AWAITED), []string{"vm.brought-back vm/" + uuid + " VM web was brought back on n2; n1 has lost it (a word; )"}},
		{lost(storev1.LostCopyState_LOST_COPY_STATE_DISCARDING), []string{"vm.lost-copy-discarding vm/" + uuid + " node n1 is back: its former copy of VM web is being destroyed"}},
		{lost(storev1.LostCopyState_LOST_COPY_STATE_UNFENCING), nil},
		{lost(storev1.LostCopyState_LOST_COPY_STATE_GONE), []string{"vm.lost-copy-gone vm/" + uuid + " the former copy of VM web on n1 is gone"}},
		{drop(store.LostCopyKey(uuid, "n1")), nil},
	}
}

func operationSteps() []step {
	op := func(state task.OpState, change func(*storev1.Operation)) store.Change {
		o := &storev1.Operation{Id: "op-2", Kind: "vm.stop", State: state, Resources: []string{"vm/x"}, CreatedAt: early, Principal: "ann"}
		if change != nil {
			change(o)
		}
		return put(store.OperationKey("op-2"), o)
	}
	about := " operation/op-2 vm.stop of vm/x "
	failed := func(o *storev1.Operation) {
		o.ErrorCode, o.ErrorMessage, o.CancelRequested = "TIMEOUT", "it would not", true
	}
	return []step{
		{op(task.OpPending, nil), []string{"operation.submitted" + about + "was asked for (; ann) by op-2"}},
		{op(task.OpRunning, nil), []string{"operation.started" + about + "has begun (; ann) by op-2"}},
		{op(task.OpRunning, func(o *storev1.Operation) { o.Step = "waiting" }), nil},
		{op(task.OpRunning, func(o *storev1.Operation) { o.CancelRequested = true }), []string{"operation.cancel-requested" + about + "is to be cancelled by op-2"}},
		{op(task.OpFailed, failed), []string{"operation.failed" + about + "has failed (TIMEOUT) (it would not; ann) by op-2"}},
		{drop(store.OperationKey("op-2")), nil},
		{op(task.OpCancelled, nil), []string{"operation.cancelled" + about + "was cancelled (; ann) by op-2"}},
	}
}

func storageSteps() []step {
	job := func(change func(*storev1.ReplicationJob)) store.Change {
		j := &storev1.ReplicationJob{Id: "j1", Source: "n1", Target: "n2", Dataset: "tank/a", TargetDataset: "tank/b", CreatedBy: "ann", CreatedAt: early}
		if change != nil {
			change(j)
		}
		return put(store.ReplicationKey("j1"), j)
	}
	about := " replication/j1 replication j1 of tank/a from n1 to n2 "
	retention := func(change func(*storev1.RetentionPolicy)) store.Change {
		p := &storev1.RetentionPolicy{Name: "daily", ChangedAt: early, ChangedBy: "ann", Run: &storev1.StoragePolicyRun{}}
		if change != nil {
			change(p)
		}
		return put(store.RetentionPolicyKey("daily"), p)
	}
	of := " policy/retention/daily retention policy daily "
	return []step{
		{job(nil), []string{"replication.created" + about + "was set up (; ann)"}},
		{job(func(j *storev1.ReplicationJob) { j.LastEnd, j.LastSuccess = early, early }), []string{"replication.succeeded" + about + "has brought the copy up to date"}},
		{job(func(j *storev1.ReplicationJob) {
			j.LastEnd, j.LastSuccess, j.LastErrorCode, j.LastError = late, early, "NO_SPACE", "full"
			j.RpoMissedSince = late
		}), []string{"replication.failed" + about + "has failed (NO_SPACE) (full; )", "replication.rpo-missed" + about + "is later than its RPO allows"}},
		{job(func(j *storev1.ReplicationJob) { j.LastEnd, j.LastSuccess = late, early }), []string{"replication.recovered" + about + "keeps its RPO again"}},
		{drop(store.ReplicationKey("j1")), []string{"replication.deleted" + about + "was deleted"}},
		{retention(nil), []string{"policy.set" + of + "was made (; ann)"}},
		{retention(func(p *storev1.RetentionPolicy) { p.ChangedAt = late }), []string{"policy.set" + of + "was changed (; ann)"}},
		{retention(func(p *storev1.RetentionPolicy) {
			p.ChangedAt, p.Run.Fired, p.Run.LastOperations = late, 1, []string{"op-9"}
		}), []string{"policy.ran" + of + "was due and ran"}},
		{retention(func(p *storev1.RetentionPolicy) {
			p.ChangedAt, p.Run.Fired, p.Run.Skipped, p.Run.LastSkip = late, 1, 1, "busy"
		}), []string{"policy.skipped" + of + "was due and was skipped (busy; )"}},
		{drop(store.RetentionPolicyKey("daily")), []string{"policy.deleted" + of + "was deleted"}},
	}
}

func controlPlaneSteps() []step {
	replica, status := store.ReplicaKey("r9"), "/debvisor/rpc/replicastatus/r9"
	restore := func(change func(*storev1.Restore)) store.Change {
		r := &storev1.Restore{Epoch: 2, RestoredAt: early}
		change(r)
		return put("/debvisor/rpc/restore", r)
	}
	token := &storev1.JoinToken{Id: "t1", Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, CreatedBy: "ann", CreatedAt: early}
	used := &storev1.JoinToken{Id: "t1", Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, CreatedAt: early, UsedAt: late, UsedByNode: "n3"}
	cert := &storev1.Certificate{Serial: "AB", Holder: 2, Name: "n1", IssuedBy: "system:enroll", IssuedAt: early}
	ca := func(phase debvisorv1.CAPhase) store.Change {
		return put("/debvisor/rpc/ca", &storev1.CARotation{Phase: uint32(phase), ChangedBy: "ann"})
	}
	election := store.ElectionPrefix() + "/"
	steps := []step{
		{put(replica, &storev1.Replica{Name: "r9", Version: "1"}), []string{"replica.joined replica/r9 replica r9 has joined"}},
		{put(replica, &storev1.Replica{Name: "r9", Version: "2"}), []string{"replica.version replica/r9 replica r9 is another version"}},
		{put(replica, &storev1.Replica{Name: "r9", Version: "2", Schema: 3}), nil},
		{put(status, &storev1.ReplicaStatus{Ready: true}), []string{"replica.ready replica/r9 replica r9 is ready"}},
		{put(status, &storev1.ReplicaStatus{Ready: true, At: late}), nil},
		{put(status, &storev1.ReplicaStatus{Reasons: []string{"stale"}}), []string{"replica.not-ready replica/r9 replica r9 is not ready (stale; )"}},
		{drop(status), nil},
		{drop(replica), []string{"replica.removed replica/r9 replica r9 was removed"}},
		{put("/debvisor/rpc/certificates/AB", cert), []string{"certificate.issued certificate/AB a certificate was issued for agent n1 (; system:enroll)"}},
		{drop("/debvisor/rpc/certificates/AB"), nil},
		{store.Change{Puts: []store.Put{store.PutString(store.RevokedKey("AB"), "why")}}, []string{"certificate.revoked certificate/AB certificate AB was revoked"}},
		{drop(store.RevokedKey("AB")), nil},
		{ca(debvisorv1.CAPhase_CA_PHASE_STABLE), nil},
		{ca(debvisorv1.CAPhase_CA_PHASE_TRUSTING), []string{"ca.phase ca the exchange of the cluster's CA is trusting (; ann)"}},
		{restore(func(*storev1.Restore) {}), []string{"restore.begun restore the cluster was restored from a backup"}},
		{restore(func(r *storev1.Restore) { r.ConfirmedAt, r.ConfirmedBy = late, "ann" }), []string{"restore.confirmed restore the restore was confirmed: agents obey the restored cluster (; ann)"}},
		{restore(func(r *storev1.Restore) { r.ConfirmedAt, r.HeardNodes = late, []string{"n1"} }), []string{"restore.nodes-heard restore what these nodes run was taken over after the restore: n1"}},
		{restore(func(r *storev1.Restore) { r.ConfirmedAt, r.HeardNodes, r.ReconciledAt = late, []string{"n1"}, late }), []string{"restore.reconciled restore the restored records are what the nodes run"}},
		{put("/debvisor/rpc/lastbackup", &storev1.BackupNote{At: early, Principal: "ann"}), []string{"backup.taken backup a backup was taken (; ann)"}},
		{put(store.JoinTokenKey("t1"), token), []string{"token.created token/t1 a join token for a node was made (; ann)"}},
		{put(store.JoinTokenKey("t1"), used), []string{"token.used token/t1 a join token for a node was used by n3"}},
		{drop(store.JoinTokenKey("t1")), nil},
		{put(election+"a", &storev1.Leader{Name: "r1"}), []string{"leader.changed replica/r1 replica r1 leads"}},
		{put(election+"b", &storev1.Leader{Name: "r2"}), nil},
		{drop(election + "a"), []string{"leader.changed replica/r2 replica r2 leads"}},
		{drop(election + "b"), []string{"leader.lost replica/r2 nobody leads; it was r2"}},
		{store.Change{Puts: []store.Put{store.PutString(store.KeyUseKey("k"), "x"), store.PutString("/debvisor/rpc/later/x", "x")}}, nil},
	}
	for noun, key := range map[string]string{"principal": store.PrincipalKey("x"), "role": store.RoleKey("x"), "tenant": store.TenantKey("x"), "key": store.APIKeyKey("x")} {
		title := map[string]string{"key": "API key"}[noun]
		if title == "" {
			title = noun
		}
		steps = append(
			steps, step{store.Change{Puts: []store.Put{store.PutString(key, "dvk_secret")}}, []string{fmt.Sprintf("access.%s-set %s/x %s x was set", noun, noun, title)}},
			step{drop(key), []string{fmt.Sprintf("access.%s-deleted %s/x %s x was deleted", noun, noun, title)}},
		)
	}
	return steps
}

// describe is a fact as steps have it.
func describe(f *events.Fact) string {
	text := f.Event.GetKind() + " " + f.Event.GetResources()[0] + " " + f.Event.GetMessage()
	if f.Why != "" || f.By != "" {
		text += " (" + f.Why + "; " + f.By + ")"
	}
	if f.Event.GetOperationId() != "" {
		text += " by " + f.Event.GetOperationId()
	}
	return text
}

// TestEveryKind makes every kind of event come true, and sees each under its own
// revision, with the severity and the audience that the table says; what is no
// event is told as none.
func TestEveryKind(t *testing.T) {
	w := newWorld(t)
	feed := w.feed(0)
	seen := map[string]bool{}
	for _, s := range slices.Concat(nodeSteps(), vmSteps(), operationSteps(), storageSteps(), controlPlaneSteps()) {
		revision := w.commit(s.change)
		facts := w.all(feed, events.Cursor{Revision: revision}.String())
		var got []string
		for _, f := range facts {
			got = append(got, describe(f))
			seen[f.Event.GetKind()] = true
			if f.Event.GetRevision() != revision || f.Event.GetTime() == nil || strings.Contains(f.Event.String(), "dvk_") {
				t.Errorf("revision %d: %v", revision, f.Event)
			}
			w.audience(f)
		}
		if !slices.Equal(got, s.want) {
			t.Errorf("told as\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(s.want, "\n  "))
		}
	}
	want := map[string]bool{}
	for _, kind := range events.Kinds() {
		want[kind.Name] = true
	}
	if !maps.Equal(seen, want) {
		t.Errorf("kinds seen %v\nkinds in the table %v", slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(want)))
	}
}

// audience compares who may see a fact with what the table says.
func (w *world) audience(f *events.Fact) {
	w.t.Helper()
	for _, kind := range events.Kinds() {
		if kind.Name != f.Event.GetKind() {
			continue
		}
		if f.Owner.Everybody != (kind.For == events.ForEverybody) || kind.For == events.ForOperators && f.Owner.Tenant != "" {
			w.t.Errorf("%s is seen by %+v, the table says %s", kind.Name, f.Owner, kind.For)
		}
		if f.Event.GetSeverity() != kind.Severity || kind.Severity == 0 || kind.Meaning == "" {
			w.t.Errorf("%s is %v, the table says %+v", kind.Name, f.Event.GetSeverity(), kind)
		}
	}
}

// TestDocument keeps docs/events.md true; with UPDATE set it writes the table.
func TestDocument(t *testing.T) {
	const path, begin, end = "../../../docs/events.md", "<!-- kinds: written by UPDATE=1 go test ./controlplane/internal/events -run TestDocument -->\n", "<!-- end of kinds -->\n"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| kind | severity | seen by operators and | what it says |\n| --- | --- | --- | --- |\n")
	for _, kind := range events.Kinds() {
		severity := strings.ToLower(strings.TrimPrefix(kind.Severity.String(), "EVENT_SEVERITY_"))
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", kind.Name, severity, kind.For, kind.Meaning)
	}
	head, rest, ok := strings.Cut(string(data), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no table of kinds", path)
	}
	if old == b.String() {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s does not have the kinds that there are: UPDATE=1 go test ./controlplane/internal/events -run TestDocument writes them", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+b.String()+end+tail), 0o644); err != nil { //nolint:gosec // a document
		t.Fatal(err)
	}
}
