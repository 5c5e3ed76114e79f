// What machines need compiled. Two programs of one source:
//
// starter: bin/zfs. It runs libexec/zfs with lib/ld-linux-x86-64.so.2 and the libraries beside it, whatever C library the machine
// has. It finds them by where it is itself, so the directory may be moved.
//
// keeper COMMAND…: process 1 of the PID namespace of a machine on the host. It runs the command and ends when that ends, or when
// its own standard input does, which the owner of the machine holds open: the kernel then kills all that is in the namespace. If
// KEEPER_REMOVES names a directory, it removes that when its input ended, which it does when the owner was killed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  return 125;
}

#ifdef KEEPER

static int abandoned(void) {
  const char *dir = getenv("KEEPER_REMOVES");
  if (!dir) return 0;
  kill(-1, SIGKILL);
  while (wait(NULL) > 0) continue;
  execl("/bin/rm", "rm", "-rf", "--one-file-system", "--", dir, NULL);
  return failed("/bin/rm");
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  if (sigprocmask(SIG_BLOCK, &set, &old)) return failed("sigprocmask");
  int children = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (children < 0) return failed("signalfd");
  pid_t command = fork();
  if (command < 0) return failed("fork");
  if (command == 0) {
    sigprocmask(SIG_SETMASK, &old, NULL);
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing < 0 || dup2(nothing, 0) < 0) _exit(failed("/dev/null"));
    close(nothing);
    execvp(argv[1], argv + 1);
    _exit(failed(argv[1]));
  }
  struct pollfd fds[] = {{.fd = 0, .events = POLLIN}, {.fd = children, .events = POLLIN}};
  for (;;) {
    if (poll(fds, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return failed("poll");
    }
    if (fds[0].revents) {
      char c;
      if (read(0, &c, 1) <= 0) return abandoned();
    }
    if (fds[1].revents) {
      struct signalfd_siginfo info;
      while (read(children, &info, sizeof info) > 0) continue;
      int status;
      pid_t ended;
      while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
        if (ended == command) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }
}

#else

enum { PATH = 4096, ARGS = 4096 };

int main(int argc, char **argv) {
  static char dir[PATH], loader[PATH + 64], libs[PATH + 64], program[PATH + 320];
  static char *args[ARGS + 8];
  ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
  if (n < 0) return failed("/proc/self/exe");
  if (argc > ARGS) {
    errno = E2BIG;
    return failed(argv[0]);
  }
  char *name = strrchr(dir, '/');
  *name++ = 0;
  char *bin = strrchr(dir, '/');
  if (!bin) return 125;
  *bin = 0;
  snprintf(loader, sizeof loader, "%s/lib/ld-linux-x86-64.so.2", dir);
  snprintf(libs, sizeof libs, "%s/lib", dir);
  snprintf(program, sizeof program, "%s/libexec/%s", dir, name);
  char **to = args;
  *to++ = loader;
  *to++ = "--library-path";
  *to++ = libs;
  *to++ = "--argv0";
  *to++ = name;
  *to++ = program;
  for (int i = 1; i < argc; i++) *to++ = argv[i];
  execv(loader, args);
  return failed(loader);
}

#endif
