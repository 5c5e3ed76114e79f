package migration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// place is a file that a migration makes for libvirt to copy a disk into. It has
// a second name beside it, of this migration alone, until it is kept or
// discarded: whatever dies when, only a file of both names is ours.
type place struct {
	disk *agentv1.DiskTransfer
	own  string // the second name
}

func placeOf(rightID string, d *agentv1.DiskTransfer) place {
	sum := sha256.Sum256([]byte(rightID + "\x00" + d.GetPath()))
	return place{d, filepath.Join(filepath.Dir(d.GetPath()), ".debvisor-live-"+hex.EncodeToString(sum[:12]))}
}

// made tells whether the file is there and ours.
func (p place) made() bool {
	own, err := os.Lstat(p.own)
	if err != nil {
		return false
	}
	file, err := os.Lstat(p.disk.GetPath())
	return err == nil && os.SameFile(own, file)
}

// make makes the file, of the disk's size, sparse, for QEMU as its owner. It
// may be called again after whatever ended it.
func (p place) make(ctx context.Context, uid, gid int) error {
	if p.made() {
		return nil
	}
	if err := os.Remove(p.own); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError(codeDisk, p.disk, "%v", err)
	}
	if err := p.create(ctx); err != nil {
		return errors.Join(err, p.discard())
	}
	if err := errors.Join(os.Chmod(p.own, 0o600), os.Chown(p.own, uid, gid), syncPath(p.own)); err != nil {
		return errors.Join(diskError(codeDisk, p.disk, "%v", err), p.discard())
	}
	err := os.Link(p.own, p.disk.GetPath())
	if errors.Is(err, fs.ErrExist) {
		err = checkPlace(p.disk, false) // in its words
	}
	if err != nil {
		return errors.Join(err, p.discard())
	}
	return syncPath(filepath.Dir(p.own))
}

func (p place) create(ctx context.Context) error {
	if p.disk.GetFormat() == formatQCOW2 {
		size := strconv.FormatUint(p.disk.GetCapacityBytes(), 10)
		out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", formatQCOW2, p.own, size).CombinedOutput()
		if err != nil {
			return diskError(codeDisk, p.disk, "qemu-img create: %v: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	f, err := os.OpenFile(p.own, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError(codeDisk, p.disk, "%v", err)
	}
	if err := errors.Join(f.Truncate(int64(p.disk.GetCapacityBytes())), f.Close()); err != nil {
		return diskError(codeDisk, p.disk, "%v", err)
	}
	return nil
}

// keep leaves the file its own name only.
func (p place) keep() error { return gone(os.Remove(p.own)) }

// discard removes the file, if this migration made it and has not kept it.
func (p place) discard() error {
	if p.made() {
		if err := gone(os.Remove(p.disk.GetPath())); err != nil {
			return err
		}
		if err := syncPath(filepath.Dir(p.own)); err != nil {
			return err
		}
	}
	return gone(os.Remove(p.own))
}

// gone passes over the error that what is to be gone is.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncPath has a file or a directory on disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	return nil
}
