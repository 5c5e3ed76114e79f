#!/bin/bash
# init.sh DIR BRIDGE_ADDRESS NAME=ADDRESS… : process 1 of a lab, in new PID, mount, network, UTS and IPC namespaces.
# Makes the bridge, one network namespace for every NAME, a tap device for every "machine:NAME" and an /etc/hosts that knows them, says so by DIR/ready and then reaps what is left to it
# until its standard input ends, which it does when the lab's owner dies: the kernel then kills all that is in here.
set -eu
dir=$1 bridge=$2
shift 2
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
hostname "${dir##*/}"
printf '127.0.0.1 localhost\n' >"$dir/hosts"
for place in "${@#machine:}"; do echo "${place#*=} ${place%%=*}" >>"$dir/hosts"; done
mount --bind "$dir/hosts" /etc/hosts
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
ip link set lo up
ip link add br0 type bridge
ip addr add "$bridge/24" dev br0
ip link set br0 up
for place in "$@"; do
  name=${place%%=*} addr=${place#*=}
  if [[ $name == machine:* ]]; then
    tap=to-${name#machine:}
    ip tuntap add "$tap" mode tap vnet_hdr
    ip link set "$tap" master br0 up
    continue
  fi
  ip netns add "$name"
  ip link add "to-$name" type veth peer name eth0 netns "$name"
  ip link set "to-$name" master br0 up
  ip netns exec "$name" bash -eu -c '
    echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
    ip link set lo up
    ip addr add "$1/24" dev eth0
    ip link set eth0 up' net "$addr"
done
touch "$dir/ready"
while read -r _; do :; done
