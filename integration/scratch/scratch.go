// Package scratch makes temporary directories that do not outlive their owner for long: what the owner did not remove, being killed or out of
// time, the next one with the same prefix does.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// base is a real file system, as O_DIRECT needs, and its paths are short, as sockets need.
	base     = "/var/tmp"
	lockName = ".lock"
	// settled is the age from which a directory that nobody has locked is nobody's: before, it may be this moment being made.
	settled = time.Minute
)

// A Dir is a directory that is locked as long as its owner lives.
type Dir struct {
	Path string
	lock *os.File
}

// Make makes a directory whose name begins with prefix, and first removes those whose owners are dead.
func Make(prefix string) (*Dir, error) {
	if prefix == "" || strings.ContainsAny(prefix, "/*?[\\") {
		return nil, fmt.Errorf("prefix of a temporary directory %q: must be the beginning of a name", prefix)
	}
	sweep(prefix)
	path, err := os.MkdirTemp(base, prefix)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("temporary directory: %w", err), os.RemoveAll(path))
	}
	return &Dir{Path: path, lock: lock}, nil
}

// Remove removes the directory with all that is in it.
func (d *Dir) Remove() error { return errors.Join(os.RemoveAll(d.Path), d.lock.Close()) }

// sweep removes directories that nobody holds any more.
func sweep(prefix string) {
	left, _ := filepath.Glob(filepath.Join(base, prefix+"*"))
	for _, dir := range left {
		if at, err := os.Stat(dir); err != nil || time.Since(at.ModTime()) < settled {
			continue
		}
		lock, err := os.Open(filepath.Join(dir, lockName))
		if err != nil {
			continue // another's, or gone
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}
