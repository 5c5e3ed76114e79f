package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/integration/scratch"
)

// A Spec says what machine to boot. Zero values mean the default in parentheses.
type Spec struct {
	Name      string // its host name ("machine")
	MemoryMiB int    // (512)
	Disks     []Disk // /dev/ubda, /dev/ubdb…

	// Visible are files and directories of the host that the machine sees, although they lie in a directory that it has of its own.
	Visible []string
	// Shared are directories of the host that the machine may write to, at the same paths.
	Shared []string
	// Fresh are directories that the machine gets empty ones of its own for, in memory, besides those that every machine has.
	Fresh []string
	// Files are files that the machine has of its own, by path.
	Files map[string]string
	// Systemd makes the host's systemd the machine's process 1, with the units that are in UnitsDir.
	Systemd bool

	Tap   string // a tap device with vnet_hdr that becomes its vec0 (no network)
	NetNS string // path of the network namespace of the tap (this process's)
	Addr  string // of vec0, like 10.77.0.31/24

	Dir string // where its files are, which is kept (a temporary one, which Close removes)
	Log string // file that its console is appended to ("console.log" in Dir)

	pinned bool // to one CPU of the host
}

// A Disk is a file on the host that is a disk of a machine.
type Disk struct {
	Path string // made, sparse, if it is not there (a file in the machine's directory)
	MiB  int    // (1024)
}

// A Machine is one that was booted. It may be off.
type Machine struct {
	Built string // directory of what it booted from: bin/zfs and others

	spec  Spec
	owned *scratch.Dir // nil if the directory is the caller's

	mu        sync.Mutex
	power     *power // nil: off
	processes map[uint32]*Process
	numbers   uint32
}

// Boot boots a machine and returns when commands can be run in it. Close ends it; it ends with this process as well, whatever ends
// that. ctx bounds the boot only.
func Boot(ctx context.Context, s Spec) (_ *Machine, err error) {
	m := &Machine{spec: s.withDefaults()}
	if m.Built, err = Build(ctx); err != nil {
		return nil, err
	}
	if m.spec.Dir == "" {
		if m.owned, err = scratch.Make("debvisor-machine-"); err != nil {
			return nil, fmt.Errorf("machine %s: %w", m.spec.Name, err)
		}
		m.spec.Dir = m.owned.Path
	}
	if err = m.prepare(); err == nil {
		err = m.PowerOn(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("machine %s: %w", m.spec.Name, err), m.Close())
	}
	return m, nil
}

func (s Spec) withDefaults() Spec {
	if s.Name == "" {
		s.Name = "machine"
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 512
	}
	return s
}

// Name returns the machine's host name.
func (m *Machine) Name() string { return m.spec.Name }

// Path is the PATH of what runs in the machine.
func (m *Machine) Path() string {
	return m.Built + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// Log returns the file that the machine's console is appended to.
func (m *Machine) Log() string { return m.spec.Log }

// prepare makes the machine's files and writes down what its process 1 has to know.
func (m *Machine) prepare() error {
	s := &m.spec
	var err error
	if s.Dir, err = filepath.Abs(s.Dir); err != nil {
		return err
	}
	if s.Log == "" {
		s.Log = filepath.Join(s.Dir, "console.log")
	}
	s.Disks = append([]Disk(nil), s.Disks...)
	for i := range s.Disks {
		d := &s.Disks[i]
		if d.Path == "" {
			d.Path = filepath.Join(s.Dir, fmt.Sprintf("disk%d", i))
		}
		if err := d.make(); err != nil {
			return err
		}
		if strings.ContainsAny(d.Path, " ,:") {
			return fmt.Errorf("path of a disk %q: has a character that a kernel's command line cannot carry", d.Path)
		}
	}
	i := inside{Spec: *s, Built: m.Built, Path: m.Path()}
	if i.Program, err = os.Executable(); err != nil {
		return err
	}
	raw, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.Dir, specFile), raw, 0o644)
}

// make makes a disk that is not there yet.
func (d *Disk) make() error {
	if d.MiB == 0 {
		d.MiB = 1024
	}
	f, err := os.OpenFile(d.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return errors.Join(f.Truncate(int64(d.MiB)<<20), f.Close())
}

// Close takes the machine's power and removes what it has on the host, unless the directory is the caller's.
func (m *Machine) Close() error {
	err := m.PowerOff()
	if m.owned != nil {
		err = errors.Join(err, m.owned.Remove())
	}
	return err
}

// arguments are those of the kernel.
func (m *Machine) arguments(program string) []string {
	s := m.spec
	args := []string{
		filepath.Join(m.Built, "linux"), fmt.Sprintf("mem=%dM", s.MemoryMiB), "umid=" + s.Name, "uml_dir=" + s.Dir + "/uml/",
		"root=host", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + program, specEnv + "=" + filepath.Join(s.Dir, specFile),
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:3", "quiet", "seccomp=on",
		// Every machine is another host to ZFS, always the same one.
		fmt.Sprintf("spl.spl_hostid=%d", crc32.ChecksumIEEE([]byte("debvisor "+s.Name))|1),
	}
	for i, d := range s.Disks {
		args = append(args, fmt.Sprintf("ubd%c=%s", 'a'+i, d.Path))
	}
	if s.Tap != "" {
		args = append(args, "vec0:transport=tap,ifname="+s.Tap+",depth=128,gro=1")
	}
	return args
}
