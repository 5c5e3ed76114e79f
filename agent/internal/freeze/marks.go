package freeze

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mark says, on disk, that a guest may be frozen by us.
type mark struct {
	VM     string        `json:"vm"` // its UUID
	Name   string        `json:"name"`
	At     time.Time     `json:"at"`
	Budget time.Duration `json:"budget_ns"`
}

// marks is the directory that holds them, a file a VM.
type marks struct{ dir string }

const markSuffix = ".frozen"

func (m marks) path(vm string) string { return filepath.Join(m.dir, filepath.Base(vm)+markSuffix) }

// put has a mark on disk when it returns nil.
func (m marks) put(k mark) error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	value, err := json.Marshal(k)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.path(k.VM), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(m.dir), syncDir(filepath.Dir(m.dir)))
}

// drop forgets a mark; it may come back after a power cut, which has thawed
// every guest.
func (m marks) drop(vm string) error {
	if err := os.Remove(m.path(vm)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// all are the marks on disk. One that cannot be read (it was being written when
// the power failed) still names its VM.
func (m marks) all() ([]mark, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading which guests may be frozen: %w", err)
	}
	var found []mark
	for _, e := range entries {
		vm, ours := strings.CutSuffix(e.Name(), markSuffix)
		if !ours {
			continue
		}
		k := mark{}
		value, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err == nil {
			err = json.Unmarshal(value, &k)
		}
		if err != nil || k.VM != vm {
			k = mark{VM: vm}
		}
		found = append(found, k)
	}
	return found, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
