package repldiff

import (
	"cmp"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// MaxSteps is the most streams that one plan has: their list is part of records
// whose size is limited. What is beyond is for the next plan (Plan.More).
const MaxSteps = 500

// Side is what one end has.
type Side struct {
	// Dataset is absent where there is none of that name.
	Dataset *agentv1.ZfsDataset
	// Snapshots and Bookmarks are the dataset's own, in any order.
	Snapshots []*agentv1.ZfsSnapshot
	Bookmarks []*agentv1.ZfsBookmark
}

// Input is what a plan is made of.
type Input struct {
	// Job is the replication job's id; Dataset and TargetDataset are its names on
	// both ends, which may be one node's (SameNode).
	Job                    string
	Dataset, TargetDataset string
	SameNode               bool
	// SourceGUID is the guid that the source had when the job was made; 0: any.
	SourceGUID uint64
	// Cursor is the guid of the snapshot that was last known to be on both ends; 0:
	// none ever was.
	Cursor         uint64
	Source, Target Side
	// Token is what the target's resume token stands for, as the source's ZFS says;
	// nil: there is none, or it leads to nothing.
	Token *agentv1.ZfsSendEstimate
	// NewestOnly leaves out what lies between; RefuseDiverged refuses to set aside
	// a copy that has diverged.
	NewestOnly, RefuseDiverged bool
	// EncryptedUnsafe is why encrypted datasets are not sent by these versions of
	// ZFS; empty: they are.
	EncryptedUnsafe string
	// Modified: ZFS itself has refused the last attempt, because the target was
	// written to.
	Modified bool
	// Confirmed is the plan whose destruction was confirmed; empty: none was.
	// Accepted is what was told to the target for it in an earlier attempt.
	Confirmed string
	Accepted  *agentv1.TargetAside
	Now       time.Time
}

// Options takes the options of a job.
func (in *Input) Options(o *debvisorv1.ReplicationOptions) {
	in.NewestOnly, in.RefuseDiverged = o.GetNewestOnly(), o.GetRefuseDiverged()
}

// Refusal is why nothing can be done.
type Refusal struct {
	// Code is stable and for programs.
	Code, Message string
}

// The codes of refusals.
const (
	SourceNotFound = "SOURCE_NOT_FOUND"
	SourceReplaced = "SOURCE_REPLACED"
	NoSnapshot     = "NO_SNAPSHOT"
	// SameDataset: the copy would be, hold or lie in its own source.
	SameDataset = "SAME_DATASET"
	// TargetUnrelated: what has the copy's name is not this job's copy.
	TargetUnrelated = "TARGET_UNRELATED"
	// Diverged: it could go on only by setting aside or destroying, which is not wanted.
	Diverged = "REPLICATION_DIVERGED"
	// PlanChanged: what was confirmed is not what would be destroyed now.
	PlanChanged = "PLAN_CHANGED"
	// EncryptedUnsafe: these versions of ZFS are known to damage what they send.
	EncryptedUnsafe = "ENCRYPTED_SEND_UNSAFE"
	// NameClash: the target has other snapshots of the names of all that is to be sent.
	NameClash = "SNAPSHOT_NAME_CLASH"
	// NoSpace: the target has no room for it.
	NoSpace = "TARGET_NO_SPACE"
)

// Plan is what a run has to do.
type Plan struct {
	// Decision is for people, and for what protects snapshots meanwhile.
	Decision *debvisorv1.ReplicationDecision
	// Steps are the streams, each from what the one before has brought.
	Steps []*agentv1.ReplicationStep
	// More: others follow once these are done.
	More bool
	// Aside is what becomes of the target's copy before; nil: nothing.
	Aside *agentv1.TargetAside
	// Raw: streams are encrypted as they are on disk.
	Raw  bool
	Type agentv1.ZfsType
	// SourceGUID is the source's dataset, SourceWritten the bytes written on it since
	// its newest snapshot.
	SourceGUID, SourceWritten uint64
	// TargetGUID is the target's dataset that the first step goes on with; 0: there
	// is to be none.
	TargetGUID uint64
	// Common is the snapshot (or bookmark of the source) that the first step begins
	// at; CommonName is the snapshot's name on the target.
	Common     uint64
	CommonName string
	// CommonCreated is when it was taken, seconds since 1970.
	CommonCreated int64
	// LastCreated is when the newest snapshot was taken that the target has once the
	// steps are done, seconds since 1970; 0: not known.
	LastCreated int64
	// Unmarked: there is nothing to send, but what keeps the common snapshot for the
	// next time is not as it should be.
	Unmarked bool
	// Refusal is set where nothing can be done.
	Refusal *Refusal
}

// ordered gives the snapshots that are known well enough, from old to new. An
// end's own order is by the transaction that made them, whatever clocks said.
func ordered(snapshots []*agentv1.ZfsSnapshot) []*agentv1.ZfsSnapshot {
	known := make([]*agentv1.ZfsSnapshot, 0, len(snapshots))
	for _, s := range snapshots {
		if s.GetGuid() != 0 && s.GetName() != "" {
			known = append(known, s)
		}
	}
	slices.SortFunc(known, func(a, b *agentv1.ZfsSnapshot) int {
		return cmp.Or(cmp.Compare(a.GetCreateTxg(), b.GetCreateTxg()), cmp.Compare(a.GetCreated(), b.GetCreated()),
			strings.Compare(a.GetName(), b.GetName()))
	})
	return known
}

// base is where on the source an increment can begin.
type base struct {
	name      string // @snapshot or #bookmark
	createTXG uint64
	snapshot  bool
}

// bases gives, by guid, where increments can begin; a snapshot rather than a
// bookmark of it, and of several bookmarks always the same.
func bases(side Side, snapshots []*agentv1.ZfsSnapshot) map[uint64]base {
	found := make(map[uint64]base, len(snapshots)+len(side.Bookmarks))
	for _, b := range side.Bookmarks {
		if b.GetGuid() == 0 {
			continue
		}
		name := "#" + b.GetName()
		if was, ok := found[b.GetGuid()]; !ok || name < was.name {
			found[b.GetGuid()] = base{name: name, createTXG: b.GetCreateTxg()}
		}
	}
	for _, s := range snapshots {
		found[s.GetGuid()] = base{name: "@" + s.GetName(), createTXG: s.GetCreateTxg(), snapshot: true}
	}
	return found
}
