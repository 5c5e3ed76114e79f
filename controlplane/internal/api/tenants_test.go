package api_test

import (
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// give makes a VM another's, as an operator would.
func (w *world) give(vm string, to *objects) {
	w.t.Helper()
	record := proto.CloneOf(w.view.Current().VMs[vm].Value)
	record.Policy = encode(w.t, &debvisorv1.VMPolicy{Tenant: to.tenant})
	w.put(store.PutProto(store.VMKey(vm), record))
}

func TestATenantGivesNoVMAway(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	confined, free := debvisorv1.NewVMServiceClient(w.caller("operator", acme.tenant).conn), debvisorv1.NewVMServiceClient(w.caller("operator", "").conn)
	set := func(by debvisorv1.VMServiceClient, vm, tenant string) (*debvisorv1.VM, error) {
		return by.SetVMPolicy(t.Context(), &debvisorv1.VMPolicyRequest{Vm: &debvisorv1.VMRef{VmId: vm}, Policy: &debvisorv1.VMPolicy{Tenant: tenant, Priority: 9}})
	}
	for _, tenant := range []string{"", acme.tenant} {
		if vm, err := set(confined, acme.idle, tenant); err != nil || vm.GetPolicy().GetTenant() != acme.tenant || vm.GetPolicy().GetPriority() != 9 {
			t.Errorf("its own VM, to %q: %v, %v", tenant, vm, err)
		}
	}
	for _, tenant := range []string{globex.tenant, "none"} {
		_, err := set(confined, acme.idle, tenant)
		if code(err) != "INVALID_FIELD" || !strings.Contains(err.Error(), "policy.tenant") || !strings.Contains(err.Error(), acme.tenant) {
			t.Errorf("its own VM, to %q: %v", tenant, err)
		}
	}
	if _, err := set(confined, globex.idle, ""); code(err) != "VM_NOT_FOUND" {
		t.Errorf("another's VM: %v", err)
	}
	if _, err := set(free, acme.idle, "none"); code(err) != "INVALID_FIELD" || !strings.Contains(err.Error(), globex.tenant) {
		t.Errorf("an operator gives it to nobody there is: %v", err)
	}
	turn := w.view.Current().AccessTurn
	if vm, err := set(free, acme.idle, globex.tenant); err != nil || vm.GetPolicy().GetTenant() != globex.tenant {
		t.Errorf("an operator gives it away: %v, %v", vm, err)
	}
	if w.view.Current().AccessTurn == turn {
		t.Error("a tenant could be deleted at the moment in which a VM becomes its own")
	}
	if _, err := set(confined, acme.idle, ""); code(err) != "VM_NOT_FOUND" {
		t.Errorf("it is another's now: %v", err)
	}
}

// What a tenant did stays its own to read; the VM does not.
func TestAVMThatBecomesAnothers(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	was, is := w.caller("operator", acme.tenant).conn, w.caller("operator", globex.tenant).conn
	set := func() (*debvisorv1.VM, error) {
		return debvisorv1.NewVMServiceClient(was).SetVMAutostart(withRequestID(t.Context(), "one"), &debvisorv1.VMAutostartRequest{
			Vm: &debvisorv1.VMRef{VmId: acme.idle}, Autostart: true,
		})
	}
	ctx, ref := withRequestID(t.Context(), "one"), &debvisorv1.VMRef{VmId: acme.idle}
	if _, err := set(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := debvisorv1.NewVMServiceClient(was).StartVM(ctx, ref)
		done <- err
	}()
	var started string
	eventually(t, func() error {
		for op := range w.view.Current().Within(acme.tenant).Operations() {
			if op.Value.GetKind() == "vm.start" {
				started = op.Value.GetId()
				w.end(started, func(op *storev1.Operation) { op.State = task.OpSucceeded })
				return nil
			}
		}
		return errors.New("no start yet")
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.give(acme.idle, globex)
	domain := &agentv1.Domain{Uuid: acme.idle, Name: "renamed-" + globex.secret, Persistent: true}
	record := proto.CloneOf(w.view.Current().VMs[acme.idle].Value)
	record.Name, record.Domain = domain.GetName(), encode(t, domain)
	w.put(store.PutProto(store.VMKey(acme.idle), record))

	if vm, err := set(); code(err) != "VM_NOT_FOUND" {
		t.Errorf("repeated: %v, %v", vm, err)
	}
	again, err := debvisorv1.NewVMServiceClient(was).StartVM(ctx, ref)
	if err != nil || again.GetOperationId() != started || strings.Contains(again.String(), globex.secret) {
		t.Errorf("what it began is answered as it was: %v, %v", again, err)
	}
	if _, err := debvisorv1.NewVMServiceClient(was).StartVM(t.Context(), ref); code(err) != "VM_NOT_FOUND" {
		t.Errorf("once more: %v", err)
	}
	history := &debvisorv1.OperationRef{Id: started}
	if op, err := debvisorv1.NewOperationServiceClient(was).GetOperation(t.Context(), history); err != nil || strings.Contains(op.String(), globex.secret) {
		t.Errorf("what it did: %v, %v", op, err)
	}
	if _, err := debvisorv1.NewOperationServiceClient(is).GetOperation(t.Context(), history); code(err) != "OPERATION_NOT_FOUND" {
		t.Errorf("what another did before: %v", err)
	}
	if vm, err := debvisorv1.NewVMServiceClient(is).GetVM(t.Context(), ref); err != nil || vm.GetName() != domain.GetName() {
		t.Errorf("%v, %v", vm, err)
	}
}

// A plan of a VM that has become another's tells nothing of where it is now.
func TestAPlanOfWhatBecameAnothers(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	own := w.movable(acme)
	migrations := debvisorv1.NewMigrationServiceClient(w.caller("operator", acme.tenant).conn)
	plan, err := migrations.PrepareMigration(t.Context(), &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: own}})
	if err != nil || !plan.GetAllowed() {
		t.Fatalf("%v, %v", plan, err)
	}
	w.give(own, globex)
	record := proto.CloneOf(w.view.Current().VMs[own].Value)
	record.Node, record.Generation = "elsewhere", 7
	w.put(store.PutProto(store.VMKey(own), record))
	_, err = migrations.ExecutePlan(t.Context(), &debvisorv1.PlanRef{PlanId: plan.GetPlanId()})
	if code(err) != "PLAN_STALE" || !strings.Contains(err.Error(), "no such VM any more") || strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("got %v", err)
	}
}

// movable adds a VM that can go to any node.
func (w *world) movable(o *objects) string {
	w.t.Helper()
	w.own(o, also, "movable", func(_ *agentv1.Domain, vm *storev1.VM) {
		vm.Policy = encode(w.t, &debvisorv1.VMPolicy{Tenant: o.tenant})
	})
	return also
}

// An operator's operations on a tenant's VM are the tenant's to see and to end.
func TestWhatAnOperatorDoesToATenantsVM(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	vm := w.movable(acme)
	operator := debvisorv1.NewMigrationServiceClient(w.caller("operator", "").conn)
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	begun, err := operator.MigrateVM(noWait, spec(vm, "", "b"))
	if err != nil {
		t.Fatal(err)
	}
	ref := &debvisorv1.OperationRef{Id: begun.GetOperationId()}
	if _, err := debvisorv1.NewOperationServiceClient(w.caller("operator", globex.tenant).conn).CancelOperation(t.Context(), ref); code(err) != "OPERATION_NOT_FOUND" {
		t.Errorf("another tenant's: %v", err)
	}
	own := debvisorv1.NewOperationServiceClient(w.caller("operator", acme.tenant).conn)
	stream, err := own.WatchOperation(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if op, err := stream.Recv(); err != nil || op.GetPrincipal() != "operator-of-nobody" || op.GetMigration().GetVmId() != vm {
		t.Fatalf("%v, %v", op, err)
	}
	if op, err := own.CancelOperation(noWait, ref); err != nil || !op.GetCancelRequested() {
		t.Errorf("%v, %v", op, err)
	}
}

// TestHandlersReadScopes finds handlers that look for tenants' things in a
// snapshot, and not in a scope of it.
func TestHandlersReadScopes(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files, looked := gotoken.NewFileSet(), 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range file.Decls {
			f, ok := declaration.(*ast.FuncDecl)
			if !ok {
				continue
			}
			looked++
			for _, found := range unscoped(f) {
				// How many VMs run on a node is for everybody; what must be true among
				// all jobs is looked at among all; the cluster's status is for callers
				// that no tenant confines.
				if !slices.Contains([]string{"summary", "everyJob", "conflicts"}, f.Name.Name) {
					t.Errorf("%s: %s reads %s of a snapshot", files.Position(found.Pos()), f.Name.Name, found.Sel.Name)
				}
			}
		}
	}
	if looked < 100 {
		t.Errorf("only %d functions were looked at", looked)
	}
	bad, err := parser.ParseFile(files, "bad.go", `package x
		func f(c C) { s := c.View.Current(); _ = s.VMs[c.view.Current().FindVM(c.Scope().Snapshot().InUse[x])] }
		func g(s *cluster.Snapshot) { h(func(s *cluster.Snapshot) { s.Plans }) }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{3, 1} {
		if found := unscoped(bad.Decls[i].(*ast.FuncDecl)); len(found) != want {
			t.Errorf("what is wrong goes unnoticed: %v", found)
		}
	}
}

// unscoped are the places where a function reads of a snapshot what belongs to
// tenants. Snapshots are what Current and Snapshot give, and parameters.
func unscoped(f *ast.FuncDecl) []*ast.SelectorExpr {
	owned := []string{"VMs", "GoneVMs", "Operations", "Tasks", "Plans", "InUse", "Replications", "FindVM", "VMsOn", "TasksOf", "TasksOn", "OpenTasksOn", "ActiveOperations"}
	var snapshots []string
	var found []*ast.SelectorExpr
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			if star, ok := n.Type.(*ast.StarExpr); ok && selected(star.X, "Snapshot") {
				for _, name := range n.Names {
					snapshots = append(snapshots, name.Name)
				}
			}
		case *ast.AssignStmt:
			for i, right := range n.Rhs {
				if name, ok := n.Lhs[i].(*ast.Ident); ok && given(right) {
					snapshots = append(snapshots, name.Name)
				}
			}
		case *ast.SelectorExpr:
			name, ok := n.X.(*ast.Ident)
			if slices.Contains(owned, n.Sel.Name) && (ok && slices.Contains(snapshots, name.Name) || given(n.X)) {
				found = append(found, n)
			}
		}
		return true
	})
	return found
}

// given tells whether an expression is a call that gives a snapshot.
func given(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	return ok && (selected(call.Fun, "Current") || selected(call.Fun, "Snapshot"))
}

func selected(e ast.Expr, name string) bool {
	of, ok := e.(*ast.SelectorExpr)
	return ok && of.Sel.Name == name
}
