package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// prefix begins the name of every lab's directory; the janitor removes no other.
const prefix = "debvisor-lab-"

// directory is a lab's directory. Its owner holds a lock on it as long as it lives, which is how others know.
type directory struct {
	path string
	lock *os.File
}

// Owner is the record of who owns a lab, kept in its directory.
type Owner struct {
	Dir   string `json:"-"`
	Kind  string `json:"kind"`  // Options.Kind
	Pid   int    `json:"pid"`   // of the owner
	Start string `json:"start"` // its start time, in clock ticks since boot
	Init  int    `json:"init"`  // process 1 of the lab, as the host numbers it
	// InitStart is the start time of process 1.
	InitStart string `json:"init_start"`
}

// makeDirectory makes and locks a new directory with a random name under base.
func makeDirectory(base string) (*directory, error) {
	id := make([]byte, 3)
	for {
		if _, err := rand.Read(id); err != nil {
			return nil, err
		}
		path := filepath.Join(base, prefix+hex.EncodeToString(id))
		if err := os.Mkdir(path, 0o711); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("lab's directory: %w", err)
		}
		lock, err := tryLock(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
			continue // another lab's sweep took it for a leftover in between
		}
		return &directory{path, lock}, err
	}
}

// tryLock locks a lab's directory: unix.EWOULDBLOCK when its owner lives, os.ErrNotExist when it was removed meanwhile.
func tryLock(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	opened, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && !os.SameFile(opened, now) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (d *directory) record(o Owner) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.path, "owner.json"), raw, 0o644)
}

// Owners returns the labs under base whose owners live.
func Owners(base string) ([]Owner, error) {
	dirs, err := filepath.Glob(filepath.Join(base, prefix+"*"))
	if err != nil {
		return nil, err
	}
	var owners []Owner
	for _, dir := range dirs {
		lock, err := tryLock(dir)
		if err == nil {
			_ = lock.Close()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if o, err := readOwner(dir); err == nil && sameProcess(o.Pid, o.Start) {
			owners = append(owners, o)
		}
	}
	return owners, nil
}

func readOwner(dir string) (Owner, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "owner.json"))
	if err != nil {
		return Owner{}, err
	}
	o := Owner{Dir: dir}
	return o, json.Unmarshal(raw, &o)
}

// sameProcess says whether the process that had this pid and start time still runs.
func sameProcess(pid int, start string) bool {
	stat, err := statOf(pid)
	return err == nil && stat.start == start && stat.state != 'Z'
}

// Sweep removes what labs under base left whose owners and janitors were both killed: their processes first, which are all in
// the namespace of a recorded process 1, then their directories. Labs whose owner lives are not touched.
func Sweep(ctx context.Context, base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, prefix+"*"))
	if err != nil {
		return err
	}
	var failed []error
	for _, dir := range dirs {
		lock, err := tryLock(dir)
		if err != nil {
			continue // it lives, or is gone
		}
		failed = append(failed, sweepOne(ctx, dir))
		_ = lock.Close()
	}
	return errors.Join(failed...)
}

func sweepOne(ctx context.Context, dir string) error {
	if o, err := readOwner(dir); err == nil && sameProcess(o.Init, o.InitStart) {
		if err := syscall.Kill(o.Init, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("leftover lab %s: %w", dir, err)
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := Eventually(ctx, "leftover lab "+dir+" ends", func() error {
			if sameProcess(o.Init, o.InitStart) {
				return errors.New("its process 1 still runs")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !strings.HasPrefix(filepath.Base(dir), prefix) {
		return fmt.Errorf("%s is no lab's directory", dir)
	}
	return errors.Join(detachLoops(dir), os.RemoveAll(dir))
}
