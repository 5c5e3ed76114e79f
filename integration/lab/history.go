package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
)

// A Record is what the guest wrote to one slot of its disk.
type Record struct {
	Counter uint64
	Uptime  time.Duration
	Boot    string // the guest's boot id: another one means that it was started anew
}

// A History is what a guest's disk holds: the record with counter n at index n-1.
type History []Record

const recordSize = 512

// History reads the guest's first disk, where the guest is, past the page cache, as the guest writes past it.
func (g *Guest) History() (History, error) {
	n, err := g.where()
	if err != nil {
		return nil, err
	}
	return g.HistoryAt(n, g.Disks[0])
}

// HistoryAt reads one of the guest's disks as a node has it. A guest that runs there from a disk that is not raw stands still
// meanwhile, as nobody else can read such a disk while it is written.
func (g *Guest) HistoryAt(n *Node, d Disk) (h History, err error) {
	read := func() ([]byte, error) { return readDirect(d.On(n)) }
	switch {
	case d.Kind == DiskRBD:
		read = func() ([]byte, error) { return g.lab.readImageOfCeph(context.Background(), d.Path) } // it ends by itself
	case n.Machine != nil:
		read = func() ([]byte, error) { return n.readInMachine(d) }
	}
	if d.Format != "raw" && n.Machine == nil {
		read = func() ([]byte, error) { return g.readImage(n, d) }
	}
	// A value written while we read can be seen before its predecessor: a hole counts only if it is still there.
	for range 3 {
		raw, err := read()
		if err != nil {
			return nil, fmt.Errorf("disk %s of %s on %s: %w", d.Target, g.Name, n.Name, err)
		}
		if h, err = parseHistory(raw); err != nil {
			return h, fmt.Errorf("disk %s of %s on %s: %w", d.Target, g.Name, n.Name, err)
		}
		if uint64(len(h)) == h.Last().Counter {
			break
		}
	}
	return h, nil
}

// where is the node that has the guest: the one that runs it, else the only one that defines it.
func (g *Guest) where() (*Node, error) {
	var active, defined []*Node
	for _, n := range g.lab.AllNodes() {
		if !n.On() {
			continue
		}
		d, err := n.Domain(g.UUID)
		switch {
		case err != nil:
			return nil, err
		case d.State == DomainShutOff:
			defined = append(defined, n)
		case d.State != DomainAbsent:
			active = append(active, n)
		}
	}
	switch {
	case len(active) == 1:
		return active[0], nil
	case len(active) == 0 && len(defined) == 1:
		return defined[0], nil
	default:
		return nil, fmt.Errorf("guest %s is active on %d nodes and only defined on %d", g.Name, len(active), len(defined))
	}
}

// readImage reads a disk with a format of QEMU's, as the guest sees it.
func (g *Guest) readImage(n *Node, d Disk) (_ []byte, err error) {
	domain, err := n.Domain(g.UUID)
	if err != nil {
		return nil, err
	}
	if domain.State == DomainRunning {
		if err := n.withDomain(g.UUID, (*libvirt.Domain).Suspend); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, n.withDomain(g.UUID, (*libvirt.Domain).Resume)) }()
	}
	raw, err := os.CreateTemp(g.lab.Dir, "history-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(raw.Close(), os.Remove(raw.Name())) }()
	out, err := exec.Command("qemu-img", "convert", "-U", "-f", d.Format, "-O", "raw", d.On(n), raw.Name()).CombinedOutput() //nolint:noctx // it ends by itself
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(raw.Name())
}

func parseHistory(raw []byte) (History, error) {
	var h History
	for at := recordSize; at+recordSize <= len(raw); at += recordSize {
		var r Record
		text := string(bytes.TrimRight(raw[at:at+recordSize], "\x00"))
		if text == "" {
			continue
		}
		if _, err := fmt.Sscanf(text, "tick n=%d up=%d boot=%s", &r.Counter, &r.Uptime, &r.Boot); err != nil {
			return h, fmt.Errorf("slot %d holds %q: %w", at/recordSize, text, err)
		}
		h = append(h, r)
	}
	return h, nil
}

// Last returns the newest record, the zero one of an empty history.
func (h History) Last() Record {
	if len(h) == 0 {
		return Record{}
	}
	return h[len(h)-1]
}

// Check says what is wrong with a history: a value that is missing or out of place, an uptime that went back, a guest that was
// started anew, all since the earlier history. That one, of the same disk, must be the beginning of this one: a record that was
// written again, by a second copy of the guest say, differs.
func (h History) Check(earlier History) error { return h.check(earlier, false) }

// CheckRestarted is Check for a guest that may have been started anew since the earlier history: shut down and started elsewhere,
// say.
func (h History) CheckRestarted(earlier History) error { return h.check(earlier, true) }

func (h History) check(earlier History, restarted bool) error {
	if len(h) < len(earlier) {
		return fmt.Errorf("the disk held %d records and now holds %d", len(earlier), len(h))
	}
	var failed []error
	for i, r := range h {
		if r.Counter != uint64(i+1) {
			failed = append(failed, fmt.Errorf("slot %d holds counter %d", i+1, r.Counter))
		}
		if i < len(earlier) && r != earlier[i] {
			failed = append(failed, fmt.Errorf("counter %d was written again: first %v, now %v", i+1, earlier[i], r))
		}
		if i == 0 || i < len(earlier) || r.Boot != h[i-1].Boot && restarted {
			continue
		}
		if r.Boot != h[i-1].Boot {
			failed = append(failed, fmt.Errorf("the guest was started anew at counter %d", r.Counter))
		}
		if r.Uptime <= h[i-1].Uptime {
			failed = append(failed, fmt.Errorf("at counter %d the uptime goes from %v to %v", r.Counter, h[i-1].Uptime, r.Uptime))
		}
	}
	return errors.Join(failed...)
}

// readDirect reads a file with O_DIRECT, in one piece.
func readDirect(path string) (_ []byte, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd) // of a block device too
	if err != nil {
		return nil, err
	}
	// A mapping is aligned as O_DIRECT wants it; a slice need not be.
	buf, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	n, err := f.ReadAt(buf, 0)
	return bytes.Clone(buf[:n]), err
}
