// Package freeze has a guest's file systems frozen, by the QEMU guest agent,
// while its disks are snapshotted. What it promises is that no guest stays
// frozen longer than its budget, whatever happens to us: a child process holds
// the freeze and thaws when the snapshots are taken, when the budget has passed,
// and when the agent dies; what a killed child has left is thawed by the agent,
// now or at its next start, because a mark was on disk before the freeze. What
// the snapshots are, and what becomes of those that were not taken in time, is
// up to the caller.
package freeze
