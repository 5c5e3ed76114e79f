package obs

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

// output is where a log's lines go: a file, which can be exchanged, or standard
// error. It is safe for use by many goroutines.
type output struct {
	stderr *os.File
	// journal says that standard error leads to systemd's journal.
	journal bool

	mu sync.Mutex
	// file is nil while standard error is written to.
	file *os.File
}

func openOutput(path string, stderr *os.File) (*output, error) {
	o := &output{stderr: stderr, journal: toJournal(stderr, os.Getenv("JOURNAL_STREAM"))}
	return o, o.use(path)
}

// use goes on in a file; empty: standard error. An error changes nothing.
func (o *output) use(path string) error {
	var next *os.File
	if path != "" {
		var err error
		if next, err = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640); err != nil {
			return fmt.Errorf("opening the log: %w", err)
		}
	}
	o.mu.Lock()
	was := o.file
	o.file = next
	o.mu.Unlock()
	if was != nil {
		_ = was.Close() // each line went to the kernel when it was written
	}
	return nil
}

// Write writes a line of no level.
func (o *output) Write(p []byte) (int, error) { return o.LevelWrite(hclog.Info, p) }

// LevelWrite writes a line, for the journal with its priority before it.
func (o *output) LevelWrite(level hclog.Level, p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		return o.file.Write(p)
	}
	if !o.journal {
		return o.stderr.Write(p)
	}
	line := append(make([]byte, 0, len(p)+3), '<', priority(level), '>')
	if _, err := o.stderr.Write(append(line, p...)); err != nil { // in one write: lines of two loggers must not mix
		return 0, err
	}
	return len(p), nil
}

// priority is a level as syslog and the journal count it.
func priority(level hclog.Level) byte {
	switch level {
	case hclog.Error:
		return '3'
	case hclog.Warn:
		return '4'
	case hclog.Debug, hclog.Trace:
		return '7'
	}
	return '6'
}

// Close closes the file. What is logged after it goes to standard error.
func (o *output) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	o.file = nil
	return err
}

// toJournal tells whether a file is the stream that systemd has announced in
// JOURNAL_STREAM, "DEVICE:INODE": a child may have inherited that and not the
// stream.
func toJournal(f *os.File, announced string) bool {
	info, err := f.Stat()
	if err != nil || announced == "" {
		return false
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	return ok && announced == fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}
