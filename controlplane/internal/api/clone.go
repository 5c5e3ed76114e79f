package api

import (
	"context"
	"fmt"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations on images.
const (
	kindClone   = "image.clone"
	kindFlatten = "image.flatten"
	kindImage   = "image.delete"
)

// cloning is a clone as it is planned.
type cloning struct {
	fsid, node string
	template   *agentv1.RbdSnapshot
	target     *agentv1.RbdImageID
	depth      uint32
	// against is everything that speaks against it: codes, and for people.
	codes, against []string
}

func (c *cloning) refuse(code, format string, args ...any) {
	c.codes, c.against = append(c.codes, code), append(c.against, fmt.Sprintf(format, args...))
}

// planClone finds what a cloning is about, and everything against it. Errors are
// what cannot be told: names that mean nothing, a template that does not exist.
func (s *storageService) planClone(ctx context.Context, scope cluster.Scope, req *debvisorv1.RbdCloneRequest) (*cloning, error) {
	ref := req.GetTemplateSnapshot()
	if err := cluster.RBDSnapshot("template_snapshot.snapshot_name", ref.GetSnapshotName()); err != nil {
		return nil, err
	}
	// Both must be the caller's before anything is asked.
	if _, err := s.nameImage(scope, "template_snapshot.dataset", ref.GetDataset()); err != nil {
		return nil, err
	}
	target, err := s.nameImage(scope, "new_image", cloneTarget(req))
	if err != nil {
		return nil, err
	}
	from, snapshot, err := s.findImageSnapshot(ctx, scope, "template_snapshot.dataset", ref)
	if err != nil {
		return nil, err
	}
	c := &cloning{fsid: from.fsid, node: from.node, template: snapshot, target: target.id, depth: from.known.GetDepth() + 1}
	if target.fsid != from.fsid {
		return nil, errdefs.New(errdefs.FailedPrecondition, "SEVERAL_CLUSTERS", "%s and %s are in different Ceph clusters: no clone leads from one to the other", from.path(), target.path())
	}
	if !snapshot.GetTemplate() && !snapshot.GetProtected() {
		c.refuse("NOT_A_TEMPLATE", "%s is no template: clones are made of template snapshots, and of those that are protected in RBD", cluster.RBDSnapshotPath(snapshot.GetSnapshot()))
	}
	if c.depth > cluster.HardCloneDepth {
		c.refuse("CLONE_TOO_DEEP", "the clone would have %d parents one above the other, and at most %d may be: flatten %s first", c.depth, cluster.HardCloneDepth, from.path())
	}
	there, err := s.askCeph(ctx, scope, c.fsid, c.node, &agentv1.ListRbd{Images: []*agentv1.RbdImageID{target.id}})
	if err != nil {
		return nil, err
	}
	if len(there.GetImages()) > 0 {
		c.refuse("IMAGE_EXISTS", "there is an image %s already", target.path())
	}
	return c, nil
}

// cloneTarget is the new image, in the template's Ceph cluster where it names no
// node by itself.
func cloneTarget(req *debvisorv1.RbdCloneRequest) *debvisorv1.DatasetRef {
	target := req.GetNewImage()
	if target.GetNode().GetNodeId().GetId() != "" {
		return target
	}
	return &debvisorv1.DatasetRef{Backend: target.GetBackend(), Pool: target.GetPool(), Name: target.GetName(), Node: req.GetTemplateSnapshot().GetDataset().GetNode()}
}

// CloneRbdFromTemplate makes an image from a template's snapshot, in any pool and
// namespace of its Ceph cluster, and waits until it is there. FailedPrecondition,
// naming everything against it. One that gets deeper than the soft limit is
// flattened in the background, by an operation of its own.
func (s *storageService) CloneRbdFromTemplate(ctx context.Context, req *debvisorv1.RbdCloneRequest) (*debvisorv1.CloneResult, error) {
	op, err := s.submit(ctx, kindClone, req, func(scope cluster.Scope, spec *operations.Spec) error {
		c, err := s.planClone(ctx, scope, req)
		if err != nil {
			return err
		}
		if len(c.against) > 0 {
			kind := errdefs.FailedPrecondition
			if c.codes[0] == "IMAGE_EXISTS" {
				kind = errdefs.AlreadyExists
			}
			return errdefs.New(kind, c.codes[0], "%s", strings.Join(c.against, "; ")).With("reasons", strings.Join(c.codes, ",")).
				With("image", cluster.RBDPath(c.target))
		}
		template, err := encodeMessage(c.template.GetSnapshot())
		if err != nil {
			return fmt.Errorf("encoding a template's name: %w", err)
		}
		target, err := encodeMessage(c.target)
		if err != nil {
			return fmt.Errorf("encoding an image's name: %w", err)
		}
		spec.Clone = &storev1.CloneImage{Fsid: c.fsid, Template: template, Image: target, Node: c.node}
		spec.Owner = s.ownerOfImages(scope.Snapshot(), c.template.GetSnapshot().GetImage(), c.target)
		spec.Resources = []string{cluster.RBDResource(c.fsid, c.target)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := op.GetCloneImage()
	id := decode(c.GetImage(), &agentv1.RbdImageID{})
	result := &debvisorv1.CloneResult{
		Status: debvisorv1.StatusCode_STATUS_OK, Clone: imageRef(id), OperationId: op.GetId(), Depth: c.GetDepth(),
		FlattenOperationId: s.flattens(scopeOf(ctx, s.view.Current()), op), Message: fmt.Sprintf("operation %s makes it; watch it for its end", op.GetId()),
	}
	if op.GetState() == task.OpSucceeded {
		result.Message = fmt.Sprintf("%s is cloned of %s", cluster.RBDPath(id), cluster.RBDSnapshotPath(decode(c.GetTemplate(), &agentv1.RbdSnapshotID{})))
	}
	return result, nil
}

// flattens is the operation that was begun to flatten a clone; empty: none was.
func (s *storageService) flattens(scope cluster.Scope, op *storev1.Operation) string {
	id := cluster.FollowUp(op.GetId(), kindFlatten)
	if _, ok := scope.Operation(id); !ok {
		return ""
	}
	return id
}

// PlanClone is the dry run of CloneRbdFromTemplate.
func (s *storageService) PlanClone(ctx context.Context, req *debvisorv1.RbdCloneRequest) (*debvisorv1.ClonePlan, error) {
	scope := scopeOf(ctx, s.view.Current())
	c, err := s.planClone(ctx, scope, req)
	if err != nil {
		return nil, err
	}
	for _, resource := range []string{cluster.RBDResource(c.fsid, c.target)} {
		if err := operations.InUse(scope, resource); err != nil {
			c.refuse("IN_USE", "%v", err)
		}
	}
	return &debvisorv1.ClonePlan{
		Allowed: len(c.against) == 0, Reasons: c.against, Clone: imageRef(c.target), SizeBytes: c.template.GetSizeBytes(), Depth: c.depth,
		Flattened: c.depth > cluster.SoftCloneDepth && c.depth <= cluster.HardCloneDepth,
	}, nil
}

// imageDetails give what is particular to an operation on an image; nil for others.
func imageDetails(scope cluster.Scope, op *storev1.Operation) *debvisorv1.ImageDetails {
	if c := op.GetCloneImage(); c != nil {
		d := &debvisorv1.ImageDetails{
			Node: nodeRef(c.GetNode()), Image: cluster.RBDPath(decode(c.GetImage(), &agentv1.RbdImageID{})), Depth: c.GetDepth(),
			Template: cluster.RBDSnapshotPath(decode(c.GetTemplate(), &agentv1.RbdSnapshotID{})),
		}
		if id := cluster.FollowUp(op.GetId(), kindFlatten); op.GetState() == task.OpSucceeded {
			if _, ok := scope.Operation(id); ok {
				d.FlattenOperationId = id
			}
		}
		return d
	}
	if c := op.GetChangeImage(); c != nil {
		return &debvisorv1.ImageDetails{Node: nodeRef(c.GetNode()), Image: cluster.RBDPath(decode(c.GetImage(), &agentv1.RbdImageID{}))}
	}
	return nil
}
