package failover

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// bringBack moves the placement: from here on there is no way back. What the lost
// node has is noted as lost, its disks' replications end, and the target is told to
// bring the VM up, all in one transaction, on the ground that the lost node has not
// been heard: its session is in etcd before it is told anything, so that it is told
// either to go on with its VM or to destroy it.
func (d *decision) bringBack(v *Verdict, evidence *agentv1.FenceEvidence) *step {
	d.f.Phase, d.f.Attempt, d.f.AttemptAt = phaseStart, 1, timestamppb.New(d.now)
	d.f.Fsid, d.f.Proof, d.f.DataAgeSeconds = v.FSID, v.Proof, uint64(v.DataAge.Seconds())
	d.f.Disks = nil
	for _, disk := range v.Disks {
		d.f.Disks = append(d.f.Disks, encoded(disk.FailoverDisk))
	}
	if evidence != nil {
		d.f.Evidence = encoded(evidence)
	}
	vm := proto.CloneOf(v.VM.Value)
	vm.Node = d.f.GetTarget()
	vm.Generation++
	vm.Domain = unreported(v.domain)
	s := d.startTask(stepStart, v.Definition.Value.GetXml())
	s.vm, s.copy = vm, d.lostCopy(v)
	s.log = fmt.Sprintf("%s belongs to %s now (placement %d): it is brought up there", d.name(), vm.GetNode(), vm.GetGeneration())
	uuid, source, target := vm.GetUuid(), d.f.GetSource(), d.f.GetTarget()
	lost := store.LostCopyKey(uuid, source)
	s.change.Require = append(
		s.change.Require, store.Unchanged(store.VMKey(uuid), v.VM.ModRevision),
		// The lost node has not been heard, nor has anybody taken back what was said of it.
		store.Unchanged(store.StatusKey(source), d.snapshot.Statuses[source].ModRevision),
		store.Unchanged(store.NodeKey(source), d.snapshot.Nodes[source].ModRevision),
		store.Unchanged(store.NodeKey(target), d.snapshot.Nodes[target].ModRevision),
		store.Unchanged(store.DefinitionKey(uuid), v.Definition.ModRevision),
		store.Unchanged(lost, d.snapshot.LostCopies[uuid+"/"+source].ModRevision),
	)
	s.change.Puts = append(s.change.Puts, store.PutProto(store.VMKey(uuid), vm), store.PutProto(lost, s.copy))
	d.endJobs(v, s)
	return s
}

// unreported is a domain that its new node has not told of yet.
func unreported(domain *agentv1.Domain) []byte {
	next := proto.CloneOf(domain)
	next.State = debvisorv1.VMState_VM_STATE_UNSPECIFIED
	return encoded(next)
}

// startTask orders the start's attempt.
func (d *decision) startTask(name stepName, definition string) *step {
	return d.order(name, d.attempt(), taskStart, d.f.GetTarget(), "vm/"+d.f.GetVmUuid(), &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_FailoverStart{
		FailoverStart: &agentv1.FailoverStart{
			VmUuid: d.f.GetVmUuid(), VmName: d.f.GetVmName(), Generation: d.f.GetGeneration() + 1, Definition: definition, Disks: d.disks(), Start: d.f.GetStart(),
		},
	}}, "bringing it up on "+d.f.GetTarget())
}

// lostCopy is what the lost node has from now on.
func (d *decision) lostCopy(v *Verdict) *storev1.LostCopy {
	c := &storev1.LostCopy{
		VmUuid: d.f.GetVmUuid(), VmName: d.f.GetVmName(), Node: d.f.GetSource(), Generation: d.f.GetGeneration(),
		BroughtBackOn: d.f.GetTarget(), Operation: d.op.GetId(), At: timestamppb.New(d.now), Fsid: d.f.GetFsid(), Evidence: d.f.GetEvidence(),
		State: awaited, JournalId: d.snapshot.Statuses[d.f.GetSource()].Value.GetJournalId(), Tenant: cluster.TenantOf(v.VM.Value), Proof: v.Proof,
	}
	for _, disk := range v.Disks {
		job := disk.Job.Value
		if job == nil {
			continue
		}
		back := backJob(job)
		c.Datasets = append(c.Datasets, encoded(&agentv1.FailoverFormerSource{
			Dataset: job.GetDataset(), Guid: job.GetDatasetGuid(), JobId: job.GetId(), ReverseJobId: back.GetId(),
		}))
		c.ReverseJobs = append(c.ReverseJobs, encoded(back))
	}
	return c
}

// backJob is the job that brings a disk's data back to where it came from.
func backJob(job *storev1.ReplicationJob) *storev1.ReplicationJob {
	return &storev1.ReplicationJob{
		Id: backID(job), Source: job.GetTarget(), Dataset: job.GetTargetDataset(), Target: job.GetSource(), TargetDataset: job.GetDataset(),
		Tenant: job.GetTenant(), Options: job.GetOptions(),
	}
}

// maxJobID is how long a job's id may be.
const maxJobID = 64

// backID is the id of the job that brings back what another copied: its own with
// "-back", or what it came from where it is such a job itself.
func backID(job *storev1.ReplicationJob) string {
	const back = "-back"
	if first, is := strings.CutSuffix(job.GetId(), back); is && first != "" {
		return first
	}
	if len(job.GetId())+len(back) <= maxJobID {
		return job.GetId() + back
	}
	sum := sha256.Sum256([]byte(job.GetId()))
	return "repl-" + base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(sum[:])[:20] + back
}

// endJobs ends the replications of the VM's disks: that whose copy becomes the disk
// is gone at once, so that it never runs again from what is no longer the truth;
// others from the same datasets run no more, and wait for somebody to delete them
// (hvctl replication delete), since what they keep on other nodes is no matter of
// this VM.
func (d *decision) endJobs(v *Verdict, s *step) {
	used := map[string]bool{}
	for _, disk := range v.Disks {
		if disk.Job.Value == nil {
			continue
		}
		used[disk.Job.Value.GetId()] = true
		key := store.ReplicationKey(disk.Job.Value.GetId())
		s.change.Require = append(s.change.Require, store.Unchanged(key, disk.Job.ModRevision))
		s.change.Deletes = append(s.change.Deletes, key)
	}
	for _, id := range slices.Sorted(maps.Keys(d.snapshot.Replications)) {
		job := d.snapshot.Replications[id]
		from := job.Value.GetSource() == d.f.GetSource() && slices.ContainsFunc(v.Disks, func(disk Disk) bool {
			return disk.SourceDataset != "" && disk.SourceDataset == job.Value.GetDataset()
		})
		if !from || used[id] || job.Value.GetDeleting() {
			continue
		}
		leaving := proto.CloneOf(job.Value)
		leaving.Deleting, leaving.Policy = true, ""
		s.change.Require = append(s.change.Require, store.Unchanged(store.ReplicationKey(id), job.ModRevision))
		s.change.Puts = append(s.change.Puts, store.PutProto(store.ReplicationKey(id), leaving))
	}
}

// start is the next step of a VM that is being brought up where it belongs now.
func (d *decision) start() *step {
	h := readTask(d.snapshot, d.taskID(d.attempt(), taskStart))
	if h == nil {
		return d.fail("BROKEN_RECORD", "the task that brings the VM up is missing from the records")
	}
	vm := d.snapshot.VMs[d.f.GetVmUuid()]
	switch {
	case h.succeeded():
		return d.succeed(vm, h)
	case !h.ended() && d.op.GetCancelRequested():
		return d.stopStart(h)
	case !h.ended():
		return d.note("bringing it up on " + d.f.GetTarget() + unheard(d.snapshot, d.f.GetTarget()))
	case vm.Value.GetNode() != d.f.GetTarget() || vm.Value.GetGeneration() != d.f.GetGeneration()+1:
		return d.fail("PLACEMENT_CHANGED", fmt.Sprintf("VM %s belongs to %s (placement %d) by now", d.name(), vm.Value.GetNode(), vm.Value.GetGeneration()))
	case d.op.GetCancelRequested():
		return d.cancelled("cancelled as asked while it was brought up: " + d.left() + ": " + h.why())
	case final(h):
		return d.fail(h.code(), h.why()+": "+d.left())
	case d.now.Before(h.task.GetEndedAt().AsTime().Add(d.startPause(h))):
		return d.note(fmt.Sprintf("waiting to bring it up again (attempt %d failed): %s", d.f.GetAttempt(), h.why()))
	case !heard(d.snapshot, d.f.GetTarget()):
		return d.note("waiting to bring it up again" + unheard(d.snapshot, d.f.GetTarget()))
	}
	d.f.Attempt++
	d.f.AttemptAt = timestamppb.New(d.now)
	return d.startTask(stepAgain, definitionIn(h.task))
}

// startPause is how long to wait after a start that came to nothing: a daemon that
// died is back when it is heard.
func (d *decision) startPause(h *half) time.Duration {
	if h.outcome.GetInterrupted() {
		return 0
	}
	return pause(d.f.GetAttempt())
}

// final tells whether no further attempt changes what a start failed of.
func final(h *half) bool {
	switch h.code() {
	case codeGone, codeOff, codeLost, "STALE_PLACEMENT":
		return true
	}
	return false
}

// definitionIn is the definition that a start was told: that in the records may be
// another by now, or none.
func definitionIn(t *storev1.Task) string {
	var spec agentv1.TaskSpec
	if proto.Unmarshal(t.GetSpec(), &spec) != nil {
		return ""
	}
	return spec.GetFailoverStart().GetDefinition()
}

// stopStart ends a start that is at work. Of a target that is not heard any more
// nobody can say what it has done: the VM is that node's, and can be brought back
// from there like any other.
func (d *decision) stopStart(h *half) *step {
	target := d.f.GetTarget()
	switch status := d.snapshot.Statuses[target]; {
	case status.Value.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
		s := d.cancelled(fmt.Sprintf("cancelled as asked while it was brought up: %s belongs to %s, which is not heard any more: bring it back from there", d.name(), target))
		s.end(h.entry, &agentv1.TaskOutcome{ErrorCode: codeLost, ErrorMessage: "node " + target + " was not heard any more"}, d.now)
		s.change.Require = append(s.change.Require, store.Unchanged(store.StatusKey(target), status.ModRevision))
		return s
	case !h.task.GetCancelRequested():
		return d.cancelTask(h, "cancelling")
	}
	return d.note("cancelling" + unheard(d.snapshot, target))
}

// left tells what is where once a start has ended otherwise than well.
func (d *decision) left() string {
	return fmt.Sprintf("VM %s belongs to %s now, with its disks; look at it there, and ask for its failover again", d.name(), d.f.GetTarget())
}

// succeed ends the operation: the VM is up, or defined, where it belongs.
func (d *decision) succeed(vm cluster.Entry[*storev1.VM], h *half) *step {
	word := "is defined on "
	if h.outcome.GetFailover().GetRunning() {
		word = "runs on "
	}
	s := d.finish(stepSucceed, task.OpSucceeded, fmt.Sprintf("%s %s%s (attempt %s)", d.name(), word, d.f.GetTarget(), strconv.FormatUint(uint64(d.f.GetAttempt()), 10)))
	domain := &agentv1.Domain{}
	if vm.Value.GetNode() != d.f.GetTarget() || proto.Unmarshal(vm.Value.GetDomain(), domain) != nil || domain.GetState() != debvisorv1.VMState_VM_STATE_UNSPECIFIED {
		return s
	}
	domain.State = debvisorv1.VMState_VM_STATE_SHUTOFF
	if h.outcome.GetFailover().GetRunning() {
		domain.State = debvisorv1.VMState_VM_STATE_RUNNING
	}
	next := proto.CloneOf(vm.Value)
	next.Domain = encoded(domain)
	s.vm = next
	s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(next.GetUuid()), vm.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.VMKey(next.GetUuid()), next))
	return s
}
