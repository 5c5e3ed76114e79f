package storage

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// systemStorage is who begins what this controller begins by itself.
const systemStorage = "system:storage"

// clone is the next step of making an image of a template's snapshot.
func (d *decision) clone() *step {
	c := d.op.GetCloneImage()
	template, image := &agentv1.RbdSnapshotID{}, &agentv1.RbdImageID{}
	if proto.Unmarshal(c.GetTemplate(), template) != nil || proto.Unmarshal(c.GetImage(), image) != nil || c.GetFsid() == "" || image.GetName() == "" {
		return d.broken("the operation does not say what is to be cloned")
	}
	what := fmt.Sprintf("%s to %s", cluster.RBDSnapshotPath(template), cluster.RBDPath(image))
	return d.carryOut(work{
		kind: taskRbdClone, fsid: c.GetFsid(), resource: cluster.RBDResource(c.GetFsid(), image), doing: "cloning " + what, near: c.GetNode(),
		spec: func(node string) (*agentv1.TaskSpec, *step) {
			c.Node, c.Attempt = node, c.GetAttempt()+1
			// The id is only known once it is there.
			target := &agentv1.RbdImageID{Pool: image.GetPool(), Namespace: image.GetNamespace(), Name: image.GetName()}
			return &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdClone{RbdClone: &agentv1.RbdClone{
				Template: template, Image: target, Operation: d.op.GetId(), MaxDepth: cluster.HardCloneDepth,
			}}}, nil
		},
		done: func(last *half) *step {
			out := last.outcome.GetRbd()
			if out.GetImage().GetId() == "" {
				return d.fail("INTERNAL", "the agent of "+last.task.GetNode()+" does not say what it has made")
			}
			c.Image, c.Depth, c.Node = encoded(out.GetImage()), out.GetDepth(), last.task.GetNode()
			s := d.succeed(fmt.Sprintf("%s is cloned, %d deep", what, out.GetDepth()))
			d.flattenAfter(s, c, out.GetImage())
			return s
		},
	})
}

// flattenAfter begins, with a clone's end, the flattening of one that is deep,
// unless somebody has begun that already.
func (d *decision) flattenAfter(s *step, c *storev1.CloneImage, image *agentv1.RbdImageID) {
	resource, id := cluster.RBDFlattenResource(c.GetFsid(), image), cluster.FollowUp(d.op.GetId(), KindFlatten)
	_, held := d.snapshot.InUse[resource]
	_, begun := d.snapshot.Operations[id]
	if c.GetDepth() <= cluster.SoftCloneDepth || held || begun {
		return
	}
	op := &storev1.Operation{
		Id: id, Kind: KindFlatten, State: task.OpPending, Resources: []string{resource}, Tenant: d.op.GetTenant(), Principal: systemStorage,
		Method: debvisorv1.StorageService_FlattenImage_FullMethodName, CreatedAt: timestamppb.New(d.now), TraceId: d.op.GetTraceId(),
		Traceparent: obs.Below(d.op.GetTraceparent(), d.op.GetId()),
		Detail: &storev1.Operation_ChangeImage{ChangeImage: &storev1.ChangeImage{
			Fsid: c.GetFsid(), Image: encoded(image), ClonedBy: d.op.GetId(), Node: c.GetNode(),
		}},
	}
	s.change.Require = append(s.change.Require, store.Absent(store.OperationKey(id)), store.Absent(store.InUseKey(resource)))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.OperationKey(id), op), store.PutString(store.InUseKey(resource), id))
	s.began = op
}

// change is the next step of flattening or removing a clone of ours.
func (d *decision) change() *step {
	c, image := d.op.GetChangeImage(), &agentv1.RbdImageID{}
	if proto.Unmarshal(c.GetImage(), image) != nil || c.GetFsid() == "" || image.GetId() == "" || c.GetClonedBy() == "" {
		return d.broken("the operation does not say which image is meant")
	}
	path := cluster.RBDPath(image)
	w := work{fsid: c.GetFsid(), images: []*agentv1.RbdImageID{image}, near: c.GetNode()}
	kind := &agentv1.TaskSpec{}
	ended := ""
	if d.op.GetKind() == KindFlatten {
		w.kind, w.doing, w.resource, ended = taskRbdFlatten, "flattening "+path, cluster.RBDFlattenResource(c.GetFsid(), image), path+" is flattened"
		kind.Kind = &agentv1.TaskSpec_RbdFlatten{RbdFlatten: &agentv1.RbdFlatten{Image: image, ClonedBy: c.GetClonedBy()}}
	} else {
		w.kind, w.doing, w.resource, ended = taskRbdImageRemove, "removing "+path, cluster.RBDResource(c.GetFsid(), image), path+" is removed"
		kind.Kind = &agentv1.TaskSpec_RbdImageRemove{RbdImageRemove: &agentv1.RbdImageRemove{Image: image, ClonedBy: c.GetClonedBy()}}
	}
	w.spec = func(node string) (*agentv1.TaskSpec, *step) {
		c.Node, c.Attempt = node, c.GetAttempt()+1
		return kind, nil
	}
	w.done = func(*half) *step { return d.succeed(ended) }
	return d.carryOut(w)
}
