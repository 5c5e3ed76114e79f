package accessfile

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/yamlfile"
)

// MaxBytes is the most that an access file may hold.
const MaxBytes = 1 << 20

// look is how often Run looks whether the file has changed.
const look = 2 * time.Second

// Config says which file, and who has a word in it.
type Config struct {
	// Path is the file's; empty: there is none, and the policy is empty.
	Path string
	// Accept, when set, may refuse a policy that would take the place of
	// another, for what it would mean.
	Accept func(next *Policy) error
	// Tell, when set, is told of each policy that came into force after the
	// first, and of each state of the file that was refused, with the reason.
	Tell func(taken *Policy, refused error)
	Log  hclog.Logger
}

// File keeps the policy of one file current. It is safe for concurrent use.
type File struct {
	cfg     Config
	current atomic.Pointer[Policy]

	mu sync.Mutex // one load at a time, so that an older one never wins
	// seen is of what was last read.
	seen stamp
	// refusal is why that was refused; empty if it was not.
	refusal string

	waiting sync.Mutex
	changed chan struct{}
}

// stamp tells one state of a file from another without reading it.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
	mode     fs.FileMode
	// fresh says that it had changed just before: another change right after may
	// bear the same time.
	fresh bool
}

// settled is the age at which a file's next change is sure to bear another time.
const settled = time.Second

// Open reads the file. Its error is one line that names the file and, where
// the content is at fault, the line.
func Open(cfg Config) (*File, error) {
	f := &File{cfg: cfg, changed: make(chan struct{})}
	f.current.Store(newPolicy(""))
	if cfg.Path == "" {
		return f, nil
	}
	policy, stamp, err := load(cfg.Path)
	if err != nil {
		return nil, err
	}
	f.current.Store(policy)
	f.seen = stamp
	return f, nil
}

// None is the policy of no file: an empty one.
func None() *File {
	f := &File{changed: make(chan struct{})}
	f.current.Store(newPolicy(""))
	return f
}

// Current is the policy in force, never nil.
func (f *File) Current() *Policy { return f.current.Load() }

// Name is the file's path; empty where there is none.
func (f *File) Name() string { return f.cfg.Path }

// Changed gives a channel that is closed when another policy comes into force
// after this call. Ask for it before reading Current, or a change in between
// goes unseen.
func (f *File) Changed() <-chan struct{} {
	f.waiting.Lock()
	defer f.waiting.Unlock()
	return f.changed
}

// Reload reads the file now. When it cannot be taken, what it said before
// stays in force, and the error says why in one line.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = "" // who asks is told anew
	return f.reload()
}

func (f *File) reload() error {
	if f.cfg.Path == "" {
		return nil
	}
	next, stamp, err := load(f.cfg.Path)
	f.seen = stamp
	told := f.refusal
	f.refusal = ""
	if err == nil && next.Version == f.current.Load().Version {
		return nil
	}
	if err == nil && f.cfg.Accept != nil {
		if err = f.cfg.Accept(next); err != nil {
			err = fmt.Errorf("%s: %w", f.cfg.Path, err)
		}
	}
	if err != nil {
		if f.refusal = err.Error(); f.refusal == told {
			return err
		}
		f.cfg.Log.Error("the access file is refused; what it said before stays in force", "error", err)
		f.tell(nil, err)
		return err
	}
	f.current.Store(next)
	f.waiting.Lock()
	close(f.changed)
	f.changed = make(chan struct{})
	f.waiting.Unlock()
	f.cfg.Log.Info("access file loaded", "file", f.cfg.Path, "version", next.Version,
		"principals", len(next.Principals), "roles", len(next.Roles), "tenants", len(next.Tenants), "keys", len(next.Keys))
	f.tell(next, nil)
	return nil
}

func (f *File) tell(taken *Policy, refused error) {
	if f.cfg.Tell != nil {
		f.cfg.Tell(taken, refused)
	}
}

// Run loads the file whenever it has changed, looking every 2 s, until ctx
// ends; it then returns nil. A file that is gone is a broken one: what it said
// stays in force.
func (f *File) Run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.lookAgain()
		}
	}
}

// lookAgain loads the file if it is not as it was when last loaded or refused.
func (f *File) lookAgain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.Path == "" {
		return
	}
	var now stamp // zero while it is gone
	if info, err := os.Stat(f.cfg.Path); err == nil {
		now = stampOf(info)
	}
	if now != f.seen || now.fresh {
		_ = f.reload() // it has told of the error
	}
}

// load reads and parses the file. The stamp is that of what was read; zero
// where nothing could be.
func load(path string) (*Policy, stamp, error) {
	content, info, err := yamlfile.Read(path, MaxBytes)
	var at stamp
	if info != nil {
		at = stampOf(info)
	}
	if err != nil {
		return nil, at, err
	}
	policy, err := Parse(path, content)
	return policy, at, err
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{modified: info.ModTime(), size: info.Size(), mode: info.Mode(), fresh: time.Since(info.ModTime()) < settled}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}
