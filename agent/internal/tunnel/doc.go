// Package tunnel carries a migration's byte streams between two hosts, so that
// neither libvirtd nor QEMU listens on a network. On each host a child process
// holds one end: it outlives the agent (its own session), is found again by its
// directory, and ends by itself when its right does.
//
//	source: unix sockets lv.sock (libvirtd), io/mig.sock (QEMU's memory, in one
//	        stream or many), io/nbd.sock (its disks), copy.sock (our own copy)
//	        ⇢ TLS 1.3, both certificates checked, the right's id first
//	target: libvirt's socket, io/mig.sock and io/nbd.sock where the target's
//	        QEMU listens, copy.sock where its agent does
//
// As libvirt's socket means root, the target's end lets only those procedures
// pass that a migration needs, for the right's VM and disks only, and only if the
// copy is to arrive paused or is no more than a definition. What it refuses is in
// the agent's log. When to open and close tunnels is left to package migration.
package tunnel
