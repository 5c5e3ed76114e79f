package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// FlattenImage copies into a clone of ours what it shares with its parents, and
// waits for that; it can be cancelled, and goes on where it was when it is asked
// for again.
func (s *storageService) FlattenImage(ctx context.Context, ref *debvisorv1.ImageRef) (*debvisorv1.ImageResult, error) {
	return s.changeImage(ctx, kindFlatten, ref, func(_ cluster.Scope, found image, spec *operations.Spec) error {
		if found.known.GetParent() == nil {
			return errdefs.New(errdefs.FailedPrecondition, "NOT_A_CLONE", "%s shares nothing with a parent: there is nothing to flatten", found.path()).With("image", found.path())
		}
		spec.Resources = []string{cluster.RBDFlattenResource(found.fsid, found.id)}
		return nil
	})
}

// DeleteImage removes a clone of ours, and waits until it is gone.
// FailedPrecondition, naming them, where it has snapshots or clones, or somebody
// has it open.
func (s *storageService) DeleteImage(ctx context.Context, ref *debvisorv1.ImageRef) (*debvisorv1.ImageResult, error) {
	return s.changeImage(ctx, kindImage, ref, func(scope cluster.Scope, found image, spec *operations.Spec) error {
		spec.Resources = []string{cluster.RBDResource(found.fsid, found.id), cluster.RBDFlattenResource(found.fsid, found.id)}
		return s.removableImage(scope, found)
	})
}

// changeImage submits an operation on a clone of ours.
func (s *storageService) changeImage(
	ctx context.Context, kind string, ref *debvisorv1.ImageRef, fill func(cluster.Scope, image, *operations.Spec) error,
) (*debvisorv1.ImageResult, error) {
	op, err := s.submit(ctx, kind, ref, func(scope cluster.Scope, spec *operations.Spec) error {
		found, err := s.findImage(ctx, scope, "image", ref.GetImage())
		if err != nil {
			return err
		}
		if found.known.GetOperation() == "" {
			return errdefs.New(errdefs.FailedPrecondition, "NOT_OURS", "%s is no clone that DebVisor has made, and is left alone", found.path()).With("image", found.path())
		}
		id, err := encodeMessage(found.id)
		if err != nil {
			return fmt.Errorf("encoding an image's name: %w", err)
		}
		spec.Change = &storev1.ChangeImage{Fsid: found.fsid, Image: id, ClonedBy: found.known.GetOperation(), Node: found.node}
		spec.Owner = s.ownerOfImages(scope.Snapshot(), found.id)
		return fill(scope, found, spec)
	})
	if err != nil {
		return nil, err
	}
	path := cluster.RBDPath(decode(op.GetChangeImage().GetImage(), &agentv1.RbdImageID{}))
	result := &debvisorv1.ImageResult{Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), Message: fmt.Sprintf("operation %s does it; watch it for its end", op.GetId())}
	if op.GetState() == task.OpSucceeded {
		result.Message = path + map[string]string{kindFlatten: " is flattened", kindImage: " is removed"}[kind]
	}
	return result, nil
}

// removableImage refuses to remove an image that something needs, and names it.
func (s *storageService) removableImage(scope cluster.Scope, found image) error {
	var snapshots, clones []string
	for _, one := range found.snapshots {
		snapshots = append(snapshots, one.GetSnapshot().GetName())
	}
	for _, child := range found.known.GetChildren() {
		clones = append(clones, s.shownImage(scope, child))
	}
	refused := func(code, what string, names []string) error {
		return errdefs.New(errdefs.FailedPrecondition, code, "%s %s: %s", found.path(), what, clipTo(strings.Join(someOf(names), ", "), maxListText)).With("image", found.path())
	}
	users := imageUsers(scope, scope.Snapshot().Within(""), found.fsid)[found.path()]
	switch {
	case len(clones) > 0:
		return refused("IMAGE_HAS_CLONES", "has clones", clones)
	case len(snapshots) > 0:
		return refused("IMAGE_HAS_SNAPSHOTS", "has snapshots", snapshots)
	case len(users) > 0:
		return refused("IMAGE_IN_USE", "is a disk of VMs", users)
	}
	return nil
}

// imageUsers gives, by images' full names, the VMs of all that have them as disks,
// those that are not in the scope without their UUIDs.
func imageUsers(scope, all cluster.Scope, fsid string) map[string][]string {
	users := map[string][]string{}
	for node := range scope.Snapshot().Ceph {
		if inventory, ok := scope.Snapshot().CephOf(node); !ok || inventory.GetFsid() != fsid {
			continue
		}
		for _, entry := range all.VMsOn(node) {
			id := entry.Value.GetUuid()
			if _, own := scope.VM(id); !own {
				id = hidden
			}
			for _, disk := range vmDisks(entry.Value.GetDomain()) {
				if path := cluster.RBDOfDiskIn(fsid, disk); path != "" && !slices.Contains(users[path], id) {
					users[path] = append(users[path], id)
				}
			}
		}
	}
	return users
}
