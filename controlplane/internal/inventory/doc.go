// Package inventory is what the leader knows of nodes and of the VMs on them:
// whether a node's agent is heard, what it last reported, and which node each
// VM belongs to. All of it is in the leader's memory and in etcd for the other
// replicas and the next leader: nodestatus/ at once when a state changes, else
// at most every 30 s for all nodes together; vms/ when a report calls for it.
//
// It promises that a heartbeat costs no write, that every clock begins anew
// with a new leader, and that a VM which two nodes report running is never
// taken for one that moved. While an operation holds a VM, its placement is
// left to the operation's controller.
package inventory
