#!/bin/bash
# janitor.sh DIR INIT_PID INIT_START : outlives the owner of a lab, whatever kills it. When its standard input ends it makes
# sure that the lab's process 1 (the one with this start time, in clock ticks since boot) is dead, removes the control groups that
# are named after DIR, detaches the loop devices of its files, then removes DIR.
dir=$1 pid=$2 start=$3
alive() {
  local stat
  stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
  read -r -a f <<<"${stat##*) }"
  [[ ${f[19]} == "$start" && ${f[0]} != Z ]]
}
while read -r _; do :; done
alive && kill -9 "$pid"
for ((i = 0; i < 100; i++)); do alive || break; sleep 0.05; done
case $dir in */debvisor-lab-*) ;; *) exit 1 ;; esac
# Control groups of hosts with systemd, of either kind; they are empty now, or will be in a moment.
for group in /sys/fs/cgroup/"${dir##*/}"-* /sys/fs/cgroup/*/"${dir##*/}"-*; do
  [[ -d $group ]] || continue
  for ((i = 0; i < 100; i++)); do find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null; [[ -d $group ]] || break; sleep 0.05; done
done
for file in /sys/block/loop*/loop/backing_file; do
  [[ $(cat "$file" 2>/dev/null) == "$dir"/* ]] || continue
  device=${file#/sys/block/}
  losetup --detach "/dev/${device%%/*}"
done
for ((i = 0; i < 100; i++)); do rm -rf --one-file-system -- "$dir" && break; sleep 0.1; done
