package replication

// Where an agent may die between two steps; the fault tests stop it there.
const (
	pointSnapshotBefore = "replicationSnapshotBefore"
	pointSnapshotTaken  = "replicationSnapshotTaken"
	pointDestroyBatch   = "replicationDestroyBatch"

	pointSendHold      = "replicationSendHold"      // holds new
	pointSendHeld      = "replicationSendHeld"      // before it dials
	pointSendBegin     = "replicationSendBegin"     // before a stream
	pointSendStream    = "replicationSendStream"    // in the middle of one
	pointSendLast      = "replicationSendLast"      // before its last part
	pointSendStreamed  = "replicationSendStreamed"  // all is sent, the target has not said so
	pointSendWhole     = "replicationSendWhole"     // the target has a step
	pointSendBookmark  = "replicationSendBookmark"  // the target holds; no bookmark yet
	pointSendMarked    = "replicationSendMarked"    // bookmark made, older ones not released
	pointSendReleasing = "replicationSendReleasing" // older holds gone, bookmarks not
	pointSendSettled   = "replicationSendSettled"   // the target has not been told to release
	pointSendDone      = "replicationSendDone"      // nothing is left but to say so

	pointReceiveAside     = "replicationReceiveAside"     // before what is in the way is touched
	pointReceiveSetAside  = "replicationReceiveSetAside"  // renamed or destroyed
	pointReceiveRolling   = "replicationReceiveRolling"   // newer snapshots are gone, not rolled back
	pointReceiveListen    = "replicationReceiveListen"    // before it listens
	pointReceiveBegin     = "replicationReceiveBegin"     // before zfs receive
	pointReceiveStream    = "replicationReceiveStream"    // in the middle of it
	pointReceiveWhole     = "replicationReceiveWhole"     // zfs has taken it, nobody has looked
	pointReceiveChecked   = "replicationReceiveChecked"   // the source has not heard
	pointReceiveHold      = "replicationReceiveHold"      // before new is held
	pointReceiveHeld      = "replicationReceiveHeld"      // held, the source has not heard
	pointReceiveReleasing = "replicationReceiveReleasing" // before older ones are released
	pointReceiveReleased  = "replicationReceiveReleased"  // the source has not heard
	pointReceiveDiscard   = "replicationReceiveDiscard"   // before the rest of a receive is discarded
	pointReceiveDiscarded = "replicationReceiveDiscarded" // before the end is written down

	pointReleaseHolds = "replicationReleaseHolds" // before holds and bookmarks are taken away
	pointReleaseMark  = "replicationReleaseMark"  // before the target's mark is
)

// pass is called where it says.
func (r *Replication) pass(point string) {
	r.passing(point)
	switch point {
	case pointSnapshotBefore:
		// gofail: var replicationSnapshotBefore struct{}
	case pointSnapshotTaken:
		// gofail: var replicationSnapshotTaken struct{}
	case pointDestroyBatch:
		// gofail: var replicationDestroyBatch struct{}
	case pointReleaseHolds:
		// gofail: var replicationReleaseHolds struct{}
	case pointReleaseMark:
		// gofail: var replicationReleaseMark struct{}
	}
	passSend(point)
	passReceive(point)
}

func passSend(point string) {
	switch point {
	case pointSendHold:
		// gofail: var replicationSendHold struct{}
	case pointSendHeld:
		// gofail: var replicationSendHeld struct{}
	case pointSendBegin:
		// gofail: var replicationSendBegin struct{}
	case pointSendStream:
		// gofail: var replicationSendStream struct{}
	case pointSendLast:
		// gofail: var replicationSendLast struct{}
	case pointSendStreamed:
		// gofail: var replicationSendStreamed struct{}
	case pointSendWhole:
		// gofail: var replicationSendWhole struct{}
	case pointSendBookmark:
		// gofail: var replicationSendBookmark struct{}
	case pointSendMarked:
		// gofail: var replicationSendMarked struct{}
	case pointSendReleasing:
		// gofail: var replicationSendReleasing struct{}
	case pointSendSettled:
		// gofail: var replicationSendSettled struct{}
	case pointSendDone:
		// gofail: var replicationSendDone struct{}
	}
}

func passReceive(point string) {
	switch point {
	case pointReceiveAside:
		// gofail: var replicationReceiveAside struct{}
	case pointReceiveSetAside:
		// gofail: var replicationReceiveSetAside struct{}
	case pointReceiveRolling:
		// gofail: var replicationReceiveRolling struct{}
	case pointReceiveListen:
		// gofail: var replicationReceiveListen struct{}
	case pointReceiveBegin:
		// gofail: var replicationReceiveBegin struct{}
	case pointReceiveStream:
		// gofail: var replicationReceiveStream struct{}
	case pointReceiveWhole:
		// gofail: var replicationReceiveWhole struct{}
	case pointReceiveChecked:
		// gofail: var replicationReceiveChecked struct{}
	case pointReceiveHold:
		// gofail: var replicationReceiveHold struct{}
	case pointReceiveHeld:
		// gofail: var replicationReceiveHeld struct{}
	case pointReceiveReleasing:
		// gofail: var replicationReceiveReleasing struct{}
	case pointReceiveReleased:
		// gofail: var replicationReceiveReleased struct{}
	case pointReceiveDiscard:
		// gofail: var replicationReceiveDiscard struct{}
	case pointReceiveDiscarded:
		// gofail: var replicationReceiveDiscarded struct{}
	}
}
