package operations_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// replica is one replica's part of the state; many share one etcd.
type replica struct {
	*operations.Operations
	view  *store.View
	store *store.Store
}

func newReplica(t *testing.T, client *clientv3.Client) replica {
	t.Helper()
	view, st := store.NewView(client, hclog.NewNullLogger()), store.New(client)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = view.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	<-view.Ready()
	return replica{operations.New(view, st), view, st}
}

// lead makes somebody lead, as far as snapshots tell.
func lead(t *testing.T, client *clientv3.Client) *store.Fence {
	t.Helper()
	value, err := proto.Marshal(&storev1.Leader{Name: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	key := store.ElectionPrefix() + "/1"
	put, err := client.Put(t.Context(), key, string(value))
	if err != nil {
		t.Fatal(err)
	}
	return &store.Fence{Key: key, Term: task.Term{Revision: put.Header.Revision}}
}

func start(t *testing.T) (replica, *clientv3.Client) {
	t.Helper()
	client := storetest.Client(t)
	if err := store.New(client).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	lead(t, client)
	return newReplica(t, client), client
}

func migrateSpec(vm, requestID string) operations.Spec {
	return operations.Spec{
		Kind: "migrate", Principal: "ada", Method: "/m", RequestID: requestID,
		Request:   &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: vm}},
		Resources: []string{"vm/" + vm}, Migrate: &storev1.Migrate{VmUuid: vm},
	}
}

// advance writes another state of an operation, as a controller would.
func (r replica) advance(t *testing.T, id string, change func(*storev1.Operation)) {
	t.Helper()
	for {
		entry, ok := r.view.Current().Operations[id]
		if !ok {
			t.Fatalf("no operation %s", id)
		}
		op := proto.CloneOf(entry.Value)
		change(op)
		c := store.Change{
			Require: []store.Condition{store.Unchanged(store.OperationKey(id), entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(store.OperationKey(id), op)},
		}
		if task.OpEnded(op.GetState()) {
			op.EndedAt = timestamppb.Now()
			c.Puts[0] = store.PutProto(store.OperationKey(id), op)
			for _, resource := range op.GetResources() {
				c.Deletes = append(c.Deletes, store.InUseKey(resource))
			}
		}
		revision, err := r.store.Commit(t.Context(), c)
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := r.view.Await(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		return
	}
}

func kindAndCode(err error) string {
	var e *errdefs.Error
	if !errors.As(err, &e) {
		return fmt.Sprint(err)
	}
	return e.Code
}

func TestOneRequestIDIsOneOperation(t *testing.T) {
	a, client := start(t)
	b := newReplica(t, client)
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			r := a
			if i%2 == 1 {
				r = b
			}
			id, err := r.Submit(t.Context(), migrateSpec("v1", "request-1"))
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || !strings.HasPrefix(id, "op-") || len(id) != 29 {
			t.Errorf("%q and %q", id, ids[0])
		}
	}
	// The other replica may learn of it later than of its own refusal.
	other := migrateSpec("v2", "request-1")
	if _, err := b.Submit(t.Context(), other); kindAndCode(err) != "REQUEST_ID_REUSED" || !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("another request with the same id: %v", err)
	}
	other.Principal = "bob"
	if id, err := b.Submit(t.Context(), other); err != nil || id == ids[0] {
		t.Errorf("another principal's request with the same id: %q, %v", id, err)
	}
	a.advance(t, ids[0], func(op *storev1.Operation) { op.State = task.OpSucceeded })
	if id, err := a.Submit(t.Context(), migrateSpec("v1", "request-1")); err != nil || id != ids[0] {
		t.Errorf("repeated after the end: %q, %v", id, err)
	}
	if op, err := a.Repeated(migrateSpec("v1", "request-1")); err != nil || op.GetId() != ids[0] {
		t.Errorf("repeated: %v, %v", op, err)
	}
}

func TestAnOperationIsItsTenants(t *testing.T) {
	r, _ := start(t)
	vm := func(uuid, tenant string) store.Put {
		policy, err := proto.Marshal(&debvisorv1.VMPolicy{Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		return store.PutProto(store.VMKey(uuid), &storev1.VM{Uuid: uuid, Policy: policy})
	}
	revision, err := r.store.Commit(t.Context(), store.Change{Puts: []store.Put{vm("v1", "acme"), vm("v2", "acme"), vm("v3", "globex"), vm("v4", "")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.view.Await(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		caller    string
		resources []string
		want      string
	}{
		{"", []string{"vm/v1"}, "acme"},
		{"", []string{"vm/v1", "vm/v2"}, "acme"},
		{"", []string{"vm/v1", "vm/v3"}, ""},
		{"", []string{"vm/v1", "vm/v4"}, ""},
		{"", []string{"vm/v4", "vm/v1"}, ""},
		{"", []string{"vm/none"}, ""},
		{"", []string{"node/a"}, ""},
		{"", nil, ""},
		{"acme", []string{"vm/v1"}, "acme"},
		{"acme", nil, "acme"},
	} {
		spec := migrateSpec("v", "")
		spec.Tenant, spec.Resources = c.caller, c.resources
		id, err := r.Submit(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if op, err := r.Get(id); err != nil || op.GetTenant() != c.want {
			t.Errorf("a caller of %q about %v: %v, %v", c.caller, c.resources, op, err)
		}
		r.advance(t, id, func(op *storev1.Operation) { op.State = task.OpFailed })
		op, err := r.Apply(t.Context(), spec, func(*cluster.Snapshot) (store.Change, error) { return store.Change{}, nil })
		if err != nil || op.GetTenant() != c.want {
			t.Errorf("applied by a caller of %q about %v: %v, %v", c.caller, c.resources, op, err)
		}
	}
}

// A principal that comes to belong to another tenant repeats nothing that it did
// for the one before.
func TestARequestIDIsOfOneTenant(t *testing.T) {
	r, _ := start(t)
	ids := map[string]string{}
	for _, tenant := range []string{"", "acme", "globex"} {
		spec := migrateSpec("vm-of-"+tenant, "request-1")
		spec.Tenant = tenant
		if op, err := r.Repeated(spec); op != nil || err != nil {
			t.Errorf("%q repeats %v, %v", tenant, op, err)
		}
		id, err := r.Submit(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := r.Submit(t.Context(), spec); err != nil || again != id {
			t.Errorf("%q again: %s, %v", tenant, again, err)
		}
		ids[id] = tenant
	}
	if len(ids) != 3 {
		t.Errorf("%v", ids)
	}
	for id, tenant := range ids {
		for _, reader := range []string{"acme", "globex"} {
			_, err := operations.Find(r.view.Current().Within(reader), id)
			if (err == nil) != (reader == tenant) || err != nil && kindAndCode(err) != "OPERATION_NOT_FOUND" {
				t.Errorf("%q reads that of %q: %v", reader, tenant, err)
			}
		}
	}
}

// What another tenant's operation holds is in use, and no more is said.
func TestAHolderOfAnotherTenantIsNotNamed(t *testing.T) {
	r, _ := start(t)
	spec := migrateSpec("v1", "")
	spec.Tenant = "globex"
	id, err := r.Submit(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for tenant, named := range map[string]bool{"": true, "globex": true, "acme": false} {
		spec.Tenant = tenant
		_, submitted := r.Submit(t.Context(), spec)
		_, applied := r.Apply(t.Context(), spec, func(*cluster.Snapshot) (store.Change, error) { return store.Change{}, nil })
		for _, err := range []error{submitted, applied} {
			var e *errdefs.Error
			if !errors.As(err, &e) || e.Code != "IN_USE" || (e.Context["operation"] == id) != named || strings.Contains(e.Message, id) != named {
				t.Errorf("for %q: %v, %v", tenant, err, e.Context)
			}
		}
	}
}

// TestAlso executes a plan twice, with two request ids, at once.
func TestAlso(t *testing.T) {
	r, _ := start(t)
	revision, err := r.store.Commit(t.Context(), store.Change{Puts: []store.Put{store.PutProto(store.PlanKey("p"), &storev1.Plan{Id: "p"})}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.view.Await(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	execute := func(vm, requestID string) (string, error) {
		spec := migrateSpec(vm, requestID)
		spec.Also = func(id string) store.Change {
			return store.Change{
				Require: []store.Condition{store.Unchanged(store.PlanKey("p"), revision)},
				Puts:    []store.Put{store.PutProto(store.PlanKey("p"), &storev1.Plan{Id: "p", OperationId: id})},
			}
		}
		return r.Submit(t.Context(), spec)
	}
	var wg sync.WaitGroup
	ids, errs := make([]string, 8), make([]error, 8)
	for i := range ids {
		wg.Go(func() { ids[i], errs[i] = execute(fmt.Sprint("v", i), fmt.Sprint("request-", i)) })
	}
	wg.Wait()
	done := ""
	for i, err := range errs {
		var conflict *store.ConflictError
		switch {
		case err == nil && done == "":
			done = ids[i]
		case !errors.As(err, &conflict) || conflict.Key != store.PlanKey("p"):
			t.Errorf("number %d: %q, %v", i, ids[i], err)
		}
	}
	if err := r.view.Await(t.Context(), revision+1); err != nil {
		t.Fatal(err)
	}
	s := r.view.Current()
	if done == "" || len(s.Operations) != 1 || len(s.InUse) != 1 || s.Plans["p"].Value.GetOperationId() != done {
		t.Errorf("%q done, operations %v, in use %v, plan %v", done, s.Operations, s.InUse, s.Plans["p"].Value)
	}
	// Asked again, each hears what came of it.
	for i := range ids {
		id, err := execute(fmt.Sprint("v", i), fmt.Sprint("request-", i))
		if (errs[i] == nil) != (err == nil && id == done) {
			t.Errorf("number %d again: %q, %v", i, id, err)
		}
	}
}

func TestOneOperationAtATime(t *testing.T) {
	a, client := start(t)
	b := newReplica(t, client)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first string
	var refused []error
	for i := range 10 {
		wg.Go(func() {
			r := []replica{a, b}[i%2]
			id, err := r.Submit(t.Context(), migrateSpec("v1", ""))
			mu.Lock()
			defer mu.Unlock()
			if err == nil && first != "" {
				t.Errorf("both %s and %s", first, id)
			}
			if err == nil {
				first = id
			} else {
				refused = append(refused, err)
			}
		})
	}
	wg.Wait()
	for _, err := range refused {
		var e *errdefs.Error
		if !errors.As(err, &e) || e.Kind != errdefs.Aborted || e.Context["operation"] != first || !strings.Contains(e.Message, first) {
			t.Errorf("refused with %v, want the name of %s", err, first)
		}
	}
	a.advance(t, first, func(op *storev1.Operation) { op.State = task.OpFailed })
	if id, err := a.Submit(t.Context(), migrateSpec("v1", "")); err != nil || id == first {
		t.Errorf("after its end: %q, %v", id, err)
	}
}

func TestNoLeader(t *testing.T) {
	client := storetest.Client(t)
	r := newReplica(t, client)
	began := time.Now()
	_, err := r.Submit(t.Context(), migrateSpec("v1", ""))
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != errdefs.Unavailable || e.Code != "NO_LEADER" || e.RetryAfter == 0 || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %+v", time.Since(began), err)
	}
	go func() {
		<-time.After(100 * time.Millisecond)
		lead(t, client)
	}()
	if _, err := r.Submit(t.Context(), migrateSpec("v1", "")); err != nil {
		t.Errorf("a leader that comes while the call waits: %v", err)
	}
}

// TestUnknownOutcome submits through a connection that loses answers: the
// transaction is applied, the submission hears of nothing.
func TestUnknownOutcome(t *testing.T) {
	a, client := start(t)
	spec := migrateSpec("v1", "request-1")
	// A caller that goes away in the middle of a commit...
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Submit(ctx, spec)
		done <- err
	}()
	cancel()
	t.Logf("the caller that went away would have heard: %v", <-done)
	// ...and repeats the call finds the operation, or makes it, once.
	id, err := a.Submit(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Get(t.Context(), "/debvisor/rpc/operations/", clientv3.WithPrefix())
	if err != nil || len(got.Kvs) != 1 || !strings.HasSuffix(string(got.Kvs[0].Key), id) {
		t.Errorf("%d operations, %v", len(got.Kvs), err)
	}
	// With etcd gone the answer comes in time, and says what it is about.
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = a.Submit(t.Context(), migrateSpec("v2", ""))
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != errdefs.Unavailable || e.Context["operation"] == "" || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func TestApply(t *testing.T) {
	a, client := start(t)
	b := newReplica(t, client)
	spec := func(id string) operations.Spec {
		return operations.Spec{
			Kind: "count", Principal: "ada", Method: "/count", RequestID: id,
			Request: &debvisorv1.Empty{}, Resources: []string{"node/n1"},
		}
	}
	// Each change adds one to a counter that it has read in the snapshot.
	add := func(s *cluster.Snapshot) (store.Change, error) {
		node, rev := &storev1.Node{Id: "n1"}, int64(0)
		if entry, ok := s.Nodes["n1"]; ok {
			node, rev = proto.CloneOf(entry.Value), entry.ModRevision
		}
		node.Hostname += "x"
		return store.Change{
			Require: []store.Condition{store.Unchanged(store.NodeKey("n1"), rev)},
			Puts:    []store.Put{store.PutProto(store.NodeKey("n1"), node)},
		}, nil
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for range 2 { // the repetition changes nothing
				op, err := []replica{a, b}[i%2].Apply(t.Context(), spec(fmt.Sprint("request-", i)), add)
				if err != nil || op.GetState() != task.OpSucceeded {
					t.Errorf("%v, %v", op, err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := a.Apply(t.Context(), spec(""), add); err != nil {
		t.Fatal(err)
	}
	// One reads one's own writes.
	if got := a.view.Current().Nodes["n1"].Value.GetHostname(); len(got) != 11 {
		t.Errorf("%d changes were made, want 11", len(got))
	}
	refusal := errdefs.New(errdefs.FailedPrecondition, "NO", "no")
	if _, err := a.Apply(t.Context(), spec(""), func(*cluster.Snapshot) (store.Change, error) { return store.Change{}, refusal }); !errors.Is(err, refusal) {
		t.Errorf("refused with %v", err)
	}
	if n := len(a.view.Current().InUse); n != 0 {
		t.Errorf("%d resources are in use", n)
	}
	// A resource that an unfinished operation holds is not changed.
	id, err := a.Submit(t.Context(), operations.Spec{Kind: "drain", Request: &debvisorv1.Empty{}, Resources: []string{"node/n1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Apply(t.Context(), spec(""), add); kindAndCode(err) != "IN_USE" || !strings.Contains(err.Error(), id) {
		t.Errorf("in use: %v", err)
	}
}

// What the first of two has done must not make the second, the same request,
// fail.
func TestApplyOfWhatIsThereOnceOnly(t *testing.T) {
	a, client := start(t)
	b := newReplica(t, client)
	var wg sync.WaitGroup
	for i := range 40 {
		key := store.NodeKey(fmt.Sprint("n", i))
		create := func(s *cluster.Snapshot) (store.Change, error) {
			if _, exists := s.Nodes[fmt.Sprint("n", i)]; exists {
				return store.Change{}, errdefs.New(errdefs.AlreadyExists, "NODE_EXISTS", "it is there")
			}
			return store.Change{Require: []store.Condition{store.Absent(key)}, Puts: []store.Put{store.PutProto(key, &storev1.Node{})}}, nil
		}
		for _, r := range []replica{a, b, a, b} {
			wg.Go(func() {
				if _, err := r.Apply(t.Context(), operations.Spec{
					Kind: "create", Principal: "ada", Method: "/create", RequestID: fmt.Sprint(i), Request: &debvisorv1.Empty{},
				}, create); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
	}
	wg.Wait()
}

func TestWatchSeesTheEnd(t *testing.T) {
	r, _ := start(t)
	id, err := r.Submit(t.Context(), migrateSpec("v1", ""))
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	done := make(chan error, 1)
	first := make(chan struct{}, 100)
	go func() {
		done <- r.Watch(t.Context(), id, func(op *storev1.Operation) error {
			states = append(states, op.GetState().String()[len("OPERATION_STATE_"):]+op.GetStep())
			first <- struct{}{}
			return nil
		})
	}()
	<-first
	for i := range 20 {
		r.advance(t, id, func(op *storev1.Operation) { op.State, op.Step = task.OpRunning, fmt.Sprint(i) })
	}
	r.advance(t, id, func(op *storev1.Operation) { op.State, op.Step = task.OpSucceeded, "" })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if states[0] != "PENDING" || states[len(states)-1] != "SUCCEEDED" {
		t.Errorf("saw %v", states)
	}
	if op, err := r.Wait(t.Context(), id); err != nil || op.GetState() != task.OpSucceeded {
		t.Errorf("waiting for what has ended: %v, %v", op, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other, err := r.Submit(t.Context(), migrateSpec("v2", ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wait(ctx, other); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that goes away: %v", err)
	}
	if op, err := r.Get(other); err != nil || op.GetState() != task.OpPending || op.GetCancelRequested() {
		t.Errorf("its operation: %v, %v", op, err)
	}
}

func TestLeaveEndsTheWaitingAndNotTheOperation(t *testing.T) {
	r, _ := start(t)
	id, err := r.Submit(t.Context(), migrateSpec("v1", ""))
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := r.Wait(t.Context(), id)
		waiting <- err
	}()
	r.Leave()
	r.Leave()
	err = <-waiting
	if kindAndCode(err) != "REPLICA_STOPS" || !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), id) {
		t.Errorf("who waits is told %v", err)
	}
	if op, err := r.Get(id); err != nil || op.GetState() != task.OpPending || op.GetCancelRequested() {
		t.Errorf("the operation: %v, %v", op, err)
	}
}

func TestCancel(t *testing.T) {
	r, _ := start(t)
	submit := func(vm string, change func(*storev1.Operation)) string {
		t.Helper()
		id, err := r.Submit(t.Context(), migrateSpec(vm, ""))
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			r.advance(t, id, change)
		}
		return id
	}
	running := submit("v1", func(op *storev1.Operation) { op.State = task.OpRunning })
	var wg sync.WaitGroup
	for range 5 { // a controller writes progress meanwhile
		wg.Go(func() { r.advance(t, running, func(op *storev1.Operation) { op.Step += "." }) })
		wg.Go(func() {
			if err := r.Cancel(t.Context(), running); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if op, err := r.Get(running); err != nil || !op.GetCancelRequested() || op.GetStep() != "....." {
		t.Errorf("%v, %v", op, err)
	}
	r.advance(t, running, func(op *storev1.Operation) { op.State = task.OpCancelled })
	if err := r.Cancel(t.Context(), running); err != nil {
		t.Errorf("cancelled already: %v", err)
	}
	for name, id := range map[string]string{
		"succeeded":     submit("v2", func(op *storev1.Operation) { op.State = task.OpSucceeded }),
		"failed":        submit("v3", func(op *storev1.Operation) { op.State = task.OpFailed }),
		"switched over": submit("v4", func(op *storev1.Operation) { op.State = task.OpRunning; op.GetMigrate().SwitchedOver = true }),
	} {
		err := r.Cancel(t.Context(), id)
		if !errdefs.Is(err, errdefs.FailedPrecondition) || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Cancel(t.Context(), "op-none"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func TestPurge(t *testing.T) {
	r, client := start(t)
	fence := lead(t, client)
	now := time.Now()
	write := func(id string, state storev1.OperationState, ended time.Time) {
		t.Helper()
		_, err := r.store.Commit(t.Context(), store.Change{Puts: []store.Put{
			store.PutProto(store.OperationKey(id), &storev1.Operation{Id: id, State: state, EndedAt: timestamppb.New(ended)}),
			store.PutProto(store.TaskKey(id+"/1/x"), &storev1.Task{Id: id + "/1/x", OperationId: id}),
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	write("op-old", task.OpSucceeded, now.Add(-operations.KeepFor-time.Hour))
	write("op-new", task.OpFailed, now.Add(-time.Hour))
	write("op-runs", task.OpRunning, time.Time{})
	revision, err := r.store.Commit(t.Context(), store.Change{Puts: []store.Put{store.PutString(store.RevokedKey("1"), "x")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.view.Await(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	if err := r.Purge(t.Context(), &store.Fence{Key: fence.Key, Term: task.Term{Revision: fence.Term.Revision + 1000}}, now); !errors.Is(err, store.ErrFenced) {
		t.Errorf("one that does not lead: %v", err)
	}
	create, err := client.Get(t.Context(), fence.Key)
	if err != nil {
		t.Fatal(err)
	}
	fence.Term.Revision = create.Kvs[0].CreateRevision
	if err := r.Purge(t.Context(), fence, now); err != nil {
		t.Fatal(err)
	}
	left, err := client.Get(t.Context(), "/debvisor/rpc/operations/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := client.Get(t.Context(), "/debvisor/rpc/tasks/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(left.Kvs) != 2 || len(tasks.Kvs) != 2 {
		t.Errorf("%d operations and %d tasks are left, want 2 and 2", len(left.Kvs), len(tasks.Kvs))
	}
}
