package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// medium is what the log is written to.
type medium interface {
	// Write writes whole lines.
	Write(lines []byte) (n int, err error)
	// Sync returns once what was written can be lost no more.
	Sync() error
	// Mend brings the medium back to whole lines after an error, and tells how
	// many of the bytes written since the last good Sync are left.
	Mend(written int) (left int, err error)
	Close() error
}

// errSame is that the file at the path is the one that is written already.
var errSame = errors.New("it is the same file")

// disk does what may take long, or forever, in a goroutine of its own: one job
// at a time, each of which has one outcome.
type disk struct {
	medium   medium
	open     func(old medium) (medium, error)
	jobs     chan job
	outcomes chan outcome
	// torn says that the medium has to be mended first.
	torn bool
}

// job is to write lines, of which some may be written already.
type job struct {
	lines []byte
	from  int
	sync  bool
	// reopen and end come after the writing.
	reopen, end bool
}

// outcome is what came of a job.
type outcome struct {
	// written is how many bytes of the job's lines are written.
	written int
	synced  bool
	err     error
	// reopened says that the medium is another; reopenErr why it is not.
	reopened  bool
	reopenErr error
}

func newDisk(m medium, open func(old medium) (medium, error)) *disk {
	return &disk{medium: m, open: open, jobs: make(chan job), outcomes: make(chan outcome, 1)}
}

// run does jobs until one says that it is the last.
func (d *disk) run() {
	for j := range d.jobs {
		o := d.write(j)
		if j.reopen {
			d.exchange(&o)
		}
		if j.end {
			if err := d.medium.Close(); err != nil && o.err == nil {
				o.err = fmt.Errorf("closing the audit log: %w", err)
			}
		}
		d.outcomes <- o
		if j.end {
			return
		}
	}
}

func (d *disk) write(j job) outcome {
	if d.torn {
		left, err := d.medium.Mend(j.from)
		if err != nil {
			return outcome{err: fmt.Errorf("mending the audit log: %w", err)}
		}
		d.torn, j.from = false, left
	}
	written, err := j.from, error(nil)
	if j.from < len(j.lines) {
		var n int
		n, err = d.medium.Write(j.lines[j.from:])
		written += n
	}
	if err == nil && j.sync {
		err = d.medium.Sync()
	}
	if err == nil {
		return outcome{written: written, synced: j.sync}
	}
	left, mendErr := d.medium.Mend(written)
	if d.torn = mendErr != nil; d.torn {
		left = 0
	}
	return outcome{written: left, err: err}
}

// exchange opens what is at the path now. Lines that the old one did not take
// go to the new one.
func (d *disk) exchange(o *outcome) {
	next, err := d.open(d.medium)
	if err != nil {
		o.reopenErr = err
		return
	}
	_ = d.medium.Close() // what it has was synced, or is written anew
	d.medium, d.torn, o.reopened = next, false, true
	if !o.synced {
		o.written = 0
	}
}

// openMedium opens what is at the path.
func openMedium(path string) (medium, error) {
	// Without O_NONBLOCK, opening a pipe that nobody reads would take forever.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	m, err := mediumOf(f)
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return m, nil
}

// reopenMedium opens what is at the path, unless that is the old one.
func reopenMedium(path string, old medium) (medium, error) {
	if was, ok := old.(*regular); ok {
		if now, err := os.Stat(path); err == nil {
			if before, err := was.file.Stat(); err == nil && os.SameFile(before, now) {
				return nil, errSame
			}
		}
	}
	return openMedium(path)
}

func mediumOf(f *os.File) (medium, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	switch mode := info.Mode(); {
	case mode.Type() == os.ModeNamedPipe:
		return &pipe{file: f, fd: int(f.Fd())}, nil
	case mode.IsRegular():
	case mode.Type() == os.ModeDevice|os.ModeCharDevice:
		return &regular{file: f}, nil
	default:
		return nil, fmt.Errorf("the audit log %s is no file: it is %s", f.Name(), mode)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("the audit log %s is being written by another process", f.Name())
	}
	if wide := info.Mode().Perm() &^ 0o640; wide != 0 {
		if err := f.Chmod(info.Mode().Perm() & 0o640); err != nil {
			return nil, fmt.Errorf("the audit log %s may be used by too many (%s): %w", f.Name(), info.Mode().Perm(), err)
		}
	}
	if info.Size() == 0 {
		syncDir(filepath.Dir(f.Name()))
	}
	return &regular{file: f, synced: info.Size()}, nil
}

// syncDir makes a new file's name outlive a crash, where the directory can.
func syncDir(path string) {
	if d, err := os.Open(path); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}

// regular is a file.
type regular struct {
	file *os.File
	// synced is its size when it was synced last, bytes.
	synced int64
}

func (r *regular) Write(lines []byte) (int, error) { return r.file.Write(lines) }

func (r *regular) Sync() error {
	if err := r.file.Sync(); err != nil {
		return err
	}
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.synced = info.Size()
	return nil
}

// Mend cuts off what was written since the last good Sync: after a failed one
// nobody knows what of it is on disk, and another would not tell.
func (r *regular) Mend(int) (int, error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > r.synced {
		return 0, r.file.Truncate(r.synced)
	}
	return 0, nil
}

func (r *regular) Close() error { return r.file.Close() }

const (
	// takenWithin is how long the reader of a pipe may take, takenLook how
	// often it is looked at.
	takenWithin = 400 * time.Millisecond
	takenLook   = 2 * time.Millisecond
)

// pipe is a named pipe. What was written is safe once its reader has taken it.
type pipe struct {
	file *os.File
	fd   int
}

// Write writes line by line: the kernel takes so few bytes all or not at all.
func (p *pipe) Write(lines []byte) (n int, err error) {
	for n < len(lines) {
		line := lines[n:]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			line = line[:end+1]
		}
		written, err := unix.Write(p.fd, line)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, fmt.Errorf("writing to the pipe %s: %w", p.file.Name(), err)
		default:
			n += written
		}
	}
	return n, nil
}

func (p *pipe) Sync() error {
	for deadline := time.Now().Add(takenWithin); ; time.Sleep(takenLook) {
		left, err := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
		switch {
		case err != nil:
			return fmt.Errorf("asking the pipe %s: %w", p.file.Name(), err)
		case left == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("nobody reads the pipe %s", p.file.Name())
		}
	}
}

// Mend has nothing to mend: what was written is on its way.
func (p *pipe) Mend(written int) (int, error) { return written, nil }

func (p *pipe) Close() error { return p.file.Close() }
