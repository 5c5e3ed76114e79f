// Package zvol is what becomes of one ZFS volume when the VM on it moves to another
// host: the target makes it, empty or of the source's snapshots; the source sends
// these while the guest runs and once more when it has stopped, and removes its own
// volume in the end.
//
// It promises that nothing is destroyed that the migration did not make or was not
// told to remove, by guid; that what is made of snapshots can be written to only
// once it has the last of them (ZFS's readonly keeps QEMU from it until then); and
// that each step may be done again after whatever ended it. When to take which is
// the migration's.
package zvol
