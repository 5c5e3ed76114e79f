package repldiff

import (
	"fmt"
	"strconv"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// decision is a plan in the making.
type decision struct {
	*Input
	plan   *Plan
	out    *debvisorv1.ReplicationDecision
	source []*agentv1.ZfsSnapshot // oldest first, as is target
	target []*agentv1.ZfsSnapshot
	bases  map[uint64]base
}

// Decide plans what a run has to do. It does not change in.
func Decide(in *Input) *Plan {
	d := &decision{
		Input: in, out: &debvisorv1.ReplicationDecision{},
		source: ordered(in.Source.Snapshots), target: ordered(in.Target.Snapshots),
	}
	d.plan = &Plan{Decision: d.out, Type: in.Source.Dataset.GetType(), Raw: in.Source.Dataset.GetEncrypted(), SourceGUID: in.Source.Dataset.GetGuid(), SourceWritten: in.Source.Dataset.GetWrittenBytes()}
	d.bases = bases(in.Source, d.source)
	d.decide()
	d.out.PlanId = d.id()
	d.plan.LastCreated = d.plan.CommonCreated
	if n := len(d.plan.Steps); n > 0 {
		d.plan.LastCreated = d.byGUID(d.plan.Steps[n-1].GetToGuid()).GetCreated()
	}
	d.show()
	return d.plan
}

func (d *decision) decide() {
	if !d.sourceServes() {
		return
	}
	if origin := d.Source.Dataset.GetOrigin(); origin != "" {
		d.because("%s is a clone of %s; its copy is none, and is sent in full", d.Dataset, origin)
	}
	copied := d.Target.Dataset
	switch {
	case copied == nil:
		if d.Cursor != 0 {
			d.because("the copy is gone from the target: it is sent anew")
		}
		d.full()
	case copied.GetReplicationJob() == d.Job:
		d.goOn()
	case copied.GetReplicationJob() == "" && len(d.target) == 0 && d.resumes(0):
		// The rest of its first receive, cut before it could be marked.
		d.because("the first stream was cut; what has arrived is gone on with")
		d.full()
	default:
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_UNRELATED
		whose := "it is none of ours"
		if other := copied.GetReplicationJob(); other != "" {
			whose = "it is the copy of job " + other
		}
		d.refuse(TargetUnrelated, "%s on the target is not the copy of job %s: %s; give the copy another name, or take that out of the way yourself",
			d.TargetDataset, d.Job, whose)
	}
}

// sourceServes tells whether the source can be sent from at all.
func (d *decision) sourceServes() bool {
	source := d.Source.Dataset
	switch {
	case d.SameNode && overlap(d.Dataset, d.TargetDataset):
		d.refuse(SameDataset, "%s and its copy %s are on one node and overlap", d.Dataset, d.TargetDataset)
	case source == nil:
		d.refuse(SourceNotFound, "there is no dataset %s on the source", d.Dataset)
	case d.SourceGUID != 0 && source.GetGuid() != d.SourceGUID:
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_SOURCE_REPLACED
		d.refuse(SourceReplaced, "%s on the source is another dataset (guid %d) than the one that the job was made for (guid %d); make a new job for it",
			d.Dataset, source.GetGuid(), d.SourceGUID)
	case source.GetEncrypted() && d.EncryptedUnsafe != "":
		d.refuse(EncryptedUnsafe, "%s is encrypted: %s", d.Dataset, d.EncryptedUnsafe)
	case len(d.source) == 0:
		d.refuse(NoSnapshot, "%s has no snapshot to send", d.Dataset)
	default:
		return true
	}
	return false
}

// goOn plans for a target that is this job's copy.
func (d *decision) goOn() {
	copied := d.Target.Dataset
	if len(d.target) == 0 && (d.resumes(0) || copied.GetPartial()) {
		d.full() // what does not fit is discarded by the target
		return
	}
	if d.plan.Type != copied.GetType() || d.plan.Raw && !copied.GetEncrypted() {
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_NOTHING_COMMON
		d.diverged(nil, "the copy is %s, the source %s", kindOf(copied), kindOf(d.Source.Dataset))
		return
	}
	if len(d.target) == 0 {
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_NOTHING_COMMON
		d.diverged(nil, "the copy has no snapshot")
		return
	}
	newest := d.target[len(d.target)-1]
	common := d.common()
	switch {
	case common == newest && !d.written():
		d.incremental(common)
	case common == newest:
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_TARGET_WRITTEN
		d.diverged(common, "the copy was written to since its newest snapshot @%s (%d bytes)", newest.GetName(), copied.GetWrittenBytes())
	case d.lostCursor():
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_SOURCE_ROLLED_BACK
		d.diverged(common, "the source has no longer the snapshot that both had last (guid %d), nor a bookmark of it", d.Cursor)
	case common != nil:
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_TARGET_NEWER
		d.diverged(common, "the copy has snapshots after @%s that the source never had or has no more, the newest @%s", common.GetName(), newest.GetName())
	default:
		d.out.Divergence = debvisorv1.Divergence_DIVERGENCE_NOTHING_COMMON
		d.diverged(nil, "no snapshot of the copy is known to the source")
	}
}

// common is the target's newest snapshot that the source can send from.
func (d *decision) common() *agentv1.ZfsSnapshot {
	for i := len(d.target) - 1; i >= 0; i-- {
		if _, ok := d.bases[d.target[i].GetGuid()]; ok {
			return d.target[i]
		}
	}
	return nil
}

func (d *decision) written() bool { return d.Modified || d.Target.Dataset.GetWrittenBytes() > 0 }

// lostCursor tells whether the target has the cursor and the source has not.
func (d *decision) lostCursor() bool {
	if _, ok := d.bases[d.Cursor]; ok || d.Cursor == 0 {
		return false
	}
	for _, s := range d.target {
		if s.GetGuid() == d.Cursor {
			return true
		}
	}
	return false
}

// resumes tells whether the token stands for a step from that guid (0: a full
// stream) to a snapshot that the source still has, by the name that it has.
func (d *decision) resumes(from uint64) bool {
	if d.Token.GetToGuid() == 0 || d.Token.GetFromGuid() != from {
		return false
	}
	to, ok := d.bases[d.Token.GetToGuid()]
	return ok && to.snapshot && d.Token.GetTo() == d.Dataset+to.name
}

func (d *decision) because(format string, args ...any) {
	d.out.Reasons = append(d.out.Reasons, fmt.Sprintf(format, args...))
}

func (d *decision) refuse(code, format string, args ...any) {
	d.out.Mode = debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED
	d.plan.Refusal = &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
	d.plan.Steps, d.plan.Aside, d.plan.More = nil, nil, false
	d.because("%s", d.plan.Refusal.Message)
}

// setCommon notes where the first step begins.
func (d *decision) setCommon(s *agentv1.ZfsSnapshot) {
	d.plan.Common, d.plan.CommonName, d.plan.CommonCreated = s.GetGuid(), s.GetName(), s.GetCreated()
	d.out.Common = d.bases[s.GetGuid()].name
	d.out.CommonGuid = strconv.FormatUint(s.GetGuid(), 10)
}

// overlap tells whether one name is the other, or lies in it.
func overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}

func kindOf(d *agentv1.ZfsDataset) string {
	kind := "a file system"
	if d.GetType() == agentv1.ZfsType_ZFS_TYPE_VOLUME {
		kind = "a volume"
	}
	if d.GetEncrypted() {
		return kind + ", encrypted"
	}
	return kind + ", not encrypted"
}
