#!/bin/bash
# build.sh CACHE : makes what a lab needs compiled and prints the directory that holds it: the kernel and the initramfs of its
# guests, "vmlinuz" and "initramfs", one more for guests with the QEMU guest agent, "initramfs-agent", and "sharedfs.so" and "oddram.so" for its libvirtds (see their sources). The kernel is
# Debian's own cloud kernel, downloaded but never installed. Kept in CACHE under the kernel's version and the digest of the sources
# beside this script; a second call does nothing but look.
set -euo pipefail
src=$(dirname "$(realpath "$0")")
mkdir -p "$1"
cache=$(realpath "$1")
exec 9>"$cache/.guest.lock"
flock 9
digest=$(cat "$src"/{init,hook,tick.c,build.sh,../scripts/{sharedfs,oddram}.c} | sha256sum | cut -c1-12)
for ready in "$cache"/guest-*-"$digest"; do
  if [[ -e $ready/initramfs ]]; then echo "$ready"; exit 0; fi
done
say() { echo "lab guest: $*" >&2; }
for t in gcc cpio busybox dpkg-deb apt-get; do
  command -v "$t" >/dev/null || { say "$t is missing (.ci/deps installs it)"; exit 1; }
done

# Debian's package of that name and version, downloaded into the cache and never installed.
get() {
  local package=$1 version=$2
  deb=$cache/deb/${package}_${version//:/%3a}_amd64.deb
  if [[ -e $deb ]]; then return; fi
  say "downloading $package $version"
  local work
  work=$(mktemp -d "$cache/deb/.get-XXXXXX")
  fetch() { (cd "$work" && apt-get -o APT::Sandbox::User=root download -q "$package=$version" >&2); }
  fetch || { apt-get update -q >&2; fetch; }
  mv "$work"/*.deb "$deb"
  rmdir "$work"
}
newest() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1; }
package=$(newest)
if [[ -z $package ]]; then
  say "no package lists yet: apt-get update"
  apt-get update -q >&2
  package=$(newest)
fi
[[ -n $package ]] || { say "apt knows no linux-image-cloud-amd64"; exit 1; }
version=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')
mkdir -p "$cache/deb"
get qemu-guest-agent "$(apt-cache show --no-all-versions qemu-guest-agent | sed -n 's/^Version: //p')"
agent=$deb
get "$package" "$version"

out=$cache/guest-$version-$digest
work=$(mktemp -d "$cache/.guest-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{kernel,root/bin,root/dev,root/proc,root/modules,out}
dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/out/vmlinuz"
for m in virtio virtio_ring virtio_pci virtio_pci_modern_dev virtio_pci_legacy_dev virtio_blk evdev button virtio_console brd; do
  find "$work/kernel/lib/modules" -name "$m.ko" -exec cp {} "$work/root/modules/" \;
  [[ -e $work/root/modules/$m.ko ]] || { say "$package has no module $m"; exit 1; }
done
cp "$(command -v busybox)" "$work/root/bin/busybox"
install -m 755 "$src/init" "$work/root/init"
gcc -static -Os -Wall -o "$work/root/tick" "$src/tick.c"
strip "$work/root/tick"
for so in sharedfs oddram; do gcc -shared -fPIC -Os -Wall -o "$work/out/$so.so" "$src/../scripts/$so.c"; done
(cd "$work/root" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >"$work/out/initramfs")

# The agent with the libraries that it needs, all of them this machine's: QEMU, which a lab needs anyway, brings the same.
dpkg-deb -x "$agent" "$work/agent"
mkdir -p "$work/root/agent" "$work/root/sys" "$work/root/run" "$work/root/mnt"
cp "$work/agent/usr/sbin/qemu-ga" "$work/root/agent/"
install -m 755 "$src/hook" "$work/root/agent/hook"
ldd "$work/agent/usr/sbin/qemu-ga" | grep -q 'not found' && { say "qemu-ga lacks libraries: $(ldd "$work/agent/usr/sbin/qemu-ga" | grep 'not found')"; exit 1; }
ldd "$work/agent/usr/sbin/qemu-ga" | sed -n 's/.*[ \t]\(\/[^ ]*\) (.*/\1/p' | while read -r library; do cp -L "$library" "$work/root/agent/"; done
(cd "$work/root" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >"$work/out/initramfs-agent")
chmod 755 "$work/out"
mv "$work/out" "$out"
echo "$out"
