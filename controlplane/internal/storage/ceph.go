package storage

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// work is one task in a Ceph cluster that has to succeed once: any node that sees
// the cluster may do it, and what was done before is found again, whoever did it.
type work struct {
	kind, fsid, resource string
	// doing is what it does, for people.
	doing string
	// node does it and no other; empty: one that has a VM on any of images, else near,
	// else any.
	node   string
	images []*agentv1.RbdImageID
	near   string
	spec   func(node string) (*agentv1.TaskSpec, *step)
	done   func(last *half) *step
}

// carryOut is the next step of an operation that is one work.
func (d *decision) carryOut(w work) *step {
	tries := d.all(w.kind)
	if n := len(tries); n > 0 {
		last := tries[n-1]
		switch {
		case last.ended() && judge(last) == done:
			return w.done(last)
		case !last.ended() && d.op.GetCancelRequested():
			s, _ := d.stop("cancelling")
			return s
		case !last.ended():
			return d.showProgress(last, w.doing+" on "+last.task.GetNode()+d.unheard(last.task.GetNode()))
		}
		if s := d.tryAgain(tries); s != nil {
			return s
		}
	}
	switch {
	case d.op.GetCancelRequested() && len(tries) == 0:
		return d.cancelled("cancelled as asked; nothing was done")
	case d.op.GetCancelRequested():
		return d.cancelled("cancelled as asked; what was done by then stays")
	case len(tries) > 0 && d.now.Before(ends(tries).Add(d.pace.after(tries))):
		_, message := tries[len(tries)-1].why()
		return d.note("waiting to try again: " + message)
	}
	node, why := d.place(w)
	if why != "" {
		return d.note(why)
	}
	spec, s := w.spec(node)
	if s != nil {
		return s
	}
	return d.order(stepTask, strconv.Itoa(len(tries)+1), w.kind, node, w.resource, spec, w.doing+" on "+node)
}

// place says which node does a work; why is what has to pass before any can.
func (d *decision) place(w work) (node, why string) {
	nodes, why := d.snapshot.CephNodes(w.fsid)
	switch {
	case w.node != "" && slices.Contains(nodes, w.node):
		return w.node, ""
	case w.node != "":
		return "", "waiting for " + w.node + " and its Ceph: " + cmp.Or(why, "it does not see the Ceph cluster "+w.fsid+", or is not heard")
	case len(nodes) == 0:
		return "", "waiting for a node with Ceph: " + why
	}
	for _, image := range w.images {
		for _, user := range d.snapshot.CephUsers(w.fsid, cluster.RBDPath(image)) {
			if slices.Contains(nodes, user) {
				return user, ""
			}
		}
	}
	if slices.Contains(nodes, w.near) {
		return w.near, ""
	}
	// Operations spread over all, each always to the same as long as that is there.
	return slices.MaxFunc(nodes, func(a, b string) int { return cmp.Compare(d.weight(a), d.weight(b)) }), ""
}

// weight is a node's for the operation.
func (d *decision) weight(node string) string {
	sum := sha256.Sum256([]byte(d.op.GetId() + "\x00" + node))
	return string(sum[:])
}

// showProgress copies a task's figures, objects, to the operation, once a second.
func (d *decision) showProgress(h *half, text string) *step {
	p := h.progress.GetRbd()
	if p.GetTotal() == 0 {
		return d.note(text)
	}
	was := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(d.op.GetProgress(), was); err != nil {
		was.Reset()
	}
	now := &debvisorv1.OperationProgress{Percent: 100 * float64(min(p.GetDone(), p.GetTotal())) / float64(p.GetTotal())}
	soon := was.GetUpdatedAt() != nil && d.now.Unix()-was.GetUpdatedAt().GetSeconds() < 1
	if d.op.GetStep() == text && (was.GetPercent() == now.GetPercent() || soon) {
		return nil
	}
	now.UpdatedAt = &debvisorv1.Timestamp{Seconds: d.now.Unix(), Nanos: int32(d.now.Nanosecond())} //nolint:gosec // below 1e9
	d.op.Progress, d.op.Step = encoded(now), text
	return d.commit(stepProgress, text)
}

// imagesOf reads images of a record.
func imagesOf(records [][]byte) ([]*agentv1.RbdImageID, error) {
	all := make([]*agentv1.RbdImageID, 0, len(records))
	for _, b := range records {
		id := &agentv1.RbdImageID{}
		if err := proto.Unmarshal(b, id); err != nil || id.GetPool() == "" || id.GetName() == "" {
			return nil, fmt.Errorf("an image of the operation cannot be read")
		}
		all = append(all, id)
	}
	return all, nil
}

// paths are images' full names.
func paths(images []*agentv1.RbdImageID) []string {
	var all []string
	for _, id := range images {
		all = append(all, cluster.RBDPath(id))
	}
	return all
}
