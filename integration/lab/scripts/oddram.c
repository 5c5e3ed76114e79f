// oddram.so, preloaded into a node's libvirtd: its guests get 8 KiB of memory more than libvirt asks for, which is the least that
// QEMU can give. Before version 9.0, QEMU loses what a TCG guest writes while its memory is copied: it takes the dirty bits of 64
// pages at a time and forgets to tell TCG, whose next writes to those pages then go unnoticed. It does so only with memory whose
// size is a multiple of 64 pages; with any other size it goes page by page, and rightly. libvirt rounds sizes up to a MiB, so the
// size is changed behind its back: it still logs the size that it asked for.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MORE_KIB = 8, ARGS = 1024 };

// Adds to -m, which is MiB or "size=<KiB>k" with more behind it.
static int option(const char *value, char *to, size_t room) {
  unsigned long size;
  int end = 0, fits;
  if (sscanf(value, "size=%luk%n", &size, &end) == 1 && end)
    fits = snprintf(to, room, "size=%luk%s", size + MORE_KIB, value + end);
  else if (sscanf(value, "%lu%n", &size, &end) == 1 && !value[end])
    fits = snprintf(to, room, "%luk", size * 1024 + MORE_KIB);
  else
    return 0;
  return (size_t)fits < room;
}

// Adds to the backend that holds this memory.
static int backend(const char *value, char *to, size_t room) {
  const char before[] = "\"id\":\"pc.ram\",\"size\":", *at = strstr(value, before);
  unsigned long size;
  int end = 0;
  if (!at) return 0;
  at += sizeof before - 1;
  if (sscanf(at, "%lu%n", &size, &end) != 1) return 0;
  return (size_t)snprintf(to, room, "%.*s%lu%s", (int)(at - value), value, size + MORE_KIB * 1024, at + end) < room;
}

// libvirtd calls this in the child that becomes QEMU: nothing here allocates or locks.
int execve(const char *path, char *const argv[], char *const envp[]) {
  static char *args[ARGS], memory[256], object[1024];
  const char *name = strrchr(path, '/');
  int n = 0, changed = 0;
  for (; argv[n] && n < ARGS - 1; n++) {
    args[n] = argv[n];
    if (n && !strcmp(argv[n - 1], "-m") && option(argv[n], memory, sizeof memory)) args[n] = memory, changed++;
    if (n && !strcmp(argv[n - 1], "-object") && backend(argv[n], object, sizeof object)) args[n] = object, changed++;
  }
  // QEMU refuses to start when the two differ. When libvirt asks it what it can do there is neither.
  if (!argv[n] && changed == 2 && name && !strncmp(name, "/qemu-system-", sizeof "/qemu-system-" - 1)) argv = args;
  return (int)syscall(SYS_execve, path, argv, envp);
}
