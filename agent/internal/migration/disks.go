package migration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent/internal/diskcopy"
	"github.com/debvisor/debvisor/agent/internal/storage"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of what is wrong with a disk on the target.
const (
	codeDiskExists    = "DISK_EXISTS"
	codeDiskDirectory = "DISK_DIRECTORY_MISSING"
	codeDiskSpace     = "DISK_SPACE"
	codeDiskMissing   = "DISK_MISSING"
	codeDiskShared    = "DISK_SHARED"
	codeDiskOther     = "DISK_NOT_SHARED"
	codeDiskSmall     = "DISK_TOO_SMALL"
	codeDiskInUse     = "DISK_IN_USE"
	codeDisk          = "DISK_FAILED"
)

// storageAnswers is how long a file system may take to answer.
const storageAnswers = 20 * time.Second

const (
	typeFile    = "file"
	typeBlock   = "block"
	formatQCOW2 = "qcow2"

	shared      = agentv1.DiskAction_DISK_ACTION_SHARED
	copyLive    = agentv1.DiskAction_DISK_ACTION_COPY_LIVE
	copyOffline = agentv1.DiskAction_DISK_ACTION_COPY_OFFLINE
	increments  = agentv1.DiskAction_DISK_ACTION_ZFS
)

// diskset is the disks of a migration, as the leader ordered.
type diskset []*agentv1.DiskTransfer

// only gives those that an action is for.
func (s diskset) only(action agentv1.DiskAction) diskset {
	var out diskset
	for _, d := range s {
		if d.GetAction() == action {
			out = append(out, d)
		}
	}
	return out
}

// targets are the guest's names.
func (s diskset) targets() []string {
	var out []string
	for _, d := range s {
		out = append(out, d.GetTarget())
	}
	return out
}

// paths are where files and devices are; never nil, so that a definition that has
// others is refused also where there are none.
func (s diskset) paths() []string {
	out := []string{}
	for _, d := range s {
		if d.GetPath() != "" && d.GetType() != typeNetwork {
			out = append(out, d.GetPath())
		}
	}
	return out
}

// files are the disks as our own copy knows them.
func (s diskset) files() []diskcopy.File {
	var out []diskcopy.File
	for _, d := range s {
		f := diskcopy.File{Target: d.GetTarget(), Path: d.GetPath(), Block: d.GetType() == typeBlock}
		if f.Block {
			f.Size = d.GetCapacityBytes()
		}
		out = append(out, f)
	}
	return out
}

// on gives the disk on a block device, whichever of its names that is (an LV has
// three at least); nil: there is none.
func (s diskset) on(device string) *agentv1.DiskTransfer {
	number := numberOf(device)
	for _, d := range s {
		if d.GetPath() == device || number != 0 && numberOf(d.GetPath()) == number {
			return d
		}
	}
	return nil
}

// numberOf is the kernel's number of a block device; 0: it is none.
func numberOf(path string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0
	}
	return st.Rdev
}

// leftovers are the files and volumes that go from the source once the VM is
// elsewhere.
func (s diskset) leftovers() diskset {
	var out diskset
	for _, d := range s {
		if d.GetRemoveSource() && (d.GetType() == typeFile || zvol.Is(d)) && d.GetAction() != shared {
			out = append(out, d)
		}
	}
	return out
}

// diskError is a true reason, with the code that it is known by.
func diskError(code string, d *agentv1.DiskTransfer, format string, args ...any) error {
	return errdefs.New(errdefs.FailedPrecondition, code, "disk %s: %s", d.GetTarget(), fmt.Sprintf(format, args...))
}

// answers runs f, which asks a file system, and gives up on one that hangs.
func answers(ctx context.Context, d *agentv1.DiskTransfer, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	timer := time.NewTimer(storageAnswers)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return diskError(codeDisk, d, "the file system of %s does not answer", d.GetPath())
	}
}

// checkShared makes sure that this node sees the disk that the source sees.
func checkShared(d *agentv1.DiskTransfer) error {
	var st unix.Stat_t
	err := unix.Stat(d.GetPath(), &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return diskError(codeDiskMissing, d, "%s is not on the target, though both nodes should see it", d.GetPath())
	case err != nil:
		return diskError(codeDisk, d, "%v", err)
	case d.GetType() == typeFile && d.GetInode() != 0 && st.Ino != d.GetInode():
		return diskError(codeDiskOther, d, "%s is another file on the target (inode %d, on the source %d)", d.GetPath(), st.Ino, d.GetInode())
	case d.GetType() == typeBlock && st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return diskError(codeDiskOther, d, "%s is no block device on the target", d.GetPath())
	case d.GetType() == typeBlock:
		return checkIdentity(d, storage.DeviceID(d.GetPath()))
	}
	return nil
}

// checkIdentity compares a block device's identity here with the source's (0: it
// has none, and nobody can tell).
func checkIdentity(d *agentv1.DiskTransfer, here uint64) error {
	switch known, same := here != 0 && d.GetInode() != 0, here == d.GetInode(); {
	case known && !same && d.GetAction() == shared:
		return diskError(codeDiskOther, d, "%s is another device on the target than on the source", d.GetPath())
	case known && same && d.GetAction() == copyLive:
		// The guest's writes and their copies would overwrite each other.
		return diskError(codeDiskShared, d, "%s is the same device on both nodes, and is not copied onto itself: declare it shared (debvisor-agent run --shared-dir %s)",
			d.GetPath(), filepath.Dir(d.GetPath()))
	default:
		return nil
	}
}

// checkBlock makes sure that a block device takes the disk, and that nobody on
// this host has it for his own.
func checkBlock(d *agentv1.DiskTransfer) error {
	f, err := os.OpenFile(d.GetPath(), os.O_RDWR|syscall.O_EXCL|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return diskError(codeDiskMissing, d, "the target has no block device %s", d.GetPath())
	case errors.Is(err, syscall.EBUSY):
		return diskError(codeDiskInUse, d, "%s is in use on the target", d.GetPath())
	case err != nil:
		return diskError(codeDisk, d, "%v", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return diskError(codeDisk, d, "%v", err)
	}
	if st.Mode()&fs.ModeDevice == 0 || st.Mode()&fs.ModeCharDevice != 0 {
		return diskError(codeDiskMissing, d, "%s is no block device on the target", d.GetPath())
	}
	if err := checkIdentity(d, storage.DeviceID(d.GetPath())); err != nil {
		return err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return diskError(codeDisk, d, "%v", err)
	}
	if uint64(size) < d.GetCapacityBytes() {
		return diskError(codeDiskSmall, d, "%s has %d bytes on the target, the disk %d", d.GetPath(), size, d.GetCapacityBytes())
	}
	return nil
}

// checkPlace makes sure that a file can be made: its name is free, its directory
// is there. That one made by this migration is there already is well.
func checkPlace(d *agentv1.DiskTransfer, made bool) error {
	directory := filepath.Dir(d.GetPath())
	st, err := os.Stat(directory)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir():
		return diskError(codeDiskDirectory, d, "the target has no directory %s", directory)
	case err != nil:
		return diskError(codeDisk, d, "%v", err)
	}
	if made {
		return nil
	}
	switch _, err := os.Lstat(d.GetPath()); {
	case err == nil:
		return diskError(codeDiskExists, d, "%s is on the target already, and is left as it is: move it away, or plan another target", d.GetPath())
	case !errors.Is(err, fs.ErrNotExist):
		return diskError(codeDisk, d, "%v", err)
	}
	return nil
}

// room adds up what is to be made on each file system.
type room map[uint64]uint64

// take makes sure that a disk has room beside those that had it before.
func (r room) take(d *agentv1.DiskTransfer) error {
	directory := filepath.Dir(d.GetPath())
	var st unix.Stat_t
	var space unix.Statfs_t
	if err := errors.Join(unix.Stat(directory, &st), unix.Statfs(directory, &space)); err != nil {
		return diskError(codeDisk, d, "%v", err)
	}
	r[st.Dev] += d.GetCapacityBytes()
	if free := space.Bavail * uint64(space.Bsize); free < r[st.Dev] {
		return diskError(codeDiskSpace, d, "%s has %d bytes left on the target, too few for %d", directory, free, r[st.Dev])
	}
	return nil
}
