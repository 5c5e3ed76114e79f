// Package failover has the kinds of tasks that bring a VM back on a node when its
// own is lost, and that destroy what is left of it when that one returns:
// failover-start and failover-discard.
//
// It promises that each can be gone on with wherever an agent died in it; that a
// start overtaken by a later placement of the VM does nothing; that a replica
// becomes a disk only if it is the one that was planned and as it was received;
// and that a discard removes nothing of any disk. That nobody else can write to the
// disks is proven by others before either is ordered, and where the VM belongs is
// the leader's to decide.
package failover
