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

const (
	// maxBatch is how many snapshots one task destroys: an operation of a hundred
	// thousand can be cancelled, and each batch is decided on what is then so.
	maxBatch = 500
	// maxToldKept is how many snapshots that stayed an operation tells of.
	maxToldKept = 20
)

// CodeNeeded refuses to delete a snapshot that something needs.
const CodeNeeded = "SNAPSHOT_NEEDED"

// remove is the next step of a deletion or a pruning: a batch after the other,
// each decided anew.
func (d *decision) remove() *step {
	r := d.op.GetRemoveSnapshots()
	if r.GetFsid() != "" {
		return d.removeImages()
	}
	if r.GetNode() == "" || len(r.GetSnapshots()) == 0 && len(r.GetDatasets()) == 0 {
		return d.broken("the operation does not say which snapshots are to go")
	}
	if r.GetBatch() != 0 {
		return d.batchAtWork()
	}
	batches := d.all(taskDestroy)
	if s := d.tryAgain(batches); s != nil {
		return s
	}
	switch {
	case d.op.GetCancelRequested():
		return d.cancelled(fmt.Sprintf("cancelled as asked; %d snapshots were removed before", r.GetRemoved()))
	case d.unknown(r.GetNode()) != "":
		return d.fail("NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", r.GetNode()))
	}
	if why := d.waits(r.GetNode()); why != "" {
		return d.note(why)
	}
	if n := len(batches); n > 0 && judge(batches[n-1]) != done && d.now.Before(ends(batches).Add(d.pace.after(batches))) {
		_, message := batches[n-1].why()
		return d.note("waiting to try again: " + message)
	}
	return d.nextBatch(batches)
}

// batchAtWork follows a batch's task, and notes what came of it.
func (d *decision) batchAtWork() *step {
	r := d.op.GetRemoveSnapshots()
	h := d.of(strconv.Itoa(int(r.GetBatch())), taskDestroy)
	switch {
	case h == nil:
		return d.broken("the task of the batch at work is missing from the records")
	case !h.ended() && d.op.GetCancelRequested():
		s, _ := d.stop("cancelling")
		return s
	case !h.ended():
		return d.note(fmt.Sprintf("destroying snapshots on %s, %d so far%s", r.GetNode(), r.GetRemoved(), d.unheard(r.GetNode())))
	}
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(h.task.GetSpec(), &spec); err != nil {
		return d.broken("the task of the batch at work cannot be read")
	}
	out, n := h.outcome.GetZfs(), uint64(len(spec.GetZfsSnapshotDestroy().GetSnapshots()))
	r.Removed += out.GetDestroyed()
	r.FreedBytes += r.GetBatchBytes() / max(n, 1) * min(uint64(out.GetDestroyed()), n)
	for _, k := range out.GetKept() {
		if len(r.GetKeptBecause()) < maxToldKept {
			r.KeptBecause = append(r.KeptBecause, encoded(k))
		}
	}
	r.Batch, r.BatchBytes = 0, 0
	if h.succeeded() && out.GetDestroyed() == 0 && len(out.GetKept()) == 0 {
		return d.fail("INTERNAL", "the agent of "+r.GetNode()+" does not say what became of the snapshots")
	}
	return d.commit(stepBatch, fmt.Sprintf("%d snapshots are removed so far on %s", r.GetRemoved(), r.GetNode()))
}

// nextBatch writes the task of the next batch, or ends the operation.
func (d *decision) nextBatch(batches []*half) *step {
	r := d.op.GetRemoveSnapshots()
	key := fmt.Sprintf("%s/%d", d.op.GetId(), len(batches)+1)
	kept := keptBy(batches)
	q := &question{key: key, node: r.GetNode(), list: &agentv1.ListZfs{Datasets: datasetsOf(r), Recursive: r.GetRecursive(), Snapshots: true}, remove: r, kept: kept}
	a, s := d.answered(q, "asking "+r.GetNode()+" for its snapshots", d.fail)
	if a == nil {
		return s
	}
	going, stays, err := batch(d.snapshot, r.GetNode(), r, a.listing, kept, d.now)
	switch {
	case err != nil:
		return d.fail(codeOf(err), plain(err))
	case len(going) == 0:
		r.Kept = uint32(stays)
		return d.succeed(fmt.Sprintf("%d snapshots are removed on %s", r.GetRemoved(), r.GetNode()))
	}
	r.Batch, r.BatchBytes = uint32(len(batches)+1), a.frees
	spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotDestroy{ZfsSnapshotDestroy: &agentv1.ZfsSnapshotDestroy{Snapshots: going}}}
	return d.order(stepTask, strconv.Itoa(len(batches)+1), taskDestroy, r.GetNode(), "zfs-destroy/"+d.op.GetId(), spec,
		fmt.Sprintf("destroying %d snapshots on %s, %d are removed so far", len(going), r.GetNode(), r.GetRemoved()))
}

// datasetsOf are the datasets that a removal is about.
func datasetsOf(r *storev1.RemoveSnapshots) []string {
	if len(r.GetSnapshots()) == 0 {
		return r.GetDatasets()
	}
	found := map[string]bool{}
	for _, s := range named(r) {
		found[s.GetDataset()] = true
	}
	return sortedKeys(found)
}

// named are the snapshots of a deletion.
func named(r *storev1.RemoveSnapshots) []*agentv1.ZfsSnapshotID {
	all := make([]*agentv1.ZfsSnapshotID, 0, len(r.GetSnapshots()))
	for _, b := range r.GetSnapshots() {
		id := &agentv1.ZfsSnapshotID{}
		if proto.Unmarshal(b, id) == nil {
			all = append(all, id)
		}
	}
	return all
}

// keptBy are the guids of the snapshots that an agent would not destroy: to ask
// it again is no use.
func keptBy(batches []*half) map[uint64]bool {
	all := map[uint64]bool{}
	for _, h := range batches {
		for _, k := range h.outcome.GetZfs().GetKept() {
			all[k.GetSnapshot().GetGuid()] = true
		}
	}
	return all
}

// batch gives the next snapshots to go, and how many of those that were looked at
// stay. It is pure. A deletion's error is that one of the named ones must stay.
func batch(
	s *cluster.Snapshot, node string, r *storev1.RemoveSnapshots, listing *agentv1.ZfsListing, kept map[uint64]bool, now time.Time,
) (going []*agentv1.ZfsSnapshotID, stays int, err error) {
	snapshots, protected := facts.Snapshots(listing), facts.Protection(s, node, listing)
	if ids := named(r); len(r.GetSnapshots()) > 0 {
		if len(ids) != len(r.GetSnapshots()) {
			return nil, 0, errdefs.New(errdefs.Internal, "BROKEN_RECORD", "which snapshots are to go cannot be read")
		}
		return deletion(ids, snapshots, protected, kept, now)
	}
	rules := &debvisorv1.RetentionPolicy{}
	if err := proto.Unmarshal(r.GetRetention(), rules); err != nil {
		return nil, 0, errdefs.New(errdefs.Internal, "BROKEN_RECORD", "the rules of the pruning cannot be read")
	}
	policy, zone, err := retention.FromProto("policy", rules)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range retention.Decide(snapshots, policy, protected, now, zone).Verdicts {
		switch {
		case v.Keep || kept[v.Snapshot.GUID]:
			stays++
		case len(going) < maxBatch:
			going = append(going, &agentv1.ZfsSnapshotID{Dataset: v.Snapshot.Dataset, Name: v.Snapshot.Name, Guid: v.Snapshot.GUID})
		}
	}
	return going, stays, nil
}

// deletion gives those of the named snapshots that are still there; of ones that
// are to go all can, or none.
func deletion(
	ids []*agentv1.ZfsSnapshotID, snapshots []retention.Snapshot, protected retention.Protection, kept map[uint64]bool, now time.Time,
) (going []*agentv1.ZfsSnapshotID, stays int, err error) {
	wanted := func(s retention.Snapshot) bool {
		return slices.ContainsFunc(ids, func(id *agentv1.ZfsSnapshotID) bool {
			return id.GetGuid() == s.GUID && id.GetDataset() == s.Dataset && id.GetName() == s.Name
		})
	}
	snapshots = slices.DeleteFunc(slices.Clone(snapshots), func(s retention.Snapshot) bool { return !wanted(s) })
	var why []string
	for _, v := range retention.Decide(snapshots, retention.Policy{}, protected, now, nil).Verdicts {
		var texts []string
		for _, reason := range v.Reasons {
			// Whoever names a snapshot need not wait for a clock, nor name all of a set.
			if reason.Rule != retention.Future && reason.Rule != retention.Unknown && reason.Rule != retention.Set {
				texts = append(texts, reason.Text)
			}
		}
		switch {
		case len(texts) > 0:
			why = append(why, fmt.Sprintf("%s@%s (%s)", v.Snapshot.Dataset, v.Snapshot.Name, strings.Join(texts, ", ")))
		case kept[v.Snapshot.GUID]:
			stays++
		case len(going) < maxBatch:
			going = append(going, &agentv1.ZfsSnapshotID{Dataset: v.Snapshot.Dataset, Name: v.Snapshot.Name, Guid: v.Snapshot.GUID})
		}
	}
	if len(why) > 0 && len(kept) == 0 {
		return nil, 0, errdefs.New(errdefs.FailedPrecondition, CodeNeeded, "%d of the snapshots must stay, so none was removed: %s",
			len(why), strings.Join(why[:min(len(why), maxToldKept)], "; "))
	}
	return going, stays + len(why), nil
}
