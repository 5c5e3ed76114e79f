// Package machine boots machines that have a kernel of their own, with OpenZFS in it: User-mode Linux, an ordinary process. Tests
// that need ZFS run inside of one (see Main), and the lab's machines are hypervisors' hosts with a pool.
//
// A machine sees the host's files by hostfs, read-only and at the same paths, with directories of its own over /tmp, /run, /etc,
// /root and a few more (see freshDirs), all of which it forgets when it is off. What it keeps are its disks, files on the host that it
// sees as /dev/ubda, /dev/ubdb and so on. The root directory itself is writable, so that pools can be mounted in it.
//
// PowerOff is a power cut as the machine sees one: nothing is flushed. The host however lives on, so what a disk has taken is on
// it, also without a flush of its write cache. Pause is a hung host.
//
// It promises that a machine does not outlive the process that booted it, whatever ends that, and that nothing of it is left. It
// needs root and what .ci/deps installs; what a machine boots from is built by build.sh, once, and kept in Cache.
//
// Process 1 of a machine is the very program that booted it, which the init of this package makes a machine's process 1 of. The two
// speak over a serial line: no network takes part.
package machine
