// sharedfs.so, preloaded into a node's libvirtd: /var/lib/libvirt/images is a directory that all nodes of the lab see, but as
// the nodes are on one machine its file system is a local one, and libvirt 9.0 knows shared ones by their type only (10.8 can
// be told, by shared_filesystems in qemu.conf). So it is told that this directory is on CephFS, and keeps all its other checks.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { CEPH_SUPER_MAGIC = 0x00c36400 };

// libvirtd hands LD_PRELOAD on to QEMU, which has no need of this.
__attribute__((constructor)) static void loaded(void) { unsetenv("LD_PRELOAD"); }

static int ask(const char *path, void *result) { return (int)syscall(SYS_statfs, path, result); }

int statfs64(const char *path, struct statfs64 *result) {
  const char shared[] = "/var/lib/libvirt/images/";
  int failed = ask(path, result);
  if (!failed && strncmp(path, shared, sizeof shared - 1) == 0) result->f_type = CEPH_SUPER_MAGIC;
  return failed;
}

int statfs(const char *path, struct statfs *result) { return statfs64(path, (struct statfs64 *)result); }
