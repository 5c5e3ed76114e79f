// Package tunnel carries a migration's byte streams between two hosts, so that
// neither libvirtd nor QEMU listens on a network. On each host a child process
// holds one end: it outlives the agent (its own session), is found again by its
// directory, and ends by itself when its right does.
//
//	source: unix sockets lv.sock (libvirtd) and io/mig.sock (QEMU's memory)
//	        ⇢ TLS 1.3, both certificates checked, the right's id first
//	target: libvirt's socket, and io/mig.sock where the target's QEMU listens
//
// As libvirt's socket means root, the target's end lets only those procedures
// pass that a migration needs, for the right's VM only, and only if the copy is
// to arrive paused. When to open and close tunnels is left to package migration.
package tunnel
