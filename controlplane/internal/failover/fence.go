package failover

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// fenced are the images that have to be.
func fenced(v *Verdict) []*agentv1.RbdImageID {
	var images []*agentv1.RbdImageID
	for _, disk := range v.Disks {
		if disk.Image != nil {
			images = append(images, disk.Image)
		}
	}
	return images
}

// fenceTask has the target fence the images: that it can is what the VM's start
// there needs as well.
func (d *decision) fenceTask(v *Verdict) *step {
	d.f.Attempt++
	d.f.AttemptAt = timestamppb.New(d.now)
	d.f.Disks = nil
	for _, disk := range v.Disks {
		d.f.Disks = append(d.f.Disks, encoded(disk.FailoverDisk))
	}
	return d.order(stepFence, d.attempt(), taskFence, d.f.GetTarget(), "vm/"+d.f.GetVmUuid(), &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdFence{
		RbdFence: &agentv1.RbdFence{Images: fenced(v), Fsid: d.f.GetFsid(), ExpireSeconds: uint64(fenceFor.Seconds())},
	}}, "fencing on "+d.f.GetTarget())
}

// fence is the next step while images are being fenced, or no longer are. Until
// the placement moves, a sign of life of the lost node ends it.
func (d *decision) fence() *step {
	h := readTask(d.snapshot, d.taskID(d.attempt(), taskFence))
	if d.op.GetErrorCode() != "" {
		return d.undo(h)
	}
	if h == nil {
		return d.fail("BROKEN_RECORD", "the task that fences is missing from the records")
	}
	if code, why := d.over(); code != "" {
		return d.giveUp(h, code, why)
	}
	switch {
	case !h.ended():
		return d.note("fencing on " + d.f.GetTarget() + unheard(d.snapshot, d.f.GetTarget()))
	case h.succeeded():
		return d.proven(h)
	case h.task.GetCancelRequested() || !passing(h) || d.f.GetAttempt() >= maxFences:
		return d.giveUp(h, h.code(), "the images could not be fenced: "+h.why())
	case d.now.Before(h.task.GetEndedAt().AsTime().Add(pause(d.f.GetAttempt()))):
		return d.note("waiting to fence again: " + h.why())
	}
	v := d.judge()
	if !v.Allowed {
		return d.notNow(v, h)
	}
	return d.fenceTask(v)
}

// targetWithin is for how long a target that has fenced is waited for when it can
// take no VM for the moment: its agent has just been started, say.
const targetWithin = 2 * time.Minute

// notNow gives up, unless all that is against it is the target's and may pass.
func (d *decision) notNow(v *Verdict, h *half) *step {
	if len(v.Reasons) > 0 || d.now.After(h.task.GetEndedAt().AsTime().Add(targetWithin)) {
		return d.giveUp(h, v.Code(), v.Refusal())
	}
	for _, n := range v.Nodes {
		if n.Node == d.f.GetTarget() && len(n.Reasons) > 0 && !slices.ContainsFunc(n.Reasons, lasting) {
			return d.note("waiting until " + d.f.GetTarget() + " can take it: " + v.Refusal())
		}
	}
	return d.giveUp(h, v.Code(), v.Refusal())
}

// lasting tells whether a reason against a node does not pass by itself soon.
func lasting(r planner.Reason) bool {
	switch r.Code {
	case planner.NodeNotHeard, planner.NodeLibvirt, CephUnreachable:
		return false
	}
	return true
}

// passing tells whether what a fence failed of may pass: a daemon died, or Ceph
// did not answer.
func passing(h *half) bool {
	switch h.code() {
	case "CEPH_DOWN", "CEPH_UNKNOWN":
		return true
	}
	return h.outcome.GetInterrupted()
}

// over tells what ends the operation as long as the placement has not moved; an
// empty code: nothing.
func (d *decision) over() (code, why string) {
	if d.op.GetCancelRequested() {
		return codeCancelled, "cancelled as asked; the VM still belongs to " + d.f.GetSource()
	}
	if heard(d.snapshot, d.f.GetSource()) {
		return NodeReachable, fmt.Sprintf("node %s is heard again: VM %s stays there", d.f.GetSource(), d.name())
	}
	return "", ""
}

// proven goes on once nobody else can write to the images any more.
func (d *decision) proven(h *half) *step {
	evidence := h.outcome.GetRbd().GetEvidence()
	if evidence.GetFsid() != d.f.GetFsid() || !covers(evidence, d.disks()) {
		return d.giveUp(h, NoProof, "the agent of "+d.f.GetTarget()+" did not say that all images are fenced")
	}
	v := d.judge()
	if !v.Allowed {
		return d.notNow(v, h)
	}
	if images := d.unseen(v, evidence); images != "" {
		return d.giveUp(h, NoProof, fmt.Sprintf("VM %s was running when %s was last heard, and nobody from there was found at %s: its QEMU may be alive and cut off, and would write again when it is not; make sure that %s is powered off, and say so (--node-is-off, or hvctl node confirm-off)",
			d.name(), d.f.GetSource(), images, d.f.GetSource()))
	}
	// What a former attempt has fenced before it broke off is there as well.
	evidence.Blocklisted = d.evidence().GetBlocklisted()
	return d.bringBack(v, evidence)
}

// covers tells whether evidence is about all images of the disks.
func covers(evidence *agentv1.FenceEvidence, disks []*agentv1.FailoverDisk) bool {
	for _, disk := range disks {
		if disk.GetImage() == nil {
			continue
		}
		if !slices.ContainsFunc(evidence.GetImages(), func(f *agentv1.FencedImage) bool { return proto.Equal(f.GetImage(), disk.GetImage()) }) {
			return false
		}
	}
	return true
}

// giveUp ends the operation before the placement has moved: once the agent is no
// longer at work, what was fenced is fenced no more.
func (d *decision) giveUp(h *half, code, why string) *step {
	if !h.ended() {
		if !h.task.GetCancelRequested() {
			return d.cancelTask(h, "ending: "+why)
		}
		return d.note("ending: " + why + unheard(d.snapshot, h.task.GetNode()))
	}
	d.because(code, why)
	if h.outcome.GetRbd().GetEvidence() == nil && (passing(h) || h.code() == codeGone || h.code() == codeOff) {
		d.op.ErrorMessage += "; whether anybody was fenced is not known: see ceph osd blocklist ls, if a guest there cannot write"
	}
	if len(d.evidence().GetBlocklisted()) == 0 {
		return d.undone()
	}
	return d.unfence(1)
}

// evidences are what the fences of the operation have said, also those that failed.
func (d *decision) evidences() []*agentv1.FenceEvidence {
	var all []*agentv1.FenceEvidence
	for n := uint32(1); n <= d.f.GetAttempt() && d.f.GetPhase() == phaseFence; n++ {
		if h := readTask(d.snapshot, d.taskID(strconv.FormatUint(uint64(n), 10), taskFence)); h != nil {
			all = append(all, h.outcome.GetRbd().GetEvidence())
		}
	}
	return all
}

// evidence gathers whom the fences of the operation have blocklisted, but for those
// who were so already because they are lost copies: they stay.
func (d *decision) evidence() *agentv1.FenceEvidence {
	all, seen := &agentv1.FenceEvidence{Fsid: d.f.GetFsid()}, map[string]bool{}
	others := held(d.snapshot, d.f.GetFsid())
	for _, evidence := range d.evidences() {
		for _, entry := range evidence.GetBlocklisted() {
			if !others[entry] {
				seen[entry] = true
			}
		}
	}
	all.Blocklisted = slices.Sorted(maps.Keys(seen))
	return all
}

// unfence takes what was fenced off the blocklist again.
func (d *decision) unfence(attempt int) *step {
	nodes, why := d.snapshot.CephNodes(d.f.GetFsid())
	if len(nodes) == 0 {
		return d.note("waiting to undo the fence: " + why)
	}
	node := nodes[0]
	if slices.Contains(nodes, d.f.GetTarget()) {
		node = d.f.GetTarget()
	}
	evidence := d.evidence()
	return d.order(stepUnfence, undoOf(attempt), taskUnfence, node, "vm/"+d.f.GetVmUuid(), unfenceSpec(evidence.GetFsid(), evidence.GetBlocklisted()), "undoing the fence on "+node)
}

func unfenceSpec(fsid string, entries []string) *agentv1.TaskSpec {
	return &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdUnfence{RbdUnfence: &agentv1.RbdUnfence{Fsid: fsid, Entries: entries}}}
}

func undoOf(attempt int) string { return "undo-" + strconv.Itoa(attempt) }

// undo is the next step while what was fenced is being fenced no more. It goes on
// whatever else happens: the node that has the VM may be back.
func (d *decision) undo(fence *half) *step {
	if fence != nil && !fence.ended() {
		return d.giveUp(fence, d.op.GetErrorCode(), d.op.GetErrorMessage())
	}
	n := 0
	var last *half
	for {
		h := readTask(d.snapshot, d.taskID(undoOf(n+1), taskUnfence))
		if h == nil {
			break
		}
		n, last = n+1, h
	}
	switch {
	case last == nil:
		return d.unfence(1)
	case !last.ended():
		return d.note("undoing the fence on " + last.task.GetNode() + unheard(d.snapshot, last.task.GetNode()))
	case last.succeeded():
		return d.undone()
	case n >= maxUnfences:
		d.op.ErrorMessage += "; what was fenced could not be taken off the blocklist (" + last.why() + "): see \"blocklisted\", and ceph osd blocklist rm"
		return d.ended()
	case d.now.Before(last.task.GetEndedAt().AsTime().Add(pause(uint32(n)))):
		return d.note("waiting to undo the fence: " + last.why())
	}
	return d.unfence(n + 1)
}

// undone ends the operation with nothing left of it, but for what a guest that is
// alive has seen.
func (d *decision) undone() *step {
	if left := d.evidence().GetBlocklisted(); len(left) > 0 {
		delete(d.op.GetErrorContext(), "blocklisted")
		d.op.ErrorMessage += fmt.Sprintf("; it was fenced for a while (%s), so that a guest that is alive there may have seen its writes fail: look at it", strings.Join(left, ", "))
	}
	return d.ended()
}

// ended ends the operation for the reason that is noted.
func (d *decision) ended() *step {
	if d.op.GetErrorCode() == codeCancelled {
		return d.finish(stepCancelled, task.OpCancelled, d.op.GetErrorMessage())
	}
	return d.finish(stepFail, task.OpFailed, "failed: "+d.op.GetErrorMessage())
}
