package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
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

// History reads the guest's disk past the page cache, as the guest writes past it.
func (g *Guest) History() (History, error) {
	var h History
	// A value written while we read can be seen before its predecessor: a hole counts only if it is still there.
	for range 3 {
		raw, err := readDirect(g.disk)
		if err != nil {
			return nil, fmt.Errorf("disk of %s: %w", g.Name, err)
		}
		if h, err = parseHistory(raw); err != nil {
			return h, fmt.Errorf("disk of %s: %w", g.Name, err)
		}
		if uint64(len(h)) == h.Last().Counter {
			break
		}
	}
	return h, nil
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
// started anew. The earlier history, of the same disk, must be the beginning of this one: a record that was written again,
// by a second copy of the guest say, differs.
func (h History) Check(earlier History) error {
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
		if i == 0 {
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
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// A mapping is aligned as O_DIRECT wants it; a slice need not be.
	buf, err := unix.Mmap(-1, 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	n, err := f.ReadAt(buf, 0)
	return bytes.Clone(buf[:n]), err
}
