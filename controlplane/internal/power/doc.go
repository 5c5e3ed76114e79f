// Package power is the leader's controller of the operations that start and
// stop VMs (vm.start, vm.shutdown, vm.destroy) and that turn libvirt's own
// autostart off once the leader has taken it over (vm.autostart). Each is one
// task for the node that the VM belongs to. Nothing is written for a node that
// is not heard: until then an operation waits, and can be cancelled at once.
// From then on it ends only when the node's agent has said what came of it, or
// somebody that the node is powered off, so that no order is left behind that
// somebody might still carry out.
//
// Where a VM belongs, and which VMs are to be started after a boot, is the
// inventory's to say; how a guest is started and stopped, and that it happens
// at most once, is the agents' (agent/internal/power).
package power
