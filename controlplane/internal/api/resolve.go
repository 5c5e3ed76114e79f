package api

import (
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// findVM gives the VM that a reference means in a scope: a UUID, or a name where
// it is unambiguous there. Errors: NotFound; FailedPrecondition with the UUIDs of all VMs
// of that name.
func findVM(scope cluster.Scope, ref *debvisorv1.VMRef) (*storev1.VM, error) {
	found := scope.FindVM(ref.GetVmId())
	if len(found) == 0 {
		found = scope.FindVM(strings.ToLower(ref.GetVmId())) // libvirt writes UUIDs in lower case
	}
	switch len(found) {
	case 0:
		return nil, unknownVM(ref)
	case 1:
		vm, _ := scope.VM(found[0])
		return vm.Value, nil
	}
	return nil, ambiguousVM(ref, found)
}

func unknownVM(ref *debvisorv1.VMRef) error {
	return errdefs.New(errdefs.NotFound, "VM_NOT_FOUND", "no VM has the UUID or the name %q", clip(ref.GetVmId())).
		With("vm", clip(ref.GetVmId()))
}

func ambiguousVM(ref *debvisorv1.VMRef, uuids []string) error {
	return errdefs.New(errdefs.FailedPrecondition, "VM_NAME_AMBIGUOUS",
		"%d VMs are called %q; name one by its UUID: %s", len(uuids), ref.GetVmId(), strings.Join(uuids, ", ")).
		With("vm", ref.GetVmId()).With("uuids", strings.Join(uuids, ","))
}

// findNode gives the id of the node that a reference means, "" for an empty
// reference. The error is NotFound.
func findNode(s *cluster.Snapshot, ref *debvisorv1.NodeRef) (string, error) {
	id := ref.GetNodeId().GetId()
	if id == "" {
		return "", nil
	}
	if _, ok := s.Nodes[id]; !ok {
		return "", unknownNode(id)
	}
	return id, nil
}

// needNode is findNode where a reference must not be empty.
func needNode(s *cluster.Snapshot, field string, ref *debvisorv1.NodeRef) (cluster.Entry[*storev1.Node], error) {
	id, err := findNode(s, ref)
	if err != nil {
		return cluster.Entry[*storev1.Node]{}, err
	}
	if id == "" {
		return cluster.Entry[*storev1.Node]{}, errdefs.Field(field, "", "the id of a node")
	}
	return s.Nodes[id], nil
}

func unknownNode(id string) error {
	return errdefs.New(errdefs.NotFound, "NODE_NOT_FOUND", "no node is called %q", clip(id)).With("node", clip(id))
}
