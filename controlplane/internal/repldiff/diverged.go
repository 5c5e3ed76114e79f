package repldiff

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// maxName is the longest name that ZFS gives a dataset.
const maxName = 255

// MaxDestroyed is the most snapshots that a confirmed plan destroys, as their list is
// part of records; maxTold is how many reasons of one sort people are told.
const MaxDestroyed, maxTold = 500, 20

// AsideName is the name under which a copy is set aside.
func (in *Input) AsideName() string {
	return in.TargetDataset + ".diverged-" + in.Now.UTC().Format("20060102t150405")
}

// diverged plans for a copy that cannot simply go on. common is the target's
// snapshot that it could go back to; nil: there is none.
func (d *decision) diverged(common *agentv1.ZfsSnapshot, format string, args ...any) {
	d.because(format, args...)
	lost := d.lost(common)
	if common != nil {
		d.setCommon(common)
	}
	for _, s := range lost[:min(len(lost), MaxDestroyed)] {
		d.out.Destroy = append(d.out.Destroy, "@"+s.GetName())
	}
	if n := len(lost) - MaxDestroyed; n > 0 {
		d.because("%d more than can be listed would be destroyed, the newest @%s: no plan does that; destroy them by hand, or let the copy be set aside", n, lost[len(lost)-1].GetName())
	}
	if d.Confirmed == "" {
		d.setAside()
		return
	}
	switch {
	case common == nil || len(lost) > MaxDestroyed || !d.destroyable(lost):
		d.refuse(PlanChanged, "nothing can be destroyed on the target by plan %s: %s", d.Confirmed, strings.Join(d.out.GetReasons(), "; "))
	case d.Confirmed != d.id() && !d.accepted(common, lost):
		d.refuse(PlanChanged, "what would be destroyed on the target is not what plan %s says; look at the plan as it is now (%s)", d.Confirmed, d.id())
	default:
		d.goBack(common, lost)
	}
}

// lost are the target's snapshots that are newer than that one.
func (d *decision) lost(common *agentv1.ZfsSnapshot) []*agentv1.ZfsSnapshot {
	if common == nil {
		return nil
	}
	return d.target[slices.Index(d.target, common)+1:]
}

// setAside plans to rename the copy and to send everything anew.
func (d *decision) setAside() {
	name := d.AsideName()
	switch {
	case d.RefuseDiverged:
		d.refuse(Diverged, "the copy %s has diverged: %s", d.TargetDataset, strings.Join(d.out.GetReasons(), "; "))
		return
	case !strings.Contains(d.TargetDataset, "/"):
		d.refuse(Diverged, "the copy %s has diverged, and a pool's own dataset cannot be set aside", d.TargetDataset)
		return
	case len(name) > maxName:
		d.refuse(Diverged, "the copy %s has diverged, and its name is too long to be set aside (%s has more than %d bytes)", d.TargetDataset, name, maxName)
		return
	}
	d.out.SetAside = name
	d.plan.Aside = &agentv1.TargetAside{Guid: d.Target.Dataset.GetGuid(), RenameTo: name}
	d.plan.Common, d.plan.CommonName, d.plan.CommonCreated = 0, "", 0
	d.full()
}

// goBack plans to destroy what is newer on the target than both have, as was
// confirmed, and to go on from there.
func (d *decision) goBack(common *agentv1.ZfsSnapshot, lost []*agentv1.ZfsSnapshot) {
	aside := &agentv1.TargetAside{Guid: d.Target.Dataset.GetGuid(), KeepGuid: common.GetGuid()}
	for _, s := range lost {
		aside.Destroy = append(aside.Destroy, &agentv1.ZfsSnapshotID{Dataset: d.TargetDataset, Name: s.GetName(), Guid: s.GetGuid()})
	}
	d.plan.Aside = aside
	d.incremental(common)
	if d.out.GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_NOTHING {
		// There is nothing to send, and so nothing may be destroyed for it.
		d.refuse(NoSnapshot, "the source has nothing newer than @%s: nothing is destroyed on the target for nothing", common.GetName())
	}
}

// destroyable tells whether nobody else needs what would be lost.
func (d *decision) destroyable(lost []*agentv1.ZfsSnapshot) bool {
	needed := 0
	because := func(format string, args ...any) {
		if needed++; needed <= maxTold {
			d.because(format, args...)
		}
	}
	for _, s := range lost {
		for _, tag := range s.GetHolds() {
			if tag != HoldTag(d.Job) {
				because("the copy's @%s is held by %s", s.GetName(), tag)
			}
		}
		for _, clone := range s.GetClones() {
			because("the copy's @%s is cloned by %s", s.GetName(), clone)
		}
	}
	return needed == 0
}

// accepted tells whether what would be lost is what is left of what an earlier
// attempt was allowed to destroy.
func (d *decision) accepted(common *agentv1.ZfsSnapshot, lost []*agentv1.ZfsSnapshot) bool {
	a := d.Accepted
	if a == nil || a.GetRenameTo() != "" || a.GetGuid() != d.Target.Dataset.GetGuid() || a.GetKeepGuid() != common.GetGuid() {
		return false
	}
	for _, s := range lost {
		if !slices.ContainsFunc(a.GetDestroy(), func(id *agentv1.ZfsSnapshotID) bool { return id.GetGuid() == s.GetGuid() }) {
			return false
		}
	}
	return true
}

// id names the plan by what it does to the target's copy: what is sent may be
// more each time, what is lost may not.
func (d *decision) id() string {
	var b strings.Builder
	source, target := d.Source.Dataset, d.Target.Dataset
	fmt.Fprintf(&b, "%q %q %q %d %d %d %s\n", d.Job, d.Dataset, d.TargetDataset, source.GetGuid(), target.GetGuid(), d.out.GetDivergence(), d.out.GetCommonGuid())
	if d.out.GetDivergence() != debvisorv1.Divergence_DIVERGENCE_NONE {
		fmt.Fprintf(&b, "written %d\n", target.GetWrittenBytes())
		for _, s := range d.target {
			fmt.Fprintf(&b, "%d\n", s.GetGuid())
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	return "plan-" + hex.EncodeToString(sum[:8])
}
