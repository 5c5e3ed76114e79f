// Package hypervisor is the only one that touches libvirt. It promises that no
// call outlasts its context or the call timeout, whatever libvirtd does: a
// libvirtd that is down, restarted or hung is an errdefs.Unavailable, and the
// calls that hang in C are few. It knows domains, and nothing of migrations'
// rules, tasks or other nodes.
package hypervisor
