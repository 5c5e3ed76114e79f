// Package replication has the kinds of tasks that take and destroy snapshots and
// that copy a dataset's snapshots from one node to another: replicate-send on the
// source and replicate-receive on the target, which meet in a stream of package
// tunnel.
//
// It promises that a run goes on by itself wherever it was cut, whichever side
// died, as long as the right lasts; that nothing but the plan's snapshots goes
// over, whatever the other side says: each is known by its guid; and that the last
// snapshot which both sides have (the cursor) is kept on both at every moment:
//
//	source   hold new ─────────────▸ bookmark new ▸ release old
//	            └▸ stream ▸┐             ▲               └▸┐
//	target                 hold new ─────┘           release old
//
// Each of these steps can be done again, and is after a restart, by looking. At
// rest the source has one hold and one bookmark of the job, the target one hold,
// all of the cursor.
//
// A run that is interrupted leaves what has arrived to be resumed. One that fails
// for good, or is cancelled, leaves whole snapshots only. What to send, and
// whether to try again, is the leader's business.
package replication
