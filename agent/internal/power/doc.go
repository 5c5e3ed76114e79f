// Package power starts and stops VMs on this host when the leader says so: the
// task kinds vm-start, vm-shutdown, vm-destroy and vm-autostart. It promises
// that an order is carried out at most once, whatever dies in between: a guest
// is started paused and let run afterwards, so that one whose start was
// interrupted is known not to have run; and an order to stop is for the QEMU
// that was there when it came, and for no later one. A start that was ordered
// for an older placement than the newest that this host was told of is refused.
// Which VM is started where is the leader's to decide.
package power
