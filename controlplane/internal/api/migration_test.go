package api_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	web  = "11111111-1111-1111-1111-111111111111"
	twin = "22222222-2222-2222-2222-222222222222"
	also = "33333333-3333-3333-3333-333333333333"
)

// cluster is two nodes that are heard and VMs on the first.
func startCluster(t *testing.T) *replica {
	t.Helper()
	r := start(t, 0)
	r.lead()
	r.computePlans()
	r.node("a", nil)
	r.node("b", nil)
	r.vm(web, "web", "a")
	r.vm(twin, "twin", "a")
	r.vm(also, "twin", "b")
	return r
}

// end ends an operation as a controller would.
func (r *replica) end(id string, change func(*storev1.Operation)) {
	r.t.Helper()
	entry, ok := r.view.Current().Operations[id]
	if !ok {
		r.t.Fatalf("no operation %s", id)
	}
	op := proto.CloneOf(entry.Value)
	op.EndedAt = timestamppb.New(op.GetCreatedAt().AsTime().Add(3 * time.Second))
	change(op)
	_, err := r.store.Commit(r.t.Context(), store.Change{
		Puts:    []store.Put{store.PutProto(store.OperationKey(id), op)},
		Deletes: []string{store.InUseKey(op.GetResources()[0])},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func spec(vm, source, target string) *debvisorv1.VMMigrateSpec {
	s := &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: vm}}
	if source != "" {
		s.Source = nodeRef(source)
	}
	if target != "" {
		s.Target = nodeRef(target)
	}
	return s
}

func TestPrepareMigration(t *testing.T) {
	r := startCluster(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	prepare := func(vm, source, target string) (*debvisorv1.MigrationPlanResult, error) {
		s := spec(vm, source, target)
		return migrations.PrepareMigration(t.Context(), &debvisorv1.VMMigratePlan{Vm: s.GetVm(), Source: s.GetSource(), Target: s.GetTarget()})
	}
	plan, err := prepare("web", "", "")
	if err != nil || !plan.GetAllowed() || plan.GetTarget().GetNodeId().GetId() != "b" || plan.GetSource().GetNodeId().GetId() != "a" ||
		plan.GetStatus() != debvisorv1.StatusCode_STATUS_OK || len(plan.GetNodes()) != 2 || plan.GetNodes()[0].GetScore() <= 0 {
		t.Errorf("%v, %v", plan, err)
	}
	plan, err = prepare(strings.ToUpper(web), "b", "a")
	if err != nil || plan.GetAllowed() || !strings.Contains(plan.GetMessage(), "is on a and not on b") || !strings.Contains(plan.GetMessage(), "already there") {
		t.Errorf("%v, %v", plan, err)
	}
	for name, c := range map[string]struct {
		vm, source, target string
		kind               errdefs.Kind
		text               string
	}{
		"unknown VM":     {"nope", "", "", errdefs.NotFound, "nope"},
		"unknown source": {"web", "x", "", errdefs.NotFound, "x"},
		"unknown target": {"web", "", "x", errdefs.NotFound, "x"},
		"ambiguous name": {"twin", "", "", errdefs.FailedPrecondition, twin + ", " + also},
		"no VM":          {"", "", "", errdefs.InvalidArgument, "vm.vm_id"},
	} {
		_, err := prepare(c.vm, c.source, c.target)
		if e := errdefs.FromStatus(err); e == nil || e.Kind != c.kind || !strings.Contains(e.Message, c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMigrateVM(t *testing.T) {
	r := startCluster(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	type end struct {
		result *debvisorv1.MigrationResult
		err    error
	}
	// run asks for a migration, lets it end as finish says, and gives the answer.
	run := func(id string, s *debvisorv1.VMMigrateSpec, finish func(*storev1.Operation)) end {
		t.Helper()
		answered := make(chan end, 1)
		go func() {
			result, err := migrations.MigrateVM(withRequestID(t.Context(), id), s)
			answered <- end{result, err}
		}()
		eventually(t, func() error {
			active := r.view.Current().ActiveOperations()
			if len(active) == 0 {
				return errors.New("no operation was submitted")
			}
			r.end(active[0].Value.GetId(), finish)
			return nil
		})
		return <-answered
	}
	done := run("one", spec("web", "a", ""), func(op *storev1.Operation) {
		move := op.GetMigrate()
		if op.GetKind() != "migrate" || op.GetPrincipal() != "operator" || move.GetVmUuid() != web || move.GetSource() != "a" || move.GetTarget() != "" {
			t.Errorf("submitted as %v", op)
		}
		op.State, move.Target, move.DowntimeMs = task.OpSucceeded, "b", 42
	})
	if done.err != nil || done.result.GetStatus() != debvisorv1.StatusCode_STATUS_OK || done.result.GetDowntimeMs() != 42 ||
		done.result.GetDurationMs() != 3000 || done.result.GetTarget().GetNodeId().GetId() != "b" {
		t.Errorf("%v, %v", done.result, done.err)
	}
	// The same request gets the same answer, though it could not be made again.
	r.vm(web, "web", "b")
	again, err := migrations.MigrateVM(withRequestID(t.Context(), "one"), spec("web", "a", ""))
	if err != nil || again.GetOperationId() != done.result.GetOperationId() || again.GetDowntimeMs() != 42 {
		t.Errorf("repeated: %v, %v", again, err)
	}
	r.vm(web, "web", "a")
	for name, c := range map[string]struct {
		finish func(*storev1.Operation)
		kind   errdefs.Kind
	}{
		"libvirt refuses": {func(op *storev1.Operation) {
			op.State, op.ErrorCode, op.ErrorMessage = task.OpFailed, "MIGRATION_FAILED", "libvirt says no"
		}, errdefs.Aborted},
		"the plan changed": {func(op *storev1.Operation) {
			op.State, op.ErrorCode, op.ErrorMessage = task.OpFailed, "PLAN_REFUSED", "b: it is cordoned"
		}, errdefs.FailedPrecondition},
		"cancelled": {func(op *storev1.Operation) { op.State = task.OpCancelled }, errdefs.Aborted},
	} {
		e := errdefs.FromStatus(run(name, spec("web", "", "b"), c.finish).err)
		if e == nil || e.Kind != c.kind || e.Context["operation"] == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestMigrateVMRefused(t *testing.T) {
	r := startCluster(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	for name, c := range map[string]struct {
		spec *debvisorv1.VMMigrateSpec
		kind errdefs.Kind
		text string
	}{
		"unknown VM":     {spec("nope", "", "b"), errdefs.NotFound, "nope"},
		"unknown node":   {spec("web", "", "x"), errdefs.NotFound, "x"},
		"wrong source":   {spec("web", "b", "b"), errdefs.FailedPrecondition, "is on a and not on b"},
		"same node":      {spec("web", "a", "a"), errdefs.FailedPrecondition, "already there"},
		"ambiguous name": {spec("twin", "", "b"), errdefs.FailedPrecondition, also},
	} {
		_, err := migrations.MigrateVM(t.Context(), c.spec)
		if e := errdefs.FromStatus(err); e == nil || e.Kind != c.kind || !strings.Contains(e.Message, c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(r.view.Current().Operations); n != 0 {
		t.Errorf("refusals left %d operations", n)
	}
	if _, err := migrations.FailoverVM(t.Context(), &debvisorv1.VMRef{VmId: "web"}); !strings.Contains(errdefs.FromStatus(err).Context["reasons"], "NODE_REACHABLE") {
		t.Errorf("failover: %v", err)
	}
}

func TestTwoMigrationsOfOneVM(t *testing.T) {
	r := startCluster(t)
	conn := r.principal("operator")
	migrations := debvisorv1.NewMigrationServiceClient(conn)
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	var wg sync.WaitGroup
	ids, errs := make([]string, 8), make([]error, 8)
	for i := range ids {
		wg.Go(func() {
			var header metadata.MD
			result, err := migrations.MigrateVM(noWait, spec("web", "", "b"), grpc.Header(&header))
			ids[i], errs[i] = result.GetOperationId(), err
			if err == nil && (len(header.Get("debvisor-operation")) != 1 || header.Get("debvisor-operation")[0] != ids[i]) {
				t.Errorf("the header has %v", header)
			}
		})
	}
	wg.Wait()
	first := ""
	for _, id := range ids {
		if id != "" && first != "" {
			t.Fatalf("both %s and %s", first, id)
		}
		first += id
	}
	for _, err := range errs {
		if e := errdefs.FromStatus(err); e != nil && (e.Kind != errdefs.Aborted || e.Context["operation"] != first) {
			t.Errorf("refused with %v", err)
		}
	}
	vms := debvisorv1.NewVMServiceClient(conn)
	if vm, err := vms.GetVM(t.Context(), &debvisorv1.VMRef{VmId: "web"}); err != nil || vm.GetOperationId() != first || vm.GetNode().GetNodeId().GetId() != "a" {
		t.Errorf("%v, %v", vm, err)
	}
}

func TestFollowAndCancelOverTheWire(t *testing.T) {
	r := startCluster(t)
	conn := r.principal("operator")
	ops := debvisorv1.NewOperationServiceClient(conn)
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	result, err := debvisorv1.NewMigrationServiceClient(conn).MigrateVM(noWait, spec("web", "", "b"))
	if err != nil {
		t.Fatal(err)
	}
	ref := &debvisorv1.OperationRef{Id: result.GetOperationId()}
	watch, err := ops.WatchOperation(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if op, err := watch.Recv(); err != nil || op.GetState() != debvisorv1.OperationState_OPERATION_STATE_PENDING || op.GetMigration().GetVmName() != "web" {
		t.Fatal(op, err)
	}
	cancelled := make(chan error, 1)
	go func() {
		_, err := ops.CancelOperation(t.Context(), ref)
		cancelled <- err
	}()
	if op, err := watch.Recv(); err != nil || !op.GetCancelRequested() {
		t.Fatal(op, err, <-cancelled)
	}
	r.end(ref.GetId(), func(op *storev1.Operation) { op.State = task.OpCancelled })
	if err := <-cancelled; err != nil {
		t.Error(err)
	}
	if op, err := watch.Recv(); err != nil || op.GetState() != debvisorv1.OperationState_OPERATION_STATE_CANCELLED {
		t.Error(op, err)
	}
	if op, err := watch.Recv(); err == nil {
		t.Errorf("after its end comes %v", op)
	}
	list, err := ops.ListOperations(t.Context(), &debvisorv1.OperationFilter{Resource: "vm/" + web, Kind: "migrate"})
	if err != nil || len(list.GetOperations()) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := ops.ListOperations(t.Context(), &debvisorv1.OperationFilter{ActiveOnly: true}); err != nil || len(list.GetOperations()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for name, call := range map[string]func() error{
		"get": func() error {
			_, err := ops.GetOperation(t.Context(), &debvisorv1.OperationRef{Id: "op-x"})
			return err
		},
		"cancel": func() error {
			_, err := ops.CancelOperation(t.Context(), &debvisorv1.OperationRef{Id: "op-x"})
			return err
		},
		"watch": func() error {
			w, err := ops.WatchOperation(t.Context(), &debvisorv1.OperationRef{Id: "op-x"})
			if err == nil {
				_, err = w.Recv()
			}
			return err
		},
	} {
		if err := call(); errdefs.FromStatus(err).Kind != errdefs.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := r.events("rpc_result", 1); len(n) == 0 || n[0]["operation"] != ref.GetId() {
		t.Errorf("events %v", n)
	}
}

func TestVMs(t *testing.T) {
	r := startCluster(t)
	vms := debvisorv1.NewVMServiceClient(r.principal("operator"))
	names := func(filter *debvisorv1.VMFilter) string {
		list, err := vms.ListVMs(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, vm := range list.GetVms() {
			all = append(all, vm.GetName()+"@"+vm.GetNode().GetNodeId().GetId())
		}
		return strings.Join(all, " ")
	}
	for want, filter := range map[string]*debvisorv1.VMFilter{
		"twin@a twin@b web@a": {},
		"twin@a web@a":        {Node: nodeRef("a")},
		"twin@a twin@b":       {Name: "twin"},
		"twin@b":              {Name: "twin", Node: nodeRef("b")},
	} {
		if got := names(filter); got != want {
			t.Errorf("%v lists %s, want %s", filter, got, want)
		}
	}
	if _, err := vms.ListVMs(t.Context(), &debvisorv1.VMFilter{Node: nodeRef("x")}); errdefs.FromStatus(err).Kind != errdefs.NotFound {
		t.Errorf("unknown node: %v", err)
	}
	if _, err := vms.GetVM(t.Context(), &debvisorv1.VMRef{VmId: "twin"}); code(err) != "VM_NAME_AMBIGUOUS" {
		t.Errorf("ambiguous: %v", err)
	}
	cluster, err := debvisorv1.NewClusterServiceClient(r.principal("operator")).GetCluster(t.Context(), &debvisorv1.Empty{})
	if err != nil || cluster.GetName() != clusterName || cluster.GetLeader() != "r1" || cluster.GetAnsweredBy() != "r1" {
		t.Errorf("%v, %v", cluster, err)
	}
}

// TestBackAtOnce moves a VM to where its last copy has not been reported gone.
func TestBackAtOnce(t *testing.T) {
	r := startCluster(t)
	has := func(domains ...string) {
		r.node("b", func(_ *storev1.Node, s *storev1.NodeStatus) { s.Domains = domains })
	}
	has(web)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	if _, err := migrations.MigrateVM(noWait, spec("web", "", "b")); code(err) != "MIGRATION_NOT_ALLOWED" || !strings.Contains(err.Error(), "is defined there") {
		t.Errorf("a copy that stays: %v", err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := migrations.MigrateVM(noWait, spec("web", "", "b"))
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("answered before the copy is gone: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	has()
	if err := <-answered; err != nil {
		t.Errorf("a copy that goes: %v", err)
	}
}
