// Package inventory knows the agent's host: what it has, what it can do, which
// VMs it holds and how it is. It learns of VMs by libvirt's events; a full look
// is taken when libvirt (re)connects, and every five minutes in case an event
// was lost.
//
// Whoever asks is answered from memory: libvirt, a file system or Ceph that
// hangs shows in Health's problems and holds up nobody.
package inventory
