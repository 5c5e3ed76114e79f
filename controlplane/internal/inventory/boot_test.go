package inventory_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// leader is an inventory on a real etcd.
type leader struct {
	*inventory.Inventory
	t      *testing.T
	client *clientv3.Client
	view   *store.View
	store  *store.Store
	// commit is called before each transaction, if it is set; its error fails it.
	commit atomic.Pointer[func(store.Change) error]
	stop   func()
}

// Commit is the store's.
func (l *leader) Commit(ctx context.Context, c store.Change) (int64, error) {
	if before := l.commit.Load(); before != nil {
		if err := (*before)(c); err != nil {
			return 0, err
		}
	}
	return l.store.Commit(ctx, c)
}

func newLeader(t *testing.T) *leader {
	t.Helper()
	l := &leader{t: t, client: storetest.Client(t), stop: func() {}}
	if _, err := l.client.Put(t.Context(), store.EpochKey(), "1"); err != nil {
		t.Fatal(err)
	}
	l.view, l.store = store.NewView(l.client, hclog.NewNullLogger()), store.New(l.client)
	l.run(l.view.Run)
	<-l.view.Ready()
	for _, id := range []string{"a", "b"} {
		l.put(store.PutProto(store.NodeKey(id), &storev1.Node{Id: id}))
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *leader) run(component func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := component(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
			l.t.Errorf("component: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	l.t.Cleanup(stop)
	return stop
}

func (l *leader) put(puts ...store.Put) {
	l.t.Helper()
	revision, err := l.store.Commit(l.t.Context(), store.Change{Puts: puts})
	if err == nil {
		err = l.view.Await(l.t.Context(), revision)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// lead begins a new leadership; the former one, if any, ends without a word.
func (l *leader) lead() {
	l.t.Helper()
	l.stop()
	key := store.ElectionPrefix() + "/test"
	if _, err := l.client.Delete(l.t.Context(), key); err != nil {
		l.t.Fatal(err)
	}
	resp, err := l.client.Put(l.t.Context(), key, "")
	if err != nil {
		l.t.Fatal(err)
	}
	term := task.Term{Epoch: 1, Revision: resp.Header.Revision}
	lead := election.Leadership{Term: term, Fence: &store.Fence{Key: key, Term: term}, Fresh: func() bool { return true }}
	l.Inventory = inventory.New(inventory.Config{View: l.view, Store: l, Interval: time.Hour, Log: hclog.NewNullLogger()})
	if err := l.Begin(l.t.Context(), lead); err != nil {
		l.t.Fatal(err)
	}
	l.stop = l.run(func(ctx context.Context) error { return l.Lead(ctx, lead) })
}

// session is the begin of a node's session: which boot it is, and its VMs.
func (l *leader) session(node, boot string, domains ...*agentv1.Domain) {
	l.t.Helper()
	l.Greet(node, boot)
	if _, err := l.Open(l.t.Context(), node, inventory.Facts{JournalID: "j", BootID: boot}); err != nil {
		l.t.Fatal(err)
	}
	l.Report(node, &agentv1.Inventory{Complete: true, Domains: domains})
}

func dom(uuid string, state debvisorv1.VMState) *agentv1.Domain {
	return &agentv1.Domain{Uuid: uuid, Name: uuid, State: state, Persistent: true}
}

const (
	off     = debvisorv1.VMState_VM_STATE_SHUTOFF
	running = debvisorv1.VMState_VM_STATE_RUNNING
)

func (l *leader) eventually(what string, holds func(*cluster.Snapshot) bool) {
	l.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := l.view.Changed()
		if holds(l.view.Current()) {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			l.t.Fatalf("%s: not so: VMs %v, operations %v", what, l.view.Current().VMs, l.view.Current().Operations)
		}
	}
}

// orders are the operations of a kind, by their VM and node.
func orders(s *cluster.Snapshot, kind string) map[string]*storev1.Operation {
	found := map[string]*storev1.Operation{}
	for _, entry := range s.Operations {
		if entry.Value.GetKind() == kind {
			found[entry.Value.GetPower().GetVmUuid()+" on "+entry.Value.GetPower().GetNode()] = entry.Value
		}
	}
	return found
}

func keys[V any](m map[string]V) (list []string) {
	for key := range m {
		list = append(list, key)
	}
	slices.Sort(list)
	return list
}

func (l *leader) booted(node, boot string) {
	l.t.Helper()
	l.eventually("the boot of "+node+" is done with", func(s *cluster.Snapshot) bool {
		return s.Statuses[node].Value.GetStartedBootId() == boot
	})
}

// place writes VMs that belong to node a and are to be started.
func (l *leader) place(edit func(*storev1.VM), uuids ...string) {
	l.t.Helper()
	for _, uuid := range uuids {
		vm := &storev1.VM{Uuid: uuid, Name: uuid, Node: "a", Generation: 3, Autostart: true}
		if edit != nil {
			edit(vm)
		}
		l.put(store.PutProto(store.VMKey(uuid), vm))
	}
}

// TestStartsAfterABoot: exactly the VMs that belong to the node, are to be
// started, are off there and nowhere else, and that nobody is at work on.
func TestStartsAfterABoot(t *testing.T) {
	l := newLeader(t)
	l.place(nil, "v-off", "v-runs", "v-held", "v-both")
	l.place(func(vm *storev1.VM) { vm.Autostart = false }, "v-manual")
	l.place(func(vm *storev1.VM) { vm.Node = "b" }, "v-left")
	l.place(func(vm *storev1.VM) { vm.ConflictNodes = []string{"a", "b"} }, "v-conflict")
	l.put(store.PutString(store.InUseKey("vm/v-held"), "op-other"))
	l.lead()
	all := []*agentv1.Domain{
		dom("v-off", off), dom("v-runs", running), dom("v-held", off), dom("v-both", off), dom("v-manual", off), dom("v-left", off), dom("v-conflict", off),
	}
	l.session("a", "boot-1", all...)
	l.session("b", "boot-1", dom("v-left", running), dom("v-both", off), dom("v-conflict", running))
	l.booted("a", "boot-1")
	if found := orders(l.view.Current(), "vm.start"); len(found) > 0 {
		t.Fatalf("a node that was seen for the first time: %v", keys(found))
	}
	l.session("a", "boot-2", all...)
	l.booted("a", "boot-2")
	found := orders(l.view.Current(), "vm.start")
	if got := keys(found); !slices.Equal(got, []string{"v-off on a"}) {
		t.Fatalf("started: %v", got)
	}
	op := found["v-off on a"]
	if op.GetPrincipal() != "system" || op.GetState() != task.OpPending || op.GetPower().GetGeneration() != 3 ||
		l.view.Current().InUse["vm/v-off"].Value != op.GetId() {
		t.Errorf("%v", op)
	}
}

// TestAfterABootTheOthersAreHeardFirst: a VM may run on a node that has still
// to say so.
func TestAfterABootTheOthersAreHeardFirst(t *testing.T) {
	l := newLeader(t)
	l.place(nil, "v")
	l.lead()
	l.session("a", "boot-1", dom("v", off))
	l.session("b", "boot-1")
	l.booted("b", "boot-1")
	l.lead()
	l.session("a", "boot-2", dom("v", off))
	l.Greet("b", "boot-1") // its session begins
	<-time.After(time.Second)
	if found := orders(l.view.Current(), "vm.start"); len(found) > 0 {
		t.Fatalf("started before b was heard: %v", keys(found))
	}
	l.session("b", "boot-1", dom("v", running))
	l.booted("a", "boot-2")
	if found := orders(l.view.Current(), "vm.start"); len(found) > 0 {
		t.Errorf("started though b runs it: %v", keys(found))
	}
}

// TestLeadersDieDuringABoot: the leader dies after each of the transactions in
// turn; each VM is ordered to start once.
func TestLeadersDieDuringABoot(t *testing.T) {
	for dies := 1; dies <= 3; dies++ {
		l := newLeader(t)
		uuids := make([]string, 0, 250)
		domains := make([]*agentv1.Domain, 0, 250)
		for i := range 250 {
			uuid := "v" + string(rune('a'+i/26)) + string(rune('a'+i%26))
			uuids, domains = append(uuids, uuid), append(domains, dom(uuid, off))
		}
		l.place(nil, uuids...)
		l.lead()
		l.session("a", "boot-1", domains...)
		l.booted("a", "boot-1")
		// What a transaction did before its leader died is not known to it.
		starts, dead := 0, make(chan struct{})
		before := func(c store.Change) error {
			if starts == dies {
				return errors.New("this leader is dead")
			}
			if len(c.Puts) > 60 {
				if starts++; starts == dies {
					_, err := l.store.Commit(t.Context(), c)
					close(dead)
					return errors.Join(errors.New("the answer is lost"), err)
				}
			}
			return nil
		}
		l.commit.Store(&before)
		l.Greet("a", "boot-2")
		l.Report("a", &agentv1.Inventory{Complete: true, Domains: domains})
		if dies < 3 {
			<-dead
		}
		l.stop()
		l.commit.Store(nil)
		ops := len(orders(l.view.Current(), "vm.start"))
		l.lead()
		l.session("a", "boot-2", domains...)
		l.booted("a", "boot-2")
		count := 0
		for _, entry := range l.view.Current().Operations {
			if entry.Value.GetKind() == "vm.start" {
				count++
			}
		}
		if count != 250 {
			t.Errorf("died at %d (%d ordered): %d starts of 250 VMs", dies, ops, count)
		}
	}
}

// TestAutostartIsTakenOver: libvirt's is ours at once, is ordered off once for
// each time that it is found on, and what is set meanwhile stays.
func TestAutostartIsTakenOver(t *testing.T) {
	l := newLeader(t)
	l.lead()
	on := dom("v", running)
	on.Autostart = true
	l.session("a", "boot-1", on)
	l.eventually("it is ours", func(s *cluster.Snapshot) bool {
		return s.VMs["v"].Value.GetAutostart() && len(orders(s, "vm.autostart")) == 1
	})
	first := orders(l.view.Current(), "vm.autostart")["v on a"]
	if first.GetPrincipal() != "system" || len(first.GetResources()) != 0 {
		t.Errorf("%v", first)
	}
	// Said again while it is at work, and ours is set to off.
	vm := proto.CloneOf(l.view.Current().VMs["v"].Value)
	vm.Autostart = false
	l.put(store.PutProto(store.VMKey("v"), vm))
	again := proto.CloneOf(on)
	again.MemoryBytes = 1
	l.Report("a", &agentv1.Inventory{Domains: []*agentv1.Domain{again}})
	l.eventually("the report is in", func(s *cluster.Snapshot) bool {
		return !s.VMs["v"].Value.GetAutostart() && len(s.VMs["v"].Value.GetDomain()) > 0 && proto.Size(s.VMs["v"].Value) != proto.Size(vm)
	})
	ended := proto.CloneOf(first)
	ended.State, ended.EndedAt = task.OpSucceeded, timestamppb.Now()
	l.put(store.PutProto(store.OperationKey(ended.GetId()), ended))
	l.Report("a", &agentv1.Inventory{Domains: []*agentv1.Domain{dom("v", running)}})
	// Turned on again by hand.
	l.Report("a", &agentv1.Inventory{Domains: []*agentv1.Domain{on}})
	l.eventually("it is ours again", func(s *cluster.Snapshot) bool { return s.VMs["v"].Value.GetAutostart() })
	count := 0
	for _, entry := range l.view.Current().Operations {
		if entry.Value.GetKind() == "vm.autostart" {
			count++
		}
	}
	if count != 2 {
		t.Errorf("%d orders, want one for each time", count)
	}
}

// TestAVMThatVanishesComesBackAsItWas: its policy and autostart are kept, and
// its generations go on.
func TestAVMThatVanishesComesBackAsItWas(t *testing.T) {
	l := newLeader(t)
	l.place(func(vm *storev1.VM) { vm.Policy = []byte("\n\x04acme") }, "v")
	l.lead()
	l.session("a", "boot-1", dom("v", off))
	l.session("b", "boot-1")
	l.Report("a", &agentv1.Inventory{Gone: []string{"v"}})
	l.eventually("it is gone", func(s *cluster.Snapshot) bool { return s.VMs["v"].Value == nil && s.GoneVMs["v"].Value != nil })
	l.Report("b", &agentv1.Inventory{Domains: []*agentv1.Domain{dom("v", off)}})
	l.eventually("it is back", func(s *cluster.Snapshot) bool { return s.VMs["v"].Value != nil && s.GoneVMs["v"].Value == nil })
	vm := l.view.Current().VMs["v"].Value
	if vm.GetNode() != "b" || vm.GetGeneration() != 4 || string(vm.GetPolicy()) != "\n\x04acme" || !vm.GetAutostart() || vm.GetGoneAt() != nil {
		t.Errorf("%v", vm)
	}
}
