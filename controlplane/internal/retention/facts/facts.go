// Package facts gathers what package retention decides on: what an agent listed
// of a node, and what the records say that replication needs of it. It is pure,
// so that a dry run and the pruning that follows decide on the same.
package facts

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Ours tells whether DebVisor took a snapshot: its properties say so, or it is
// on a replication's copy, which has no properties of snapshots, and has a name
// of our form.
func Ours(copied bool, s *agentv1.ZfsSnapshot) bool {
	return s.GetOperation() != "" || copied && cluster.OurSnapshotName(s.GetName())
}

// Copies are the datasets of a listing that replications made.
func Copies(listing *agentv1.ZfsListing) map[string]bool {
	copies := map[string]bool{}
	for _, d := range listing.GetDatasets() {
		if d.GetReplicationJob() != "" {
			copies[d.GetName()] = true
		}
	}
	return copies
}

// Snapshots gives a listing's snapshots as retention sees them. The listing
// must have the snapshots' datasets too.
func Snapshots(listing *agentv1.ZfsListing) []retention.Snapshot {
	copies := Copies(listing)
	all := make([]retention.Snapshot, 0, len(listing.GetSnapshots()))
	for _, s := range listing.GetSnapshots() {
		one := retention.Snapshot{
			Dataset: s.GetDataset(), Name: s.GetName(), GUID: s.GetGuid(), CreateTXG: s.GetCreateTxg(), Used: s.GetUsedBytes(),
			Ours: Ours(copies[s.GetDataset()], s), Holds: s.GetHolds(), Clones: s.GetClones(), Label: s.GetLabel(), Set: s.GetSet(),
		}
		if s.GetCreated() > 0 {
			one.Created = time.Unix(s.GetCreated(), 0)
		}
		all = append(all, one)
	}
	return all
}

// Protection tells which of a listing's snapshots on a node replication needs:
// the cursors of all jobs from and to its datasets; what a run that is at work
// sends, sends from or has just had taken; and the newest of a copy whose
// receive was cut, onto which the rest goes.
func Protection(s *cluster.Snapshot, node string, listing *agentv1.ZfsListing) retention.Protection {
	p := retention.Protection{Cursors: map[uint64][]retention.Cursor{}, Resumes: map[uint64][]string{}}
	byName, newest := map[[2]string]uint64{}, map[string]*agentv1.ZfsSnapshot{}
	for _, one := range listing.GetSnapshots() {
		byName[[2]string{one.GetDataset(), one.GetName()}] = one.GetGuid()
		if last := newest[one.GetDataset()]; last.GetCreateTxg() <= one.GetCreateTxg() {
			newest[one.GetDataset()] = one
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Replications)) {
		job := s.Replications[id].Value
		if guid := job.GetCursorGuid(); guid != 0 && touches(job, node) {
			p.Cursors[guid] = append(p.Cursors[guid], retention.Cursor{Node: job.GetTarget(), Job: id})
		}
	}
	for _, op := range s.ActiveOperations() {
		run := op.Value.GetReplicate()
		for _, dataset := range sides(run, node) {
			for _, name := range needed(run) {
				if guid := byName[[2]string{dataset, name}]; guid != 0 {
					p.Resumes[guid] = append(p.Resumes[guid], run.GetJobId())
				}
			}
		}
	}
	for _, d := range listing.GetDatasets() {
		if last := newest[d.GetName()]; d.GetPartial() && last.GetGuid() != 0 {
			p.Resumes[last.GetGuid()] = append(p.Resumes[last.GetGuid()], d.GetReplicationJob())
		}
	}
	return p
}

// touches tells whether a job has anything on a node.
func touches(job *storev1.ReplicationJob, node string) bool {
	return job.GetSource() == node || job.GetTarget() == node
}

// sides are the datasets of a run that are on a node.
func sides(run *storev1.Replicate, node string) []string {
	var on []string
	if run != nil && run.GetSource() == node {
		on = append(on, run.GetDataset())
	}
	if run != nil && run.GetTarget() == node {
		on = append(on, run.GetTargetDataset())
	}
	return on
}

// needed are the names of the snapshots that a run is about.
func needed(run *storev1.Replicate) []string {
	var names []string
	if run.GetSnapshot() != "" {
		names = append(names, run.GetSnapshot())
	}
	decision := &debvisorv1.ReplicationDecision{}
	if proto.Unmarshal(run.GetDecision(), decision) != nil {
		return names
	}
	for _, step := range append(decision.GetSteps(), &debvisorv1.ReplicationStepPlan{From: decision.GetCommon()}) {
		for _, name := range []string{step.GetFrom(), step.GetTo()} {
			if len(name) > 0 && name[0] == '@' {
				name = name[1:]
			}
			if name != "" && name[0] != '#' && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}
