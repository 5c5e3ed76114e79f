package retention

import "time"

// Snapshot is what is known of one snapshot.
type Snapshot struct {
	// Dataset and Name are the parts before and after the "@".
	Dataset, Name string
	// GUID is ZFS's, the same for all copies of the snapshot; 0: not known.
	GUID uint64
	// CreateTXG orders snapshots of one dataset that were taken in one second.
	CreateTXG uint64
	// Created is when it was taken, on the clock of the node that took it; copies
	// keep it. Zero: not known.
	Created time.Time
	// Used is the bytes that go free when it alone is destroyed.
	Used uint64
	// Ours tells that DebVisor took it.
	Ours bool
	// Holds are the tags that hold it, Clones the datasets made of it.
	Holds, Clones []string
	// Protected tells that somebody has set RBD's protection on it, Template that
	// clones are to be made of it: no rule lets either go.
	Protected, Template bool
	// Label is what it was given when it was taken.
	Label string
	// Set is what it shares with the snapshots of other datasets that were taken at
	// the same moment; "": it was taken alone.
	Set string
}

// Protection is what replication needs, by the snapshot's GUID: one that is
// missing here is protected by nobody.
type Protection struct {
	// Cursors are the snapshots that are the last in common with a target.
	Cursors map[uint64][]Cursor
	// Resumes are the ids of the jobs that need a snapshot, as the one they send
	// or the one they send from, to go on where they were cut off.
	Resumes map[uint64][]string
}

// Cursor is where a replication job goes on from.
type Cursor struct {
	// Node is the target, Job the job's id.
	Node, Job string
}

// Rule is why a snapshot stays.
type Rule string

// The rules of a policy, then what protects whatever the policy says.
const (
	Last    Rule = "last"
	Within  Rule = "within"
	Hourly  Rule = "hourly"
	Daily   Rule = "daily"
	Weekly  Rule = "weekly"
	Monthly Rule = "monthly"
	Yearly  Rule = "yearly"
	Pattern Rule = "pattern"

	NotOurs Rule = "not-ours" // somebody else's
	Outside Rule = "outside"  // the policy looks at others only
	Unknown Rule = "unknown"  // a fact is missing
	Future  Rule = "future"   // newer than now
	Held    Rule = "held"
	Cloned  Rule = "cloned"
	Common  Rule = "cursor" // the last in common with a target
	Resume  Rule = "resume" // a job's going on needs it
	Set     Rule = "set"    // another of its set stays

	Protected Rule = "protected" // by RBD's own mark
	Template  Rule = "template"  // clones are to be made of it
)

// Reason is one rule that keeps a snapshot, with what it is about.
type Reason struct {
	Rule Rule
	// Text is for people, such as "daily 2026-11-21" or "held by backup".
	Text string
}

// Verdict is what becomes of one snapshot.
type Verdict struct {
	Snapshot Snapshot
	Keep     bool
	// Reasons are all that keep it; none for one that goes.
	Reasons []Reason
}

// Decision is what becomes of all.
type Decision struct {
	// Verdicts are by dataset, oldest first.
	Verdicts []Verdict
	// Kept and Removed count them.
	Kept, Removed int
	// FreesAtLeast is the sum of Used of those that go, bytes: what several
	// share goes free as well once the last of them is gone.
	FreesAtLeast uint64
}
