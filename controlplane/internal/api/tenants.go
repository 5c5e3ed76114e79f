package api

import (
	"context"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// scopeOf is what of a snapshot the caller of a call may know. Handlers look for
// VMs, operations and plans in it and nowhere else.
func scopeOf(ctx context.Context, s *cluster.Snapshot) cluster.Scope {
	return s.Within(tenantOf(ctx))
}

// tenantOf is the tenant that the caller of a call is confined to; empty: to
// none. Outside of a chain nobody calls.
func tenantOf(ctx context.Context) string {
	if grant := grantOf(ctx); grant != nil {
		return grant.Tenant()
	}
	return ""
}

// awaitEnd waits for the end of an operation and gives it as its caller may read it.
func awaitEnd(ctx context.Context, view *store.View, ops *operations.Operations, id string) (*storev1.Operation, error) {
	op, err := ops.Wait(ctx, id)
	if err != nil {
		return nil, err
	}
	return readable(scopeOf(ctx, view.Current()), op), nil
}

// readable is an operation as the scope's callers may read it. What we write
// about a tenant's VM names nothing of others; but its texts may quote libvirt,
// which knows no tenants.
func readable(scope cluster.Scope, op *storev1.Operation) *storev1.Operation {
	if !scope.Confined() {
		return op
	}
	op = proto.CloneOf(op)
	own := func(name string) bool {
		return name == op.GetPower().GetVmName() || name == op.GetMigrate().GetVmName() || len(scope.FindVM(name)) > 0
	}
	op.Step, op.ErrorMessage = quote(scope, own, op.GetStep()), quote(scope, own, op.GetErrorMessage())
	for key, text := range op.GetErrorContext() {
		op.ErrorContext[key] = quote(scope, own, text)
	}
	readableStorage(scope, op)
	if _, ok := scope.Operation(op.GetParent()); !ok {
		op.Parent = ""
	}
	if _, ok := scope.Plan(op.GetMigrate().GetPlanId()); op.GetMigrate() != nil && !ok {
		op.GetMigrate().PlanId = ""
	}
	return op
}

// What names things in texts: ids, which nobody can guess, and libvirt's words
// for domains ("domain 'web' already exists with uuid …", "PCI device … is in
// use by driver QEMU, domain web").
var (
	idInText     = regexp.MustCompile(`[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\b(?:op|plan)-[0-9a-z]{26}\b`) //nolint:gochecknoglobals // constant
	domainInText = regexp.MustCompile(`(domain ')([^']*)'|(by driver [^,]*, domain )([^\s,;:]+)`)                          //nolint:gochecknoglobals // constant
)

// hidden is in the place of a name that the caller may not know.
const hidden = "(another's)"

// quote leaves out of a text what names a thing that is not in the scope.
func quote(scope cluster.Scope, own func(name string) bool, text string) string {
	text = idInText.ReplaceAllStringFunc(text, func(id string) string {
		if named(scope, id) || !named(scope.Snapshot().Within(""), id) {
			return id
		}
		return hidden
	})
	var out strings.Builder
	end := 0
	for _, at := range domainInText.FindAllStringSubmatchIndex(text, -1) {
		from, to := max(at[4], at[8]), max(at[5], at[9])
		if own(text[from:to]) {
			continue
		}
		out.WriteString(text[end:from])
		out.WriteString(hidden)
		end = to
	}
	out.WriteString(text[end:])
	return out.String()
}

// named tells whether an id is that of anything in the scope.
func named(scope cluster.Scope, id string) bool {
	_, vm := scope.VM(strings.ToLower(id))
	_, operation := scope.Operation(id)
	_, plan := scope.Plan(id)
	return vm || operation || plan
}
