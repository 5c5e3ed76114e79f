#!/bin/bash
# kernel.sh KERNEL-DEB ZFS-DKMS-DEB WORK : builds WORK/linux, a User-mode Linux kernel with OpenZFS compiled in, out of Debian's
# source packages and of kernel.config beside this script. 5 minutes on two idle cores, 1.6 GB in WORK. Its logs are WORK/*.log.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
source=$(realpath "$1") dkms=$(realpath "$2") work=$(realpath "$3")
for t in gcc make flex bison bc m4 xz dpkg-deb; do
  command -v "$t" >/dev/null || { echo "$t is missing (.ci/deps installs it)" >&2; exit 1; }
done
step() {
  local log=$work/$1.log
  shift
  "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
}

mkdir -p "$work/kernel" "$work/zfs"
dpkg-deb --fsys-tarfile "$source" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | tar -xJ -C "$work/kernel" --strip-components=1
dpkg-deb --fsys-tarfile "$dkms" | tar -x -C "$work/zfs" --strip-components=4 --wildcards './usr/src/zfs-*'

export ARCH=um
cd "$work/kernel"
step defconfig make defconfig
cat "$here/kernel.config" >>.config
step config make olddefconfig
step prepare make -j"$(nproc)" prepare
(
  cd "$work/zfs"
  step zfs-configure ./configure --with-config=kernel --enable-linux-builtin --disable-dependency-tracking \
    --with-linux="$work/kernel" --with-linux-obj="$work/kernel"
  step zfs-copy ./copy-builtin "$work/kernel"
)
# The builtin form lacks the file that its version comes from outside of a git tree.
version=$(dpkg-deb -f "$dkms" Version)
printf '#define ZFS_META_GITREV "zfs-%s-uml"\n' "${version%%-*}" >include/zfs/zfs_gitrev.h
echo CONFIG_ZFS=y >>.config
step config-zfs make olddefconfig
grep -qx CONFIG_ZFS=y .config || { echo "the kernel's configuration refuses ZFS" >&2; exit 1; }
step make make -j"$(nproc)" linux
strip -g -o "$work/linux" linux
