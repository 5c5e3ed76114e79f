// Package lab runs a whole cluster on one machine for tests, benchmarks and demonstrations: replicas of debvisor-rpcd in
// network namespaces, hypervisors in network, mount, UTS, IPC and PID namespaces with a real libvirtd each, a bridge between
// all of them, and guests under TCG that write a counter to a disk which both hypervisors see.
//
// It promises that nothing outside of its namespaces and its one directory changes but for loop devices, which belong to the
// machine, that several labs run at once, and that all of a lab is gone when its owner (the process that called New) is, its loop
// devices too: after Close, and after a kill -9 of the owner as well.
// It needs root and what .ci/deps installs. What the daemons do is left to them; the lab only starts, stops and looks, from
// outside: at libvirt, at the process tables, at the guests' disks.
//
// ZFS needs a kernel, so hosts that have it are machines of their own (package machine): nodes m1, m2 and so on, with a pool "tank"
// and a disk for what an agent keeps, that lose their power by it. Everything that a test does with a node it can do with these, but
// for looking at their processes from outside.
//
// QEMU before 9.0 loses pages that a TCG guest dirties while its memory is copied, but only with memory whose size is a multiple of
// 256 KiB. The lab's guests have 8 KiB more (see scripts/oddram.c and ADR 7), check some of their memory themselves, and say on
// their consoles, which are saved with the logs, when it is not what it was.
package lab
