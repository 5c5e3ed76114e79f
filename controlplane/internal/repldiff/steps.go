package repldiff

import (
	"fmt"
	"slices"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// full plans to send everything: the oldest snapshot whole, then the others.
func (d *decision) full() {
	first := d.source[0]
	if d.NewestOnly {
		first = d.source[len(d.source)-1]
	}
	d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_FULL
	if d.Target.Dataset != nil && d.plan.Aside == nil && d.resumes(0) {
		// The oldest may have been pruned since; the stream that was cut is as good.
		first = d.byGUID(d.Token.GetToGuid())
		d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME
	}
	d.plan.Steps = []*agentv1.ReplicationStep{{To: first.GetName(), ToGuid: first.GetGuid()}}
	d.follow(first.GetCreateTxg(), "@"+first.GetName(), first.GetGuid(), nil)
}

// incremental plans to go on from a snapshot that is the target's newest.
func (d *decision) incremental(common *agentv1.ZfsSnapshot) {
	from := d.bases[common.GetGuid()]
	d.setCommon(common)
	d.plan.TargetGUID = d.Target.Dataset.GetGuid()
	d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_INCREMENTAL
	names := d.targetNames(common)
	d.follow(from.createTXG, from.name, common.GetGuid(), names)
	switch {
	case len(d.plan.Steps) > 0:
	case d.newerThan(from.createTXG) > 0:
		d.refuse(NameClash, "the copy has other snapshots of the same names as all %d that are to be sent: rename or destroy them on either end",
			d.newerThan(from.createTXG))
	default:
		d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_NOTHING
		d.plan.Unmarked = !d.marked(common.GetGuid())
		d.because("the target has the newest snapshot, @%s", common.GetName())
	}
}

// follow adds the steps to what is newer than what was made in a transaction,
// from that name and guid on. taken are names that the target has already.
func (d *decision) follow(txg uint64, name string, guid uint64, taken map[string]uint64) {
	rest := d.source[len(d.source)-d.newerThan(txg):]
	rest = d.unclashing(rest, taken)
	if d.plan.Aside == nil && guid == d.plan.Common && guid != 0 && d.resumes(guid) {
		rest = d.resume(rest)
	} else if d.NewestOnly && len(rest) > 1 {
		rest = rest[len(rest)-1:]
	}
	for _, s := range rest {
		if len(d.plan.Steps) == MaxSteps {
			d.plan.More = true
			return
		}
		d.plan.Steps = append(d.plan.Steps, &agentv1.ReplicationStep{From: name, FromGuid: guid, To: s.GetName(), ToGuid: s.GetGuid()})
		name, guid = "@"+s.GetName(), s.GetGuid()
	}
}

// resume begins what is left to send with the stream that was cut, where that
// leaves out nothing that is to be sent.
func (d *decision) resume(rest []*agentv1.ZfsSnapshot) []*agentv1.ZfsSnapshot {
	at := slices.IndexFunc(rest, func(s *agentv1.ZfsSnapshot) bool { return s.GetGuid() == d.Token.GetToGuid() })
	switch {
	case at == 0 || at > 0 && d.NewestOnly:
		d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME
		if last := len(rest) - 1; d.NewestOnly && at < last {
			return []*agentv1.ZfsSnapshot{rest[at], rest[last]}
		}
		return rest[at:]
	case d.NewestOnly && len(rest) > 1:
		return rest[len(rest)-1:]
	}
	return rest
}

// unclashing leaves out the snapshots whose names others have on the target.
func (d *decision) unclashing(rest []*agentv1.ZfsSnapshot, taken map[string]uint64) []*agentv1.ZfsSnapshot {
	clashes := 0
	free := make([]*agentv1.ZfsSnapshot, 0, len(rest))
	for _, s := range rest {
		if _, clash := taken[s.GetName()]; !clash {
			free = append(free, s)
			continue
		}
		if clashes++; clashes <= 3 {
			d.because("@%s (guid %d) is left out: the copy has another snapshot of that name (guid %d)", s.GetName(), s.GetGuid(), taken[s.GetName()])
		}
	}
	if clashes > 3 {
		d.because("%d more are left out for their names", clashes-3)
	}
	return free
}

// targetNames are the names that the target has up to a snapshot: what is newer
// is not there any more when the first step is taken.
func (d *decision) targetNames(upTo *agentv1.ZfsSnapshot) map[string]uint64 {
	names := make(map[string]uint64, len(d.target))
	for _, s := range d.target {
		names[s.GetName()] = s.GetGuid()
		if s == upTo {
			break
		}
	}
	return names
}

// newerThan counts the source's snapshots that were made after a transaction.
func (d *decision) newerThan(txg uint64) int {
	at, _ := slices.BinarySearchFunc(d.source, txg, func(s *agentv1.ZfsSnapshot, txg uint64) int {
		if s.GetCreateTxg() <= txg {
			return -1
		}
		return 1
	})
	return len(d.source) - at
}

func (d *decision) byGUID(guid uint64) *agentv1.ZfsSnapshot {
	at := slices.IndexFunc(d.source, func(s *agentv1.ZfsSnapshot) bool { return s.GetGuid() == guid })
	return d.source[at]
}

// show tells people of the steps.
func (d *decision) show() {
	for _, s := range d.plan.Steps {
		d.out.Steps = append(d.out.Steps, &debvisorv1.ReplicationStepPlan{From: s.GetFrom(), To: "@" + s.GetTo()})
	}
	if d.plan.More {
		d.because("these are the first %d streams; the others follow", MaxSteps)
	}
	if d.Target.Dataset.GetPartial() && d.plan.Refusal == nil && d.plan.Aside == nil && len(d.plan.Steps) > 0 && d.out.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME {
		d.because("what is left of a stream that was cut cannot be gone on with, and is discarded")
	}
}

// Estimate notes how many bytes the steps have, by their index; one that is
// missing is not known. total, unless 0, is that of all.
func (p *Plan) Estimate(bytes map[int]uint64, total uint64) {
	sum := uint64(0)
	for i, n := range bytes {
		if i < 0 || i >= len(p.Steps) {
			continue
		}
		p.Steps[i].EstimatedBytes = n
		if i < len(p.Decision.GetSteps()) {
			p.Decision.Steps[i].EstimatedBytes = n
		}
		sum += n
	}
	p.Decision.EstimatedBytes = max(sum, total)
}

// Fit refuses a plan whose streams are larger than what the target has left,
// bytes. Call it only where that is known.
func (p *Plan) Fit(available uint64) {
	if p.Refusal != nil || p.Decision.GetEstimatedBytes() <= available {
		return
	}
	p.Refuse(NoSpace, fmt.Sprintf("the target has %d bytes left, and about %d are to be sent", available, p.Decision.GetEstimatedBytes()))
}

// Refuse refuses a plan for what was learnt of it afterwards.
func (p *Plan) Refuse(code, message string) {
	p.Refusal = &Refusal{code, message}
	p.Decision.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED
	p.Decision.Reasons = append(p.Decision.Reasons, message)
	p.Steps, p.Aside, p.More = nil, nil, false
}
