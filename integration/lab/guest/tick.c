// tick DEVICE: what a lab's guest does. Every period it writes the next value of a counter to the device, waits until that is
// durable, and says so on the console. The device is a ring of 512-byte records, record n in slot n mod (size/512), so a
// reader on the host sees the history: a value that was lost or written again shows. A device that already holds records is
// continued, with another boot id: a guest that was started anew instead of moved shows as well.
//
// From the kernel's command line: tick.ms=N period in milliseconds (50), tick.dirty=N KiB of memory written in each (0).
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 512, BATCH = 2048 };

static void die(const char *what) {
  printf("tick failed: %s: %m\n", what);
  for (;;) pause();
}

static void slurp(const char *path, char *buf, size_t size) {
  int fd = open(path, O_RDONLY);
  ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
  if (n < 0) die(path);
  buf[n] = 0;
  buf[strcspn(buf, "\n")] = 0;
  close(fd);
}

static long option(const char *cmdline, const char *name, long otherwise) {
  const char *at = strstr(cmdline, name);
  return at ? atol(at + strlen(name)) : otherwise;
}

static uint64_t nanoseconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The highest counter on the device, 0 on an empty one.
static uint64_t last(int fd, uint64_t slots) {
  uint64_t max = 0, n;
  char *buf;
  if (posix_memalign((void **)&buf, 4096, (size_t)RECORD * BATCH)) die("memory");
  for (uint64_t slot = 0; slot < slots; slot += BATCH) {
    ssize_t got = pread(fd, buf, (size_t)RECORD * BATCH, (off_t)(slot * RECORD));
    if (got < 0) die("read");
    for (ssize_t at = 0; at + RECORD <= got; at += RECORD)
      if (sscanf(buf + at, "tick n=%lu", &n) == 1 && n > max) max = n;
    if (slot == 0 && max == 0) break;
  }
  free(buf);
  return max;
}

int main(int argc, char **argv) {
  char cmdline[2048], boot[64], *record, *memory = NULL;
  if (argc != 2) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  slurp("/proc/cmdline", cmdline, sizeof cmdline);
  slurp("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
  long period = option(cmdline, "tick.ms=", 50), dirty = option(cmdline, "tick.dirty=", 0) * 1024;
  size_t room = 48u << 20, at = 0;
  if (dirty && !(memory = malloc(room))) die("memory");

  int fd = open(argv[1], O_RDWR | O_DIRECT);
  uint64_t size;
  if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size)) die(argv[1]);
  if (posix_memalign((void **)&record, 4096, RECORD)) die("memory");
  uint64_t slots = size / RECORD, n = last(fd, slots);
  printf("tick starts after n=%lu boot=%s\n", n, boot);

  for (uint64_t next = nanoseconds(CLOCK_MONOTONIC);; next += (uint64_t)period * 1000000u) {
    uint64_t up = nanoseconds(CLOCK_BOOTTIME);
    n++;
    memset(record, 0, RECORD);
    snprintf(record, RECORD, "tick n=%lu up=%lu boot=%s\n", n, up, boot);
    if (pwrite(fd, record, RECORD, (off_t)(n % slots * RECORD)) != RECORD) die("write");
    if (fsync(fd)) die("fsync");
    printf("tick n=%lu up=%lu\n", n, up);
    for (long left = dirty; left > 0; left -= 4096, at = (at + 4096) % room) memory[at] = (char)n;
    struct timespec until = {.tv_sec = (time_t)(next / 1000000000u), .tv_nsec = (long)(next % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    if (nanoseconds(CLOCK_MONOTONIC) > next + 1000000000u) next = nanoseconds(CLOCK_MONOTONIC);
  }
}
