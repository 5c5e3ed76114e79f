package api

import (
	"cmp"
	"context"
	"slices"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

type vmService struct {
	debvisorv1.UnimplementedVMServiceServer
	view *store.View
}

// ListVMs answers the VMs that pass the filter, ordered by name.
func (s *vmService) ListVMs(_ context.Context, filter *debvisorv1.VMFilter) (*debvisorv1.VMList, error) {
	snapshot := s.view.Current()
	node, err := findNode(snapshot, filter.GetNode())
	if err != nil {
		return nil, err
	}
	list := &debvisorv1.VMList{}
	for _, entry := range snapshot.VMs {
		vm := entry.Value
		if (node == "" || vm.GetNode() == node) && (filter.GetName() == "" || vm.GetName() == filter.GetName()) {
			list.Vms = append(list.Vms, vmMessage(snapshot, vm))
		}
	}
	slices.SortFunc(list.GetVms(), func(a, b *debvisorv1.VM) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return list, nil
}

// GetVM answers one VM.
func (s *vmService) GetVM(_ context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	snapshot := s.view.Current()
	vm, err := findVM(snapshot, ref)
	if err != nil {
		return nil, err
	}
	return vmMessage(snapshot, vm), nil
}
