package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// logBuffer is what a view logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// run starts a view, waits for its first snapshot and gives its log.
func run(t *testing.T, client *clientv3.Client) (*store.View, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	v := store.NewView(client, hclog.New(&hclog.LoggerOptions{Output: log}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the view ended with %v", err)
		}
	})
	select {
	case <-v.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("no first snapshot")
	}
	return v, log
}

// until waits for a snapshot that is as wanted.
func until(t *testing.T, v *store.View, what string, want func(*cluster.Snapshot) bool) *cluster.Snapshot {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		changed, now := v.Changed(), v.Current()
		if want(now) {
			return now
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("never saw %s; the snapshot is at %d: %+v", what, now.Revision, now)
		}
	}
}

// poll asks until the answer is yes; for what no channel tells.
func poll(t *testing.T, what string, yes func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(30 * time.Second)
	for !yes() {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

func commit(ctx context.Context, t *testing.T, s *store.Store, c store.Change) int64 {
	t.Helper()
	revision, err := s.Commit(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func TestViewSeesEveryCollection(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	listed := commit(ctx, t, s, store.Change{Puts: []store.Put{
		store.PutProto(store.NodeKey("n1"), &storev1.Node{Id: "n1"}),
		store.PutProto(store.VMKey("u1"), &storev1.VM{Uuid: "u1", Name: "web", Node: "n1"}),
	}})
	v, _ := run(t, client)
	if now := v.Current(); now.Revision != listed || now.Nodes["n1"].Value.GetId() != "n1" ||
		now.VMs["u1"].ModRevision != listed || len(now.FindVM("web")) != 1 {
		t.Fatalf("the first snapshot is %+v", now)
	}

	watched := commit(ctx, t, s, store.Change{
		Puts: []store.Put{
			store.PutProto(store.StatusKey("n1"), &storev1.NodeStatus{Id: "n1"}),
			store.PutProto(store.HealthKey("n1"), &storev1.NodeHealth{Id: "n1"}),
			store.PutProto(store.OperationKey("op-1"), &storev1.Operation{Id: "op-1", State: task.OpRunning}),
			store.PutProto(store.TaskKey("op-1/1/migrate-send"), &storev1.Task{Id: "op-1/1/migrate-send", OperationId: "op-1", Node: "n1"}),
			store.PutString(store.InUseKey("vm/u1"), "op-1"),
			store.PutProto(store.PlanKey("plan-1"), &storev1.Plan{Id: "plan-1", Kind: "migrate"}),
			store.PutProto(store.JoinTokenKey("t1"), &storev1.JoinToken{Id: "t1"}),
			store.PutJSON(store.PrincipalKey("ci"), &storev1.Principal{Type: "service", Permissions: []string{"storage:snapshot:list"}}),
			store.PutJSON(store.RoleKey("viewer"), []string{"node:list"}),
			store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1"}),
			store.PutString(store.RevokedKey("0a"), "lost"),
			store.PutProto(store.ElectionPrefix()+"/1f", &storev1.Leader{Name: "r1", AgentsAddress: "h:7444"}),
			store.PutString(store.EpochKey(), "3"),
			store.PutString("/debvisor/rpc/audit/r1", "of no concern"),
		},
		Deletes: []string{store.NodeKey("n1")},
	})
	if err := v.Await(ctx, watched); err != nil {
		t.Fatal(err)
	}
	now := v.Current()
	leader := &cluster.Leader{Name: "r1", AgentsAddress: "h:7444", Term: task.Term{Epoch: 3, Revision: watched}}
	switch {
	case now.Revision != watched, len(now.Nodes) != 0, now.Statuses["n1"].Value == nil, now.Healths["n1"].Value == nil,
		len(now.ActiveOperations()) != 1, len(now.TasksOf("op-1")) != 1, now.InUse["vm/u1"].Value != "op-1",
		now.Plans["plan-1"].Value.GetKind() != "migrate",
		now.JoinTokens["t1"].Value == nil, now.Principals["ci"].Value.GetPermissions()[0] != "storage:snapshot:list",
		now.Roles["viewer"].Value.GetPermissions()[0] != "node:list", now.Replicas["r1"].Value == nil, now.Revoked["0a"].Value != "lost",
		now.Leader == nil, *now.Leader != *leader:
		t.Fatalf("the snapshot is %+v, the leader %+v", now, now.Leader)
	}
	commit(ctx, t, s, store.Change{Deletes: []string{store.ElectionPrefix() + "/1f", store.TaskKey("op-1/1/migrate-send")}})
	until(t, v, "nobody leading", func(s *cluster.Snapshot) bool { return s.Leader == nil && len(s.TasksOf("op-1")) == 0 })
}

func TestViewReadsTheContractsPrincipal(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	put(ctx, t, client, store.PrincipalKey("ci-system"),
		`{"type": "service", "apikey_id": "k", "permissions": ["storage:snapshot:create"], "later": {"a": [1]}}`)
	v, log := run(t, client)
	p := v.Current().Principals["ci-system"].Value
	if p.GetType() != "service" || p.GetApikeyId() != store.HashedKey+"8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a" || len(p.GetPermissions()) != 1 || log.String() != "" {
		t.Errorf("got %+v; log %s", p, log)
	}
}

func TestViewLeavesABrokenRecordOut(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	put(ctx, t, client, store.VMKey("broken-at-first"), "\xff\xff")
	put(ctx, t, client, store.VMKey("good"), "")
	put(ctx, t, client, store.ElectionPrefix()+"/1", "\xff\xff")
	v, log := run(t, client)
	if now := v.Current(); len(now.VMs) != 1 || now.Leader == nil || !strings.Contains(log.String(), store.VMKey("broken-at-first")) {
		t.Fatalf("got %+v, leader %+v; log %s", now.VMs, now.Leader, log)
	}
	put(ctx, t, client, store.VMKey("good"), "\xff\xff")
	put(ctx, t, client, store.EpochKey(), "2")
	put(ctx, t, client, store.EpochKey(), "two")
	put(ctx, t, client, store.VMKey("later"), "")
	now := until(t, v, "the good record behind the broken ones", func(s *cluster.Snapshot) bool { return s.VMs["later"].Value != nil })
	if len(now.VMs) != 1 || now.Epoch != 2 {
		t.Errorf("got %+v %d", now.VMs, now.Epoch)
	}
	for _, key := range []string{store.VMKey("good"), store.EpochKey()} {
		if !strings.Contains(log.String(), key) {
			t.Errorf("%s is not in the log: %s", key, log)
		}
	}
}

// Left out, a founder's record would make it an operator again, and a role's
// would give way to the built-in one of its name.
func TestViewKeepsABrokenRecordOfAccessThatGrantsNothing(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	put(ctx, t, client, store.PrincipalKey("at-first"), `{"roles": "operator"}`)
	put(ctx, t, client, store.PrincipalKey("later"), `{"roles": ["operator"], "tenant": "acme"}`)
	put(ctx, t, client, store.RoleKey("developer"), `["node:list"]`)
	v, log := run(t, client)
	put(ctx, t, client, store.PrincipalKey("later"), `{"apikey_id": 4242424242, "roles": ["operator"]}`)
	put(ctx, t, client, store.RoleKey("developer"), `["node:list"`)
	put(ctx, t, client, store.APIKeyKey("k"), `{5353535353}`)
	put(ctx, t, client, store.VMKey("last"), "")
	now := until(t, v, "what was written last", func(s *cluster.Snapshot) bool { return s.VMs["last"].Value != nil })
	for _, name := range []string{"at-first", "later"} {
		p := now.Principals[name]
		if p.Value == nil || p.ModRevision == 0 || len(p.Value.GetRoles()) != 0 || p.Value.GetTenant() != store.Unreadable {
			t.Errorf("principal %s: got %+v", name, p)
		}
	}
	if r := now.Roles["developer"]; r.Value == nil || r.ModRevision == 0 || len(r.Value.GetPermissions()) != 0 {
		t.Errorf("the role: got %+v", r)
	}
	if len(now.APIKeys) != 0 {
		t.Errorf("a broken key is one: %+v", now.APIKeys)
	}
	for _, key := range []string{store.PrincipalKey("at-first"), store.PrincipalKey("later"), store.RoleKey("developer"), store.APIKeyKey("k"), "(line 1:15)"} {
		if !strings.Contains(log.String(), key) {
			t.Errorf("%s is not in the log: %s", key, log)
		}
	}
	for _, secret := range []string{"4242424242", "5353535353"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows %s: %s", secret, log)
		}
	}
}

func TestViewListsManyPages(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	const all = 2500
	for from := 0; from < all; from += 500 {
		var c store.Change
		for i := range 500 {
			id := fmt.Sprintf("op-%05d", from+i)
			c.Puts = append(c.Puts, store.PutProto(store.OperationKey(id), &storev1.Operation{Id: id, State: task.OpPending}))
		}
		commit(ctx, t, s, c)
	}
	v, _ := run(t, client)
	active := v.Current().ActiveOperations()
	if len(active) != all || active[0].Value.GetId() != "op-00000" || active[all-1].Value.GetId() != "op-02499" {
		t.Errorf("%d operations, want %d in order", len(active), all)
	}
}

// severed is a Watcher that a test can cut off: a stand-in for a network on
// which a watch falls behind.
type severed struct {
	clientv3.Watcher
	mu    sync.Mutex
	hold  chan struct{} // closed: watches may begin
	cancs []context.CancelFunc
}

func (s *severed) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	s.mu.Lock()
	hold := s.hold
	ctx, cancel := context.WithCancel(ctx)
	s.cancs = append(s.cancs, cancel)
	s.mu.Unlock()
	<-hold
	return s.Watcher.Watch(ctx, key, opts...)
}

// cut ends all watches and lets new ones begin only after the given channel is
// closed.
func (s *severed) cut(hold chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = hold
	for _, cancel := range s.cancs {
		cancel()
	}
	s.cancs = nil
}

func TestViewRelistsAfterCompaction(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	open := make(chan struct{})
	close(open)
	watcher := &severed{Watcher: client.Watcher, hold: open}
	cut := clientv3.NewCtxClient(ctx)
	cut.KV, cut.Watcher = client.KV, watcher
	s := store.New(client)
	commit(ctx, t, s, store.Change{Puts: []store.Put{store.PutProto(store.VMKey("a"), &storev1.VM{Name: "a"})}})
	v, log := run(t, cut)

	// While the watch is cut it has been listed anew but not watched, the
	// store moves on and forgets the revisions in between.
	held := make(chan struct{})
	watcher.cut(held)
	poll(t, "the watch has ended", func() bool { return strings.Contains(log.String(), "begins anew") })
	listed := until(t, v, "a list", func(s *cluster.Snapshot) bool { return s.VMs["a"].Value != nil }).Revision
	poll(t, "the second watch waits", func() bool {
		watcher.mu.Lock()
		defer watcher.mu.Unlock()
		return len(watcher.cancs) == 1
	})
	commit(ctx, t, s, store.Change{Deletes: []string{store.VMKey("a")}})
	last := commit(ctx, t, s, store.Change{Puts: []store.Put{store.PutProto(store.VMKey("b"), &storev1.VM{Name: "b"})}})
	if _, err := client.Compact(ctx, last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if v.Current().Revision != listed {
		t.Fatal("the watch was not cut")
	}
	close(held)
	now := until(t, v, "what happened meanwhile", func(s *cluster.Snapshot) bool { return s.Revision >= last })
	if len(now.VMs) != 1 || len(now.FindVM("b")) != 1 || !strings.Contains(log.String(), "compacted") {
		t.Errorf("after the compaction: %+v; log %s", now.VMs, log)
	}
	commit(ctx, t, s, store.Change{Deletes: []string{store.VMKey("b")}})
	until(t, v, "a change after the relist", func(s *cluster.Snapshot) bool { return len(s.VMs) == 0 })
}

func TestViewIsStaleWithoutTheStore(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	cfg := storetest.Configs(t, 1)[0]
	member := storetest.Start(t, cfg)
	if err := store.NewView(member.Client(), hclog.NewNullLogger()).Fresh(); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a view that has read nothing says %v", err)
	}
	client, err := store.Connect(ctx, store.ExternalConfig{
		Endpoints: []string{"unix://" + store.SocketPath(cfg.DataDir)}, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	v, _ := run(t, client)
	if err := v.Fresh(); err != nil {
		t.Fatal(err)
	}
	member.Close()
	stopped := time.Now()
	poll(t, "stale", func() bool { return v.Fresh() != nil })
	if after := time.Since(stopped); after > 7*time.Second {
		t.Errorf("stale after %s", after)
	}
	var e *errdefs.Error
	if err := v.Fresh(); !errors.As(err, &e) || e.Kind != errdefs.Unavailable || e.Code != "STALE_SNAPSHOT" || e.RetryAfter == 0 {
		t.Errorf("got %v", err)
	}

	member = storetest.Start(t, cfg)
	last := commit(ctx, t, store.New(member.Client()), store.Change{Puts: []store.Put{store.PutString(store.InUseKey("vm/a"), "op")}})
	// Fresh promises what had been committed 5 s ago: the commit may come later.
	poll(t, "fresh again", func() bool { return v.Fresh() == nil && v.Current().Revision >= last })
	if now := v.Current(); now.Revision < last || now.InUse["vm/a"].Value != "op" {
		t.Errorf("fresh, yet at %d and not at %d", now.Revision, last)
	}
}

func TestIdleViewStaysFresh(t *testing.T) {
	t.Parallel()
	ctx, client := deadline(t), storetest.Client(t)
	v, _ := run(t, client)
	last, err := client.Put(ctx, "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	// Nothing under the prefix changes: only progress brings the view along.
	if err := v.Await(ctx, last.Header.Revision); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	poll(t, "seven seconds have passed", func() bool {
		if err := v.Fresh(); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun) > 7*time.Second
	})
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	v := store.NewView(storetest.Client(t), hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Await(ctx, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
