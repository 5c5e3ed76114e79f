// Package systemd makes hosts whose process 1 is systemd: a debootstrap'd Debian 12 in a PID namespace of systemd-nspawn, with libvirt and
// QEMU, and with control groups of its own, so that what a unit says of memory, processors and tasks is what the kernel does. Nothing
// of ours is on them: packages are installed there as an operator would.
//
// It says what to run; where, and what becomes of it, is its callers' business (package lab).
package systemd
