package storage

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// createImages is the next step of taking snapshots of images, which is one task:
// of several they are a group's, of one moment.
func (d *decision) createImages() *step {
	t := d.op.GetTakeSnapshots()
	images, err := imagesOf(t.GetImages())
	if err != nil || t.GetFsid() == "" || t.GetName() == "" {
		return d.broken("the operation does not say of what images snapshots are to be taken")
	}
	froze(t, d.all(taskRbdSnapshot))
	w := work{
		kind: taskRbdSnapshot, fsid: t.GetFsid(), resource: cluster.RBDResource(t.GetFsid(), images[0]), doing: "taking snapshots",
		images: images, near: t.GetNode(),
	}
	if freezes(t) {
		w.node, _ = d.freezesOn(t)
	}
	w.spec = func(node string) (*agentv1.TaskSpec, *step) {
		freeze, s := d.freeze(t, node)
		if s != nil {
			return nil, s
		}
		t.Node = node
		create := &agentv1.RbdSnapshotCreate{
			Images: images, Name: t.GetName(), Operation: d.op.GetId(), Label: t.GetLabel(), Template: t.GetTemplate(), Freeze: freeze,
		}
		if len(images) > 1 {
			create.Set, create.Group = d.op.GetId(), groupOf(t.GetVmUuid(), images)
		}
		return &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdSnapshotCreate{RbdSnapshotCreate: create}}, nil
	}
	w.done = func(last *half) *step {
		t.Made, t.Node = nil, last.task.GetNode()
		for _, made := range last.outcome.GetRbd().GetMade() {
			t.Made = append(t.Made, encoded(made))
		}
		return d.succeed(fmt.Sprintf("snapshots %s of %s are taken by %s", t.GetName(), strings.Join(paths(images), ", "), t.GetNode()))
	}
	return d.carryOut(w)
}

// groupOf names the group that a set's images are in: the VM's own, or one of these
// very images, so that each set of them finds it again.
func groupOf(vm string, images []*agentv1.RbdImageID) string {
	if vm != "" {
		return "debvisor-" + vm
	}
	ids := make([]string, 0, len(images))
	for _, image := range images {
		ids = append(ids, image.GetPool()+"/"+image.GetId())
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(ids, "\x00")))
	return "debvisor-set-" + hex.EncodeToString(sum[:8])
}
