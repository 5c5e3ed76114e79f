// Package session keeps one agent's stream to the leader open: it finds the
// leader among the replicas, says hello, sends heartbeats, inventory and task
// reports up, and hands what comes down to the worker.
//
// It promises that a heartbeat waits for nothing but the network: not for
// libvirt, not for the journal's disk, not for a task. It leaves to the worker
// what must be remembered, and to the host (Host) what there is to tell.
package session
