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
)

// worthwhile is how many bytes an attempt that broke off must have brought over to
// count as a gain: they need not be sent again.
const worthwhile = 16 << 20

// reached is the newest snapshot that both ends have.
type reached struct {
	name    string
	guid    uint64
	created int64 // 0: not known
}

// endPair counts what an attempt has come to, and decides what is next.
func (d *decision) endPair(job cluster.Entry[*storev1.ReplicationJob], receive, send *half) *step {
	r := d.op.GetReplicate()
	var sent *agentv1.ZfsOutcome
	if send != nil {
		sent = send.outcome.GetZfs()
	}
	bytes := max(sent.GetBytes(), receive.outcome.GetZfs().GetBytes())
	r.Bytes += bytes
	r.Resumes += sent.GetResumes()
	if aside := receive.outcome.GetZfs().GetSetAside(); aside != "" {
		r.SetAside = aside
	}
	at := d.reached(job.Value, sent.GetCursor())
	gained := at != nil && at.guid != job.Value.GetCursorGuid() || bytes >= worthwhile
	switch both := receive.succeeded() && send != nil && send.succeeded(); {
	case both && r.GetMore() && !d.op.GetCancelRequested():
		r.Broken, r.LastCode, r.LastError = 0, "", ""
		d.nextAttempt(d.now)
		return d.withJob(d.commit(stepAgain, "going on with what follows"), job, moved(job.Value, at))
	case both && !r.GetMore():
		return d.succeedRun(job, at)
	case d.op.GetCancelRequested():
		return d.cancelRun(job, at)
	}
	if gained {
		r.Broken = 0
	}
	return d.retry(job, at, worst(receive, send))
}

// reached is what a sender said both ends have; nil: nothing new.
func (d *decision) reached(job *storev1.ReplicationJob, said *agentv1.ZfsSnapshotID) *reached {
	if said.GetGuid() == 0 {
		return nil
	}
	at := &reached{name: said.GetName(), guid: said.GetGuid()}
	decision := &debvisorv1.ReplicationDecision{}
	_ = proto.Unmarshal(d.op.GetReplicate().GetDecision(), decision)
	steps := decision.GetSteps()
	switch {
	case len(steps) > 0 && steps[len(steps)-1].GetTo() == "@"+at.name:
		at.created = d.op.GetReplicate().GetToCreated().GetSeconds()
	case at.guid == job.GetCursorGuid():
		at.created = job.GetCursorCreated().GetSeconds()
	case len(steps) == 0:
		at.created = d.op.GetReplicate().GetToCreated().GetSeconds()
	}
	return at
}

// worst is the task whose end says most of why an attempt broke off.
func worst(receive, send *half) *half {
	if send == nil {
		return receive
	}
	rank := func(h *half) int {
		switch judge(h) {
		case fatal:
			return 4
		case passing:
			return 3
		case absent:
			return 2
		case stopped:
			return 1
		case done:
		}
		return 0
	}
	if rank(send) >= rank(receive) {
		return send
	}
	return receive
}

// brokeOff is what comes of a task that did not succeed, before anything was sent.
func (d *decision) brokeOff(job cluster.Entry[*storev1.ReplicationJob], h *half) *step {
	if d.op.GetCancelRequested() {
		return d.cancelRun(job, nil)
	}
	return d.retry(job, nil, h)
}

// retry begins another attempt, or ends the run where that is no use.
func (d *decision) retry(job cluster.Entry[*storev1.ReplicationJob], at *reached, h *half) *step {
	r := d.op.GetReplicate()
	code, message := h.why()
	again := d.now.Add(d.pace.absent)
	switch judge(h) {
	case fatal, done:
		return d.failRun(job, at, code, message)
	case passing, stopped:
		if r.Broken++; r.GetBroken() >= maxBroken {
			return d.failRun(job, at, code, fmt.Sprintf("%d attempts in a row broke off with nothing gained, the last: %s", r.GetBroken(), message))
		}
		again = d.now.Add(d.pace.backoff(r.GetBroken() - 1))
	case absent:
	}
	r.LastCode, r.LastError = code, message
	d.nextAttempt(again)
	d.op.Step = fmt.Sprintf("waiting to try again (attempt %d): %s", r.GetAttempt(), message)
	return d.withJob(d.commit(stepAgain, "an attempt broke off: "+message), job, moved(job.Value, at))
}

// moved is the job with its cursor there; nil where that is nothing new.
func moved(job *storev1.ReplicationJob, at *reached) *storev1.ReplicationJob {
	if at == nil || at.guid == 0 || at.guid == job.GetCursorGuid() && (at.created == 0 || at.created == job.GetCursorCreated().GetSeconds()) {
		return nil
	}
	next := proto.CloneOf(job)
	next.CursorName, next.CursorGuid, next.CursorCreated = at.name, at.guid, seconds(at.created)
	return next
}

// withJob adds the job's record to a step, on the ground that nobody changed it
// meanwhile; nil: it stays.
func (d *decision) withJob(s *step, job cluster.Entry[*storev1.ReplicationJob], next *storev1.ReplicationJob) *step {
	if next == nil {
		return s
	}
	key := store.ReplicationKey(next.GetId())
	s.change.Require = append(s.change.Require, store.Unchanged(key, job.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(key, next))
	s.job = next
	return s
}

// ended is the job once this run is at its end, with its cursor there; nil: where
// it was.
func (d *decision) ended(job *storev1.ReplicationJob, at *reached) *storev1.ReplicationJob {
	r := d.op.GetReplicate()
	next := moved(job, at)
	if next == nil {
		next = proto.CloneOf(job)
	}
	next.LastOperation, next.LastEnd = d.op.GetId(), timestamppb.New(d.now)
	next.BytesTotal += r.GetBytes()
	next.ResumesTotal += r.GetResumes()
	next.LastBytes = r.GetBytes()
	if started := d.op.GetStartedAt(); started != nil {
		next.LastDurationMs = uint64(max(d.now.Sub(started.AsTime()).Milliseconds(), 0))
	}
	if len(r.GetDecision()) > 0 {
		next.Decision, next.DecisionExpires = r.GetDecision(), timestamppb.New(d.now.Add(decisionLife))
	}
	next.LagBytes = r.GetSourceWritten()
	return next
}

func (d *decision) succeedRun(job cluster.Entry[*storev1.ReplicationJob], at *reached) *step {
	next := d.ended(job.Value, at)
	next.LastSuccess, next.LastErrorCode, next.LastError = timestamppb.New(d.now), "", ""
	r := d.op.GetReplicate()
	full := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(d.op.GetProgress(), full); err == nil && len(d.op.GetProgress()) > 0 {
		full.Percent, full.EtaMs = 100, 0
		d.op.Progress = encoded(full)
	}
	return d.withJob(d.succeed(fmt.Sprintf("replication %s is done: %s has %s@%s", r.GetJobId(), r.GetTarget(), r.GetTargetDataset(), next.GetCursorName())), job, next)
}

func (d *decision) failRun(job cluster.Entry[*storev1.ReplicationJob], at *reached, code, message string) *step {
	next := d.ended(job.Value, at)
	next.LastErrorCode, next.LastError = code, message
	d.lag(next)
	return d.withJob(d.fail(code, message), job, next)
}

func (d *decision) cancelRun(job cluster.Entry[*storev1.ReplicationJob], at *reached) *step {
	next := d.ended(job.Value, at)
	next.LastErrorCode, next.LastError = "CANCELLED", "cancelled as asked"
	d.lag(next)
	return d.withJob(d.cancelled("cancelled as asked"), job, next)
}

// lag adds what was to be sent and may not have been.
func (d *decision) lag(job *storev1.ReplicationJob) {
	decision := &debvisorv1.ReplicationDecision{}
	if proto.Unmarshal(d.op.GetReplicate().GetDecision(), decision) == nil {
		job.LagBytes += decision.GetEstimatedBytes() - min(decision.GetEstimatedBytes(), d.op.GetReplicate().GetBytes())
	}
}
