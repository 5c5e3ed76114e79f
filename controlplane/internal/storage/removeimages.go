package storage

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	"github.com/debvisor/debvisor/controlplane/internal/retention/facts"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// maxImageBatch is how many snapshots of images one task removes: Ceph takes some
// 30 ms for each.
const maxImageBatch = 100

// removeImages is the next step of a deletion or a pruning of images' snapshots.
func (d *decision) removeImages() *step {
	r := d.op.GetRemoveSnapshots()
	images, err := imagesOfRemoval(r)
	if err != nil || len(images) == 0 {
		return d.broken("the operation does not say which images' snapshots are to go")
	}
	if r.GetBatch() != 0 {
		return d.imageBatchAtWork()
	}
	batches := d.all(taskRbdRemove)
	if s := d.tryAgain(batches); s != nil {
		return s
	}
	if d.op.GetCancelRequested() {
		return d.cancelled(fmt.Sprintf("cancelled as asked; %d snapshots were removed before", r.GetRemoved()))
	}
	if n := len(batches); n > 0 && judge(batches[n-1]) != done && d.now.Before(ends(batches).Add(d.pace.after(batches))) {
		_, message := batches[n-1].why()
		return d.note("waiting to try again: " + message)
	}
	node, why := d.place(work{fsid: r.GetFsid(), images: images, near: r.GetNode()})
	if why != "" {
		return d.note(why)
	}
	return d.nextImageBatch(batches, node, images)
}

// imageBatchAtWork follows a batch's task, and notes what came of it.
func (d *decision) imageBatchAtWork() *step {
	r := d.op.GetRemoveSnapshots()
	h := d.of(strconv.Itoa(int(r.GetBatch())), taskRbdRemove)
	switch {
	case h == nil:
		return d.broken("the task of the batch at work is missing from the records")
	case !h.ended() && d.op.GetCancelRequested():
		s, _ := d.stop("cancelling")
		return s
	case !h.ended():
		return d.note(fmt.Sprintf("removing snapshots on %s, %d so far%s", r.GetNode(), r.GetRemoved(), d.unheard(r.GetNode())))
	}
	out := h.outcome.GetRbd()
	r.Removed += out.GetRemoved()
	for _, k := range out.GetKept() {
		if len(r.GetKeptBecause()) < maxToldKept && !h.outcome.GetInterrupted() {
			r.KeptBecause = append(r.KeptBecause, encoded(k))
		}
	}
	r.Batch = 0
	if h.succeeded() && out.GetRemoved() == 0 && len(out.GetKept()) == 0 {
		return d.fail("INTERNAL", "the agent of "+r.GetNode()+" does not say what became of the snapshots")
	}
	return d.commit(stepBatch, fmt.Sprintf("%d snapshots are removed so far on %s", r.GetRemoved(), r.GetNode()))
}

// nextImageBatch writes the task of the next batch, or ends the operation.
func (d *decision) nextImageBatch(batches []*half, node string, images []*agentv1.RbdImageID) *step {
	r := d.op.GetRemoveSnapshots()
	q := &question{
		key: fmt.Sprintf("%s/%d/%s", d.op.GetId(), len(batches)+1, node), node: node,
		images: &agentv1.ListRbd{Images: images, Snapshots: true, Children: true},
	}
	a, s := d.answered(q, "asking "+node+" for the snapshots of "+strings.Join(paths(images), ", "), d.fail)
	if a == nil {
		return s
	}
	going, stays, err := imageBatch(r, a.images, keptOf(batches), d.now)
	switch {
	case err != nil:
		return d.fail(codeOf(err), plain(err))
	case len(going) == 0:
		r.Kept = uint32(stays) //nolint:gosec // at most what is listed
		return d.succeed(fmt.Sprintf("%d snapshots are removed", r.GetRemoved()))
	}
	r.Batch, r.Node = uint32(len(batches)+1), node //nolint:gosec // as many as tasks
	spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdSnapshotRemove{RbdSnapshotRemove: &agentv1.RbdSnapshotRemove{Snapshots: going}}}
	return d.order(stepTask, strconv.Itoa(len(batches)+1), taskRbdRemove, node, "rbd-remove/"+d.op.GetId(), spec,
		fmt.Sprintf("removing %d snapshots on %s, %d are removed so far", len(going), node, r.GetRemoved()))
}

// snapshotKey tells a snapshot from all others of a Ceph cluster.
type snapshotKey struct {
	image, name string
	id          uint64
}

func keyOf(id *agentv1.RbdSnapshotID) snapshotKey {
	return snapshotKey{cluster.RBDPath(id.GetImage()), id.GetName(), id.GetId()}
}

// keptOf are the snapshots that an agent would not remove; one that it could not
// tell of is asked for again.
func keptOf(batches []*half) map[snapshotKey]bool {
	all := map[snapshotKey]bool{}
	for _, h := range batches {
		if h.outcome.GetInterrupted() {
			continue
		}
		for _, k := range h.outcome.GetRbd().GetKept() {
			all[keyOf(k.GetSnapshot())] = true
		}
	}
	return all
}

// namedOf are the snapshots of a deletion.
func namedOf(r *storev1.RemoveSnapshots) (map[snapshotKey]bool, []*agentv1.RbdSnapshotID, error) {
	keys, ids := map[snapshotKey]bool{}, make([]*agentv1.RbdSnapshotID, 0, len(r.GetSnapshots()))
	for _, b := range r.GetSnapshots() {
		id := &agentv1.RbdSnapshotID{}
		if err := proto.Unmarshal(b, id); err != nil || id.GetImage().GetName() == "" {
			return nil, nil, errdefs.New(errdefs.Internal, "BROKEN_RECORD", "which snapshots are to go cannot be read")
		}
		keys[keyOf(id)] = true
		ids = append(ids, id)
	}
	return keys, ids, nil
}

// imagesOfRemoval are the images that a removal is about.
func imagesOfRemoval(r *storev1.RemoveSnapshots) ([]*agentv1.RbdImageID, error) {
	if len(r.GetSnapshots()) == 0 {
		return imagesOf(r.GetImages())
	}
	_, ids, err := namedOf(r)
	if err != nil {
		return nil, err
	}
	var images []*agentv1.RbdImageID
	for _, id := range ids {
		if !slices.ContainsFunc(images, func(o *agentv1.RbdImageID) bool { return proto.Equal(o, id.GetImage()) }) {
			images = append(images, id.GetImage())
		}
	}
	return images, nil
}

// imageBatch gives the next snapshots to go, and how many of those that were
// looked at stay. It is pure. A deletion's error is that one of the named ones
// must stay.
func imageBatch(
	r *storev1.RemoveSnapshots, listed []*agentv1.RbdSnapshot, kept map[snapshotKey]bool, now time.Time,
) (going []*agentv1.RbdSnapshotID, stays int, err error) {
	ids := map[snapshotKey]*agentv1.RbdSnapshotID{}
	for _, s := range listed {
		ids[keyOf(s.GetSnapshot())] = s.GetSnapshot()
	}
	snapshots := facts.Images(listed)
	policy, zone, named := retention.Policy{}, time.UTC, len(r.GetSnapshots()) > 0
	if named {
		wanted, _, err := namedOf(r)
		if err != nil {
			return nil, 0, err
		}
		snapshots = slices.DeleteFunc(snapshots, func(s retention.Snapshot) bool { return !wanted[snapshotKey{s.Dataset, s.Name, s.GUID}] })
	} else {
		rules := &debvisorv1.RetentionPolicy{}
		if err := proto.Unmarshal(r.GetRetention(), rules); err != nil {
			return nil, 0, errdefs.New(errdefs.Internal, "BROKEN_RECORD", "the rules of the pruning cannot be read")
		}
		if policy, zone, err = retention.FromProto("policy", rules); err != nil {
			return nil, 0, err
		}
	}
	var why []string
	for _, v := range retention.Decide(snapshots, policy, retention.Protection{}, now, zone).Verdicts {
		key := snapshotKey{v.Snapshot.Dataset, v.Snapshot.Name, v.Snapshot.GUID}
		texts := v.Against()
		switch {
		case named && len(texts) > 0:
			why = append(why, fmt.Sprintf("%s@%s (%s)", key.image, key.name, strings.Join(texts, ", ")))
		case !named && v.Keep || kept[key]:
			stays++
		case len(going) < maxImageBatch:
			going = append(going, ids[key])
		}
	}
	if len(why) > 0 && len(kept) == 0 {
		return nil, 0, errdefs.New(errdefs.FailedPrecondition, CodeNeeded, "%d of the snapshots must stay, so none was removed: %s",
			len(why), strings.Join(why[:min(len(why), maxToldKept)], "; "))
	}
	return going, stays + len(why), nil
}
