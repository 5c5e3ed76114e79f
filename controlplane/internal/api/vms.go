package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

type vmService struct {
	debvisorv1.UnimplementedVMServiceServer
	view       *store.View
	operations *operations.Operations
	authz      *authz.Authorizer
}

// ListVMs answers the VMs that pass the filter, ordered by name.
func (s *vmService) ListVMs(ctx context.Context, filter *debvisorv1.VMFilter) (*debvisorv1.VMList, error) {
	scope := scopeOf(ctx, s.view.Current())
	node, err := findNode(scope.Snapshot(), filter.GetNode())
	if err != nil {
		return nil, err
	}
	list := &debvisorv1.VMList{}
	for entry := range scope.VMs() {
		vm := entry.Value
		if (node == "" || vm.GetNode() == node) && (filter.GetName() == "" || vm.GetName() == filter.GetName()) {
			list.Vms = append(list.Vms, vmMessage(scope, vm))
		}
	}
	slices.SortFunc(list.GetVms(), func(a, b *debvisorv1.VM) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return list, nil
}

// GetVM answers one VM.
func (s *vmService) GetVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	scope := scopeOf(ctx, s.view.Current())
	vm, err := findVM(scope, ref)
	if err != nil {
		return nil, err
	}
	return vmMessage(scope, vm), nil
}

// SetVMPolicy replaces a VM's policy. It stays with the VM wherever it goes, and
// for as long as inventory remembers a VM that no node has any more. A caller
// that is confined to a tenant cannot give a VM away, and nobody can give it to
// a tenant that does not exist: InvalidArgument.
func (s *vmService) SetVMPolicy(ctx context.Context, req *debvisorv1.VMPolicyRequest) (*debvisorv1.VM, error) {
	policy, err := normal(req.GetPolicy(), tenantOf(ctx))
	if err != nil {
		return nil, err
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(policy)
	if err != nil {
		return nil, fmt.Errorf("encoding the policy: %w", err)
	}
	return s.change(ctx, "vm.policy", req, req.GetVm(), func(snapshot *cluster.Snapshot, vm *storev1.VM) (store.Change, error) {
		before := &debvisorv1.VMPolicy{}
		if err := proto.Unmarshal(vm.GetPolicy(), before); err != nil {
			before = &debvisorv1.VMPolicy{} // of a later version, or broken: it is replaced
		}
		vm.Policy = encoded
		if tenant := policy.GetTenant(); tenant != "" && tenant != before.GetTenant() {
			return access.World{Snapshot: snapshot, Policy: s.authz}.Joins("policy.tenant", tenant)
		}
		return store.Change{}, nil
	})
}

// SetVMAutostart says whether the VM is started after its node has booted.
func (s *vmService) SetVMAutostart(ctx context.Context, req *debvisorv1.VMAutostartRequest) (*debvisorv1.VM, error) {
	return s.change(ctx, "vm.set-autostart", req, req.GetVm(), func(_ *cluster.Snapshot, vm *storev1.VM) (store.Change, error) {
		vm.Autostart = req.GetAutostart()
		return store.Change{}, nil
	})
}

// normal is a policy as it is kept: with every level said, and no group twice.
// That of a caller who is confined to a tenant names this one, whether it says
// so or not.
func normal(policy *debvisorv1.VMPolicy, tenant string) (*debvisorv1.VMPolicy, error) {
	policy = proto.CloneOf(policy)
	if tenant != "" {
		if given := policy.GetTenant(); given != "" && given != tenant {
			return nil, errdefs.Field("policy.tenant", clip(given), strconv.Quote(tenant)+", which you are confined to, or nothing")
		}
		policy.Tenant = tenant
	}
	seen := map[string]bool{}
	for i, apart := range policy.GetAntiAffinity() {
		if seen[apart.GetGroup()] {
			return nil, errdefs.Field(fmt.Sprintf("policy.anti_affinity[%d].group", i), clip(apart.GetGroup()), "each group once")
		}
		seen[apart.GetGroup()] = true
		if apart.GetLevel() == debvisorv1.SpreadLevel_SPREAD_LEVEL_UNSPECIFIED {
			apart.Level = debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE
		}
	}
	return policy, nil
}

// edit changes a VM's record; what it returns is changed with it.
type edit func(*cluster.Snapshot, *storev1.VM) (store.Change, error)

// change changes a VM's record in one transaction, with its operation, and
// answers the VM as it is then.
func (s *vmService) change(
	ctx context.Context, kind string, request proto.Message, ref *debvisorv1.VMRef, edit edit,
) (*debvisorv1.VM, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, kind, request)
	if err != nil {
		return nil, err
	}
	op, err := s.operations.Repeated(spec)
	if op == nil && err == nil {
		var vm *storev1.VM
		if vm, err = findVM(scope, ref); err != nil {
			return nil, err
		}
		uuid := vm.GetUuid()
		spec.Resources = []string{vmResource(uuid)}
		op, err = s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
			return changedVM(snapshot, scopeOf(ctx, snapshot), uuid, edit)
		})
	}
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return s.GetVM(ctx, ref)
}

// changedVM is the change of one VM's record.
func changedVM(snapshot *cluster.Snapshot, scope cluster.Scope, uuid string, edit edit) (store.Change, error) {
	entry, ok := scope.VM(uuid)
	if !ok {
		return store.Change{}, unknownVM(&debvisorv1.VMRef{VmId: uuid})
	}
	if err := noConflict(entry.Value); err != nil {
		return store.Change{}, err
	}
	vm := proto.CloneOf(entry.Value)
	change, err := edit(snapshot, vm)
	if err != nil {
		return store.Change{}, err
	}
	key := store.VMKey(uuid)
	change.Require = append(change.Require, store.Unchanged(key, entry.ModRevision))
	change.Puts = append(change.Puts, store.PutProto(key, vm))
	return change, nil
}
