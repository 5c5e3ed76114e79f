package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

type migrationService struct {
	debvisorv1.UnimplementedMigrationServiceServer
	view       *store.View
	operations *operations.Operations
	desk       *plans.Desk
	authz      *authz.Authorizer
	asker      Asker
}

// reportWait is how long a node may take to report that a domain is gone.
const reportWait = 2 * time.Second

// move is what both calls say of a migration.
type move interface {
	GetVm() *debvisorv1.VMRef
	GetSource() *debvisorv1.NodeRef
	GetTarget() *debvisorv1.NodeRef
}

// resolve gives the UUID of the VM that a move is about and the ids of its
// nodes. The error is NotFound for a VM or a node that does not exist, or that
// is not in the scope; FailedPrecondition for an ambiguous name.
func resolve(scope cluster.Scope, m move) (vm, source, target string, err error) {
	found, err := findVM(scope, m.GetVm())
	if err != nil {
		return "", "", "", err
	}
	if source, err = findNode(scope.Snapshot(), m.GetSource()); err != nil {
		return "", "", "", err
	}
	target, err = findNode(scope.Snapshot(), m.GetTarget())
	return found.GetUuid(), source, target, err
}

// MigrateVM moves a VM and waits until it runs on the target and the source has
// let go.
func (s *migrationService) MigrateVM(ctx context.Context, req *debvisorv1.VMMigrateSpec) (*debvisorv1.MigrationResult, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if !wait {
		return &debvisorv1.MigrationResult{
			Status: debvisorv1.StatusCode_STATUS_OK, OperationId: id,
			Message: fmt.Sprintf("operation %s moves the VM; watch it for its end", id),
		}, nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	return migrationResult(op)
}

// begin submits the migration, unless an earlier request with the same id has.
func (s *migrationService) begin(ctx context.Context, req *debvisorv1.VMMigrateSpec) (string, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), plans.KindMigrate, req)
	if err != nil {
		return "", err
	}
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return op.GetId(), err
	}
	result, err := s.judge(ctx, req)
	if err == nil && !result.Allowed {
		err = refusal(&result)
	}
	if err != nil {
		// The VM may be held by what another replica has just begun for this
		// very request.
		if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
			return op.GetId(), repeated
		}
		return "", err
	}
	spec.Resources = []string{vmResource(result.VM)}
	spec.Migrate = &storev1.Migrate{
		VmUuid: result.VM, VmName: result.Name, Source: result.Source,
		Target: req.GetTarget().GetNodeId().GetId(), AllowDowntime: req.GetAllowDowntime(),
	}
	if spec.Migrate.Options, err = encodeOptions(req.GetOptions()); err != nil {
		return "", err
	}
	return s.operations.Submit(ctx, spec)
}

// encodeOptions gives options as a record holds them; nothing for none.
func encodeOptions(options *debvisorv1.MigrateOptions) ([]byte, error) {
	if options == nil {
		return nil, nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(options)
	if err != nil {
		return nil, fmt.Errorf("encoding a migration's options: %w", err)
	}
	return b, nil
}

// judge plans the move on what this replica knows: CPUs, which only agents can
// compare, are left to the leader. Aborted, naming it, where another operation holds the
// VM: that is what the caller should hear of first. A node from which the VM
// has just moved away is given time to say that it has let go of it.
func (s *migrationService) judge(ctx context.Context, req *debvisorv1.VMMigrateSpec) (planner.Result, error) {
	settled := time.NewTimer(reportWait)
	defer settled.Stop()
	for {
		changed := s.view.Changed()
		scope := scopeOf(ctx, s.view.Current())
		vm, source, target, err := resolve(scope, req)
		if err != nil {
			return planner.Result{}, err
		}
		result := planner.Plan(scope.Snapshot(), planner.Request{
			VM: vm, Source: source, Target: target, AllowDowntime: req.GetAllowDowntime(), Options: req.GetOptions(), Tenant: scope.Tenant(),
		})
		if err := operations.InUse(scope, vmResource(result.VM)); err != nil {
			return result, err
		}
		if !result.Only(planner.UUIDClash) {
			return result, nil
		}
		select {
		case <-changed:
		case <-settled.C:
			return result, nil
		case <-ctx.Done():
			return result, ctx.Err()
		}
	}
}
