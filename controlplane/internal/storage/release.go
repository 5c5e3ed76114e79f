package storage

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// The parts of a release, in the ids of its tasks: one task a node.
const (
	partSource = "source"
	partTarget = "target"
)

// release is the next step of a job's end: both nodes take away what keeps its
// cursor, then its record goes. A node that is not heard is waited for, since
// what it keeps would stay for ever; one that is no longer in the records has
// nothing to be asked for.
func (d *decision) release() *step {
	r := d.op.GetReplicate()
	job, ok := d.snapshot.Replications[r.GetJobId()]
	if !ok {
		if s, waiting := d.stop("ending, since the job is gone"); waiting {
			return s
		}
		return d.succeed("replication job " + r.GetJobId() + " is gone already")
	}
	if d.op.GetCancelRequested() {
		if s, waiting := d.stop("cancelling"); waiting {
			return s
		}
	}
	// Both are asked before either is waited for.
	var waiting *step
	finished := true
	for _, part := range []string{partSource, partTarget} {
		s, over := d.releaseOn(part, job)
		if s != nil && s.name != stepNote {
			return s
		}
		if !over {
			finished = false
			if waiting == nil {
				waiting = s
			}
		}
	}
	switch {
	case finished:
		return d.forget(job)
	case d.op.GetCancelRequested():
		return d.cancelled("cancelled as asked; the job is still being deleted: delete it again")
	}
	if waiting == nil {
		return nil
	}
	return d.note(waiting.log)
}

// releaseOn is the next step on one of the two nodes; over: nothing is left to do
// there.
func (d *decision) releaseOn(part string, job cluster.Entry[*storev1.ReplicationJob]) (s *step, over bool) {
	node, dataset := job.Value.GetSource(), job.Value.GetDataset()
	if part == partTarget {
		node, dataset = job.Value.GetTarget(), job.Value.GetTargetDataset()
	}
	tries := d.releases(part)
	if n := len(tries); n > 0 {
		switch last := tries[n-1]; {
		case !last.ended():
			return d.noted("releasing what the job keeps on " + node + d.unheard(node)), false
		case judge(last) == done, last.outcome.GetErrorCode() == "DATASET_NOT_FOUND":
			return nil, true
		case d.unknown(node) == "" && judge(last) != stopped && last.outcome.GetErrorCode() != codeNodeOff:
			if s := d.tryAgain(tries); s != nil {
				return s, false
			}
		}
	}
	if d.unknown(node) != "" {
		return nil, true
	}
	if d.op.GetCancelRequested() {
		return nil, false
	}
	if why := d.unheard(node); why != "" {
		return d.noted(strings.TrimPrefix(why, ": ") + "; a node that is gone for good is forgotten by removing it from the cluster"), false
	}
	if n := len(tries); n > 0 && d.now.Before(ends(tries).Add(d.pace.after(tries))) {
		_, message := tries[n-1].why()
		return d.noted("waiting to try again on " + node + ": " + message), false
	}
	d.start(job)
	spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicationRelease{ReplicationRelease: &agentv1.ReplicationRelease{
		JobId: job.Value.GetId(), Dataset: dataset, Target: part == partTarget,
	}}}
	attempt := part + "-" + strconv.Itoa(len(tries)+1)
	return d.order(stepTask, attempt, taskRelease, node, "replication-release/"+job.Value.GetId()+"/"+part, spec, "releasing what the job keeps on "+node), false
}

// start notes what the operation is about.
func (d *decision) start(job cluster.Entry[*storev1.ReplicationJob]) {
	r := d.op.GetReplicate()
	r.Source, r.Target = job.Value.GetSource(), job.Value.GetTarget()
	r.Dataset, r.TargetDataset = job.Value.GetDataset(), job.Value.GetTargetDataset()
}

// noted is what is waited for on one of the two nodes.
func (d *decision) noted(text string) *step { return &step{name: stepNote, log: text} }

// releases are the tasks on one of the two nodes.
func (d *decision) releases(part string) []*half {
	var found []*half
	for _, h := range d.all(taskRelease) {
		if strings.HasPrefix(h.task.GetId(), d.op.GetId()+"/"+part+"-") {
			found = append(found, h)
		}
	}
	return found
}

// forget ends the operation and takes the job out of the records.
func (d *decision) forget(job cluster.Entry[*storev1.ReplicationJob]) *step {
	d.start(job)
	d.begin()
	s := d.succeed(fmt.Sprintf("replication job %s is deleted; its copy stays", job.Value.GetId()))
	key := store.ReplicationKey(job.Value.GetId())
	s.change.Require = append(s.change.Require, store.Unchanged(key, job.ModRevision))
	s.change.Deletes = append(s.change.Deletes, key)
	return s
}
