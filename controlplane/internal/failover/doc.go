// Package failover is the leader's controller of the bringing back of VMs whose
// node is lost (operations of kind "failover"), and of what is left of them there:
// the lost copies, which are destroyed when their node is heard again, and whose
// entries stay on Ceph's blocklist until then.
//
// It promises that a VM is brought back only when nobody can write to its disks
// any more: its images are fenced before its placement moves, and a replica takes
// the place of a disk only on the word of a person that the node is off; that
// placement, lost copy, evidence, the end of the disks' replications and the order
// to start are one fenced transaction, on the ground that the node has not been
// heard since it was asked for; that before that transaction all can be undone,
// and after it only gone on with. A node that comes back at whatever moment has
// either kept its VM or lost it, and never both.
//
// Judge is pure, and makes the dry run as well. How images are fenced, replicas
// become disks and copies are destroyed is the agents' (agent/internal/image,
// agent/internal/failover); which nodes may take the VM is package planner's.
package failover
