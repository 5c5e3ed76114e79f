#!/bin/bash
# node.sh DIR NAME SHARED : process 1 of one hypervisor, in PID, mount, UTS and IPC namespaces of its own and in the network
# namespace made for it. Gives it a private /run, /etc/libvirt and /var/{lib,log,cache}/libvirt under DIR, and SHARED as
# /var/lib/libvirt/images; then reaps what is left to it (QEMU is) until it is killed, and all of the node with it.
set -eu
dir=$1 name=$2 shared=$3
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/libvirt /run/lock
# The machine's KVM may be one that Debian's kernels do not come up under: the lab's guests use TCG, so nobody asks it.
if [[ -e /dev/kvm ]]; then mount --bind /dev/null /dev/kvm; fi
mkdir -p "$dir/lib/images" "$dir/lib/qemu"
mount --bind "$dir/etc" /etc/libvirt
mount --bind "$dir/lib" /var/lib/libvirt
mount --bind "$dir/log" /var/log/libvirt
mount --bind "$dir/cache" /var/cache/libvirt
mount --bind "$shared" /var/lib/libvirt/images
# The machine's own identity, and a boot id that is another one after the next power-on.
mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id
if [[ -e /etc/machine-id ]]; then mount --bind "$dir/machine-id" /etc/machine-id; fi
hostname "$name"
touch "$dir/ready"
while :; do
  sleep infinity &
  wait $!
done
