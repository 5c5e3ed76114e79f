// Package retention decides which snapshots stay: snapshots, a retention policy
// and what protects some of them in, a verdict for each with all its reasons
// out. It is pure: no I/O and no clock, so that a dry run and the pruning that
// follows decide alike.
//
// It promises never to let go a snapshot that is not ours, is held, is cloned,
// is the last one in common with a replication target, is needed to resume a
// replication, lies in the future, or of which a fact is missing; to let the
// snapshots of a set go together only, of those that it is given; to let go
// nothing more when asked again after the removal; and that a policy that keeps
// more lets go no other. That the facts are true is the caller's to see to:
// whoever cannot learn what protects a dataset's snapshots must not ask.
package retention
