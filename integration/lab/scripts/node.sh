#!/bin/bash
# node.sh DIR NAME SHARED : process 1 of one hypervisor, in PID, mount, UTS and IPC namespaces of its own and in the network
# namespace made for it. Gives it a private /run, /etc/ceph, /etc/libvirt and /var/{lib,log,cache}/libvirt under DIR, and SHARED as
# /var/lib/libvirt/images; then reaps what is left to it (QEMU is) until it is killed, and all of the node with it.
set -eu
dir=$1 name=$2 shared=$3
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/libvirt /run/lock
# A /dev of its own, without kvm: the machine's may be one that Debian's kernels do not come up under, and one that is there and
# does not work has libvirt try it again with each call, which takes seconds. The lab's guests use TCG.
mkdir -p "$dir/dev"
mount -t tmpfs -o mode=755,size=1m tmpfs "$dir/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$dir/dev"
mkdir "$dir/dev/pts" "$dir/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$dir/dev/pts"
ln -s pts/ptmx "$dir/dev/ptmx"
ln -s /proc/self/fd "$dir/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$dir/dev/shm"
umount -l -R /dev # libvirt looks at every mount that is there, also at hidden ones
mount --move "$dir/dev" /dev
mkdir -p "$dir/lib/images" "$dir/lib/qemu"
mount --bind "$dir/etc" /etc/libvirt
mount --bind "$dir/lib" /var/lib/libvirt
mount --bind "$dir/log" /var/log/libvirt
mount --bind "$dir/cache" /var/cache/libvirt
mount --bind "$shared" /var/lib/libvirt/images
if [[ -d /etc/ceph ]]; then mount --bind "$dir/ceph" /etc/ceph; fi
# The machine's own identity, and a boot id that is another one after the next power-on.
mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id
if [[ -e /etc/machine-id ]]; then mount --bind "$dir/machine-id" /etc/machine-id; fi
hostname "$name"
touch "$dir/ready"
while :; do
  sleep infinity &
  wait $!
done
