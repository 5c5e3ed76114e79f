package storage

import (
	"cmp"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// runPair follows an attempt's two tasks to their ends.
func (d *decision) runPair(job cluster.Entry[*storev1.ReplicationJob]) *step {
	r := d.op.GetReplicate()
	receive, send := d.of(d.attempt(), taskReceive), d.of(d.attempt(), taskSend)
	if receive == nil || r.GetPhase() == phaseSend && send == nil {
		return d.broken("a task of the attempt is missing from the records")
	}
	if s := d.refusals(receive); s != nil {
		return s
	}
	switch {
	case receive.ended() && (send == nil || send.ended()):
		return d.endPair(job, receive, send)
	case d.op.GetCancelRequested():
		if s, waiting := d.stop("cancelling"); waiting {
			return s
		}
	case send == nil:
		if receive.progress.GetReplicateReceive().GetAddress() != "" {
			return d.send(receive)
		}
		return d.note("preparing " + r.GetTarget() + d.unheard(r.GetTarget()))
	case receive.ended() && !receive.succeeded():
		// What the source still does is in vain.
		if s, waiting := d.stop("ending, since the target's task has ended"); waiting {
			return s
		}
	case send.ended() && send.succeeded():
		// The target has all; if it has not heard so (its agent was away), it makes
		// an end by itself now.
		if s, waiting := d.stop("ending on the target"); waiting {
			return s
		}
	case send.ended():
		if s, waiting := d.stop("ending, since the source's task has ended"); waiting {
			return s
		}
	}
	return d.progress(send)
}

// send writes the source's task: the target listens.
func (d *decision) send(receive *half) *step {
	r := d.op.GetReplicate()
	var told agentv1.TaskSpec
	if err := proto.Unmarshal(receive.task.GetSpec(), &told); err != nil {
		return d.broken("the target's task cannot be read")
	}
	spec := told.GetReplicateReceive()
	options := &debvisorv1.ReplicationOptions{}
	if err := proto.Unmarshal(d.snapshot.Replications[r.GetJobId()].Value.GetOptions(), options); err != nil {
		options.Reset()
	}
	common := spec.GetCursor()
	if common != nil {
		common = &agentv1.ZfsSnapshotID{Dataset: r.GetDataset(), Name: d.sourceName(common), Guid: common.GetGuid()}
	}
	r.Phase = phaseSend
	return d.order(stepSend, d.attempt(), taskSend, r.GetSource(), "replication/"+r.GetJobId(), &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicateSend{
		ReplicateSend: &agentv1.ReplicateSend{
			Right: spec.GetRight(), Steps: spec.GetSteps(), TargetAddress: receive.progress.GetReplicateReceive().GetAddress(),
			Raw: spec.GetRaw(), BandwidthMib: options.GetBandwidthMib(), Cursor: common,
			NodeBandwidthMib: d.snapshot.Nodes[r.GetSource()].Value.GetReplicationBandwidthMib(),
		},
	}}, "sending from "+r.GetSource())
}

// sourceName is what the source calls the common snapshot: it may have been
// renamed on one end. Of a bookmark it is the target's name.
func (d *decision) sourceName(common *agentv1.ZfsSnapshotID) string {
	decision := &debvisorv1.ReplicationDecision{}
	if proto.Unmarshal(d.op.GetReplicate().GetDecision(), decision) != nil {
		return common.GetName()
	}
	if name := decision.GetCommon(); len(name) > 1 && name[0] == '@' {
		return name[1:]
	}
	return common.GetName()
}

// progress copies the source's figures to the operation, once a second.
func (d *decision) progress(send *half) *step {
	r := d.op.GetReplicate()
	p := send.progress.GetReplicateSend()
	text := cmp.Or(p.GetPhase(), "sending")
	if p.GetSteps() > 1 {
		text = fmt.Sprintf("%s, step %d of %d", text, p.GetStep(), p.GetSteps())
	}
	text += d.unheard(r.GetSource()) + d.unheard(r.GetTarget())
	was := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(d.op.GetProgress(), was); err != nil {
		was.Reset()
	}
	now := figures(p)
	same := was.GetBytesDone() == now.GetBytesDone() && was.GetBytesTotal() == now.GetBytesTotal()
	soon := was.GetUpdatedAt() != nil && d.now.Unix()-was.GetUpdatedAt().GetSeconds() < 1
	if p == nil || d.op.GetStep() == text && (same || soon) {
		return d.note(text)
	}
	now.UpdatedAt = &debvisorv1.Timestamp{Seconds: d.now.Unix(), Nanos: int32(d.now.Nanosecond())}
	d.op.Progress, d.op.Step = encoded(now), text
	return d.commit(stepProgress, text)
}

func figures(p *agentv1.ReplicateSendProgress) *debvisorv1.OperationProgress {
	// Estimates may turn out too low.
	total := max(p.GetBytesTotal(), p.GetBytesDone())
	out := &debvisorv1.OperationProgress{BytesTotal: total, BytesDone: p.GetBytesDone(), BytesPerSecond: p.GetBytesPerSecond()}
	if total > 0 {
		out.Percent = 100 * float64(p.GetBytesDone()) / float64(total)
	}
	if rate := p.GetBytesPerSecond(); rate > 0 {
		out.EtaMs = uint64(1000 * (float64(total-p.GetBytesDone()) / float64(rate)))
	}
	return out
}

// refusals puts into the audit log what the target did not let in; nil: nothing
// that is not there yet. Our own agents ask for nothing that is refused: whoever
// did has the key of the source's agent.
func (d *decision) refusals(receive *half) *step {
	r := d.op.GetReplicate()
	p := receive.progress.GetReplicateReceive()
	if p.GetRefused() <= r.GetRefused() {
		return nil
	}
	r.Refused = p.GetRefused()
	reason := fmt.Sprintf("the target of replication %s (%s on %s) has refused %d requests, the last: %s",
		r.GetJobId(), r.GetTargetDataset(), r.GetTarget(), p.GetRefused(), p.GetRefusedLast())
	s := d.commit(stepRefused, reason)
	s.audit = &audit.Event{
		Time: d.now, Kind: audit.PermissionDenied, TraceID: d.op.GetTraceId(), Principal: "agent:" + r.GetSource(),
		Method: "replication/" + r.GetTarget(), Code: "PermissionDenied", Error: "STREAM_REFUSED", Reason: reason, Operation: d.op.GetId(),
	}
	return s
}
