// tick DEVICE…: what a lab's guest does. Every period it writes the next value of a counter to the device, waits until that is
// durable, and says so on the console. The device is a ring of 512-byte records, record n in slot n mod (size/512), so a
// reader on the host sees the history: a value that was lost or written again shows. A device that already holds records is
// continued, with another boot id: a guest that was started anew instead of moved shows as well. More devices get the same
// records in step: a value is said when all of them have it.
//
// It powers the guest off when the power button is pressed, which is how libvirt asks a guest to shut down.
//
// It keeps some pages of memory that all hold the last value, and looks before it writes the next one whether they still do: a
// live migration that loses a page makes it say "tick lost".
//
// From the kernel's command line: tick.ms=N period in milliseconds (50), tick.dirty=N KiB of memory written in each (0),
// tick.room=N MiB that this goes round in (48), tick.kept=N pages that hold the last value (64), tick.deaf=1 takes no notice of the power button.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 512, PAGE = 4096, BATCH = 2048, DISKS = 8, BUTTONS = 4 };

// Set once the guest powers off, which has its disks fail while they are still written to. Shared by both processes.
static volatile int *off;

static void die(const char *what) {
  if (!*off) printf("tick failed: %s: %m\n", what);
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

// Powers off when the power button is pressed. A process of its own: what is on the disks is durable at any moment.
static void watch_button(void) {
  struct pollfd buttons[BUTTONS];
  int n = 0;
  char path[32];
  for (int i = 0; i < BUTTONS; i++) {
    snprintf(path, sizeof path, "/dev/input/event%d", i);
    int fd = open(path, O_RDONLY);
    if (fd >= 0) buttons[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
  }
  if (!n) die("power button");
  for (;;) {
    if (poll(buttons, (nfds_t)n, -1) < 0) continue;
    for (int i = 0; i < n; i++) {
      struct input_event e;
      if (!(buttons[i].revents & POLLIN) || read(buttons[i].fd, &e, sizeof e) != sizeof e) continue;
      if (e.type != EV_KEY || e.code != KEY_POWER || e.value != 1) continue;
      *off = 1;
      printf("tick powers off\n");
      reboot(RB_POWER_OFF);
    }
  }
}

// Writes n to every page, which has to hold the value before it.
static void keep(volatile uint64_t *kept, long pages, uint64_t n) {
  for (long i = 0; i < pages; i++) {
    volatile uint64_t *page = kept + (size_t)i * (PAGE / sizeof n);
    if (*page != n - 1) printf("tick lost memory: page %ld holds %lu, not %lu\n", i, *page, n - 1);
    *page = n;
  }
}

// Stands still between two values while the guest agent's hook wants it: /hold asks for it, /held answers.
static void hold(uint64_t n) {
  if (access("/hold", F_OK)) return;
  printf("tick held n=%lu\n", n);
  close(open("/held", O_CREAT | O_WRONLY, 0600));
  while (!access("/hold", F_OK)) usleep(2000);
  printf("tick goes on n=%lu\n", n);
  unlink("/held");
}

int main(int argc, char **argv) {
  char cmdline[2048], boot[64], *record, *memory = NULL;
  int fds[DISKS], disks = 0;
  if (argc < 2) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  off = mmap(NULL, sizeof *off, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (off == MAP_FAILED) return 1;
  slurp("/proc/cmdline", cmdline, sizeof cmdline);
  slurp("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
  long period = option(cmdline, "tick.ms=", 50), dirty = option(cmdline, "tick.dirty=", 0) * 1024;
  size_t room = (size_t)option(cmdline, "tick.room=", 48) << 20, at = 0;
  if (dirty && !(memory = malloc(room))) die("memory");

  long pages = option(cmdline, "tick.kept=", 64);
  uint64_t *kept;
  if (posix_memalign((void **)&kept, PAGE, (size_t)(pages + 1) * PAGE)) die("memory");

  if (!option(cmdline, "tick.deaf=", 0) && fork() == 0) watch_button();

  uint64_t slots[DISKS], size;
  for (int i = 1; i < argc && disks < DISKS; i++) {
    int fd = open(argv[i], O_RDWR | O_DIRECT), read_only = 0;
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) || ioctl(fd, BLKROGET, &read_only)) die(argv[i]);
    if (read_only) continue;
    slots[disks] = size / RECORD;
    fds[disks++] = fd;
  }
  if (!disks) die("no disk to write to");
  if (posix_memalign((void **)&record, 4096, RECORD)) die("memory");
  uint64_t n = last(fds[0], slots[0]);
  // A guest that was shut down between two disks of one value left the later ones behind.
  for (int i = 1; n && i < disks; i++) {
    if (last(fds[i], slots[i]) == n) continue;
    if (pread(fds[0], record, RECORD, (off_t)(n % slots[0] * RECORD)) != RECORD) die("read");
    if (pwrite(fds[i], record, RECORD, (off_t)(n % slots[i] * RECORD)) != RECORD || fsync(fds[i])) die("write");
  }
  for (long i = 0; i < pages; i++) kept[(size_t)i * (PAGE / sizeof n)] = n;
  printf("tick starts after n=%lu boot=%s\n", n, boot);

  for (uint64_t next = nanoseconds(CLOCK_MONOTONIC);; next += (uint64_t)period * 1000000u) {
    hold(n);
    uint64_t up = nanoseconds(CLOCK_BOOTTIME);
    n++;
    memset(record, 0, RECORD);
    snprintf(record, RECORD, "tick n=%lu up=%lu boot=%s\n", n, up, boot);
    for (int i = 0; i < disks; i++) {
      if (pwrite(fds[i], record, RECORD, (off_t)(n % slots[i] * RECORD)) != RECORD) die("write");
      if (fsync(fds[i])) die("fsync");
    }
    printf("tick n=%lu up=%lu\n", n, up);
    keep(kept, pages, n);
    for (long left = dirty; left > 0; left -= 4096, at = (at + 4096) % room) memory[at] = (char)n;
    struct timespec until = {.tv_sec = (time_t)(next / 1000000000u), .tv_nsec = (long)(next % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    if (nanoseconds(CLOCK_MONOTONIC) > next + 1000000000u) next = nanoseconds(CLOCK_MONOTONIC);
  }
}
