// Package migration moves a VM from one host to another: the task kinds
// migrate-send and migrate-receive, and the service with which the two agents
// ask each other. libvirt copies and switches over; what is done about what it
// left on either side, at the normal end and after every crash, is decided by
// one pure function, settle. It promises that a target's copy runs only after
// the source's agent has seen its own copy gone, and that whoever is unsure
// leaves things as they are, paused. Which VM goes where is the leader's.
package migration
