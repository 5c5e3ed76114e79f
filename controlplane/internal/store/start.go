package store

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// minRoom is what etcd needs to start and to go on for a while, bytes: it makes
// room for 64 MiB of its log ahead.
const minRoom = 96 << 20

// Room is how many bytes are left for the owner of this process on the file
// system that a directory is on.
func Room(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("asking how much room %s has: %w", dir, err)
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}

// hasRoom refuses a file system on which etcd would end soon: once its disk is
// full it cannot but end the process.
func hasRoom(dir string) error {
	left, err := Room(dir)
	if err != nil {
		return err
	}
	if left < minRoom {
		return fmt.Errorf("the disk of %s is full: %d MiB are left, etcd needs %d: make room there", dir, left>>20, minRoom>>20)
	}
	return nil
}

// Where etcd's disk has less room than lowRoom, in which the next part of its log
// would not fit, it is said to be full, until it has enoughRoom: what etcd itself
// takes and gives back must not make that flap. Bytes.
const (
	lowRoom    = 64 << 20
	enoughRoom = 80 << 20
)

// Disk tells whether etcd's disk is about to be full; a nil one never is. It is
// safe for concurrent use.
type Disk struct {
	dir  string
	room func(dir string) (uint64, error)

	mu sync.Mutex
	// full is why changes are refused, as it was found last.
	full atomic.Pointer[errdefs.Error]
}

// NewDisk makes one of the disk that a directory is on. Room tells the bytes that
// are left there; nil: the function Room.
func NewDisk(dir string, room func(dir string) (uint64, error)) *Disk {
	if room == nil {
		room = Room
	}
	return &Disk{dir: dir, room: room}
}

// Look asks the disk; for health. What cannot be asked stays as it was.
func (d *Disk) Look() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.full.Load()
	left, err := d.room(d.dir)
	switch {
	case err != nil:
	case left < lowRoom || was != nil && left < enoughRoom:
		d.full.Store(errdefs.New(errdefs.Unavailable, "DISK_FULL",
			"the disk of this replica's data directory is almost full, %d MiB are left, so nothing is changed; make room there, or try another replica",
			left>>20).WithRetry(time.Second))
		return fmt.Errorf("the disk of the data directory is almost full, so that changes are refused: %d MiB are left", left>>20)
	default:
		d.full.Store(nil)
		return nil
	}
	return d.Full()
}

// Full is why nothing may be changed, Unavailable DISK_FULL, by what Look found
// last: etcd ends the process once it cannot write any more. It does not wait.
func (d *Disk) Full() error {
	if d == nil {
		return nil
	}
	if full := d.full.Load(); full != nil {
		return full
	}
	return nil
}

// startEtcd is embed.StartEtcd, whose panics about data that it cannot read are
// errors here.
func startEtcd(ec *embed.Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			etcd, err = nil, fmt.Errorf("starting etcd: %v", r)
		}
		if err != nil && unreadable(err) {
			err = fmt.Errorf("the data in %s is a newer etcd's: start the debvisor-rpcd that wrote it, or restore a backup (%w)", ec.Dir, err)
		}
	}()
	if etcd, err = embed.StartEtcd(ec); err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	return etcd, nil
}

// unreadable tells whether etcd has refused data of a version that it does not
// know; it has no error for that.
func unreadable(err error) bool {
	text := err.Error()
	return strings.Contains(text, "is not supported") && strings.Contains(text, "version") || strings.Contains(text, "invalid downgrade")
}
