package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// specFile is in the machine's directory on the host: what its process 1 has to know, an inside.
	specFile = "machine.json"
	// specEnv is how process 1 of a machine gets to know its path, and what it is.
	specEnv = "DEBVISOR_MACHINE_SPEC"
	// insideEnv is in the environment of everything that runs in a machine: the machine's name.
	insideEnv = "DEBVISOR_MACHINE"
	serial    = "/dev/ttyS0"
)

// inside is what process 1 of a machine is told.
type inside struct {
	Spec
	Program string // the program that booted it
	Built   string // Machine.Built
	Path    string // PATH of what runs in it
}

// Inside says whether this process runs in a machine.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// The kernel of a machine starts the program that booted it: here it becomes process 1, which never returns, so that no program has
// to be made for it, found and kept of the same version.
func init() {
	if os.Getenv(besideEnv) != "" {
		fmt.Fprintln(os.Stderr, "beside process 1 of the machine:", beside())
		powerOff()
	}
	if spec := os.Getenv(specEnv); spec != "" && os.Getpid() == 1 {
		err := first(spec)
		// On the console, which a boot that failed has in its error. With process 1 the kernel ends.
		fmt.Fprintln(os.Stderr, "process 1 of the machine:", err)
		os.Exit(1)
	}
}

// first is process 1 of a machine.
func first(spec string) error {
	i, err := readInside(spec)
	if err != nil {
		return err
	}
	if err := makeRoot(i); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if i.Systemd {
		return i.becomeSystemd()
	}
	return i.serve()
}

func readInside(spec string) (i inside, err error) {
	raw, err := os.ReadFile(spec)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, fmt.Errorf("%s: %w", spec, err)
	}
	return i, nil
}

// serve does what the owner of the machine asks for, as long as there is one.
func (i inside) serve() error {
	line, err := openSerial()
	if err != nil {
		return err
	}
	w := &wire{w: line}
	w.r = &acker{from: line, w: w}
	if err := i.setUp(); err != nil {
		return w.send(kindFailed, 0, []byte(err.Error()))
	}
	links, err := newLinks()
	if err != nil {
		return w.send(kindFailed, 0, []byte(err.Error()))
	}
	go links.run()
	c := newChildren(w, i.environment())
	go c.reap()
	if err := w.send(kindReady, 0, nil); err != nil {
		return err
	}
	return c.serve()
}

// environment is what everything in the machine has.
func (i inside) environment() []string {
	return []string{"PATH=" + i.Path, "HOME=/root", "LANG=C", insideEnv + "=" + i.Name}
}

// setUp gives the machine its name, limits and network.
func (i inside) setUp() error {
	if err := unix.Sethostname([]byte(i.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 65536, Max: 65536}); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	// The kernel takes no such bound on its command line: there it does not know its memory yet.
	if err := os.WriteFile("/sys/module/zfs/parameters/zfs_arc_max", fmt.Append(nil, i.MemoryMiB<<20/4), 0o644); err != nil {
		return fmt.Errorf("bound of ZFS's cache: %w", err)
	}
	commands := "link set lo up\n"
	if i.Tap != "" {
		commands += "addr add " + i.Addr + " dev vec0\nlink set vec0 up\n"
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644); err != nil && !os.IsNotExist(err) {
		return err
	}
	ip := &exec.Cmd{Path: "/bin/ip", Args: []string{"ip", "-batch", "-"}, Stdin: strings.NewReader(commands)}
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("network: %w: %s", err, out)
	}
	return nil
}

// openSerial opens the serial line for frames: not a byte of them means anything to it.
func openSerial() (io.ReadWriter, error) {
	line, err := os.OpenFile(serial, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(line.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CLOCAL | unix.CREAD
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(line.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	return line, nil
}
