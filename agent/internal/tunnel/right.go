package tunnel

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/obs"
)

// Role is which end of a tunnel.
type Role string

// The two ends.
const (
	Source Role = "source"
	Target Role = "target"
)

// Config is all that one end needs; it is handed to the child in a file that
// only root can read.
type Config struct {
	Role Role
	// TaskID is the task that the end belongs to; TraceID its trace, for the log.
	TaskID, TraceID string
	// RightID is shared by the two ends: 128 random bits.
	RightID string
	// ExpiresAt is when the end closes by itself.
	ExpiresAt time.Time
	// VMUUID is the only VM that the target lets in, VMName its name.
	VMUUID, VMName string
	// Cluster and Peer say whose certificate the other end must have.
	Cluster, Peer string
	Certificates  certs.Files

	// Address is the target's end, host:port (source only).
	Address string

	// Host is where to listen and what to tell the source; the port is the
	// first free one from FirstPort to LastPort (target only).
	Host                string
	FirstPort, LastPort int
	// LibvirtSocket is libvirtd's (target only).
	LibvirtSocket string
	// QEMUUser and QEMUGroup are who QEMU runs as: on the target they own the
	// directory in which QEMU makes its sockets, on the source the sockets that
	// QEMU connects to by itself (parallel connections, disks).
	QEMUUser, QEMUGroup int

	// Offline has the definition alone move: libvirt must be asked for exactly
	// that, and neither memory nor disks go through (both ends, the same).
	Offline bool
	// CopyDisks are the guest's names ("vda") of the disks that libvirt copies
	// while the guest runs. Without any no disk may be asked for, nor does one
	// go through (target only).
	CopyDisks []string
	// Parallel says that memory comes in several streams (target only).
	Parallel bool
	// DiskPaths are all that the definition's disks may be, in files or block
	// devices (target only). nil: the definition's disks are not looked at.
	DiskPaths []string
}

// ids are what lines about the end are found by.
func (c Config) ids() obs.IDs {
	operation, _, _ := strings.Cut(c.TaskID, "/")
	return obs.IDs{Trace: c.TraceID, Operation: operation, Task: c.TaskID}
}

// layout is where an end keeps its things. The base is the same on both hosts,
// since libvirt uses one name for QEMU's socket on both.
type layout struct{ dir string }

func layoutOf(root, rightID string) layout {
	sum := sha256.Sum256([]byte(rightID))
	return layout{filepath.Join(root, hex.EncodeToString(sum[:8]))}
}

func (l layout) config() string  { return filepath.Join(l.dir, "config.json") }
func (l layout) lock() string    { return filepath.Join(l.dir, "lock") }
func (l layout) log() string     { return filepath.Join(l.dir, "log") }
func (l layout) address() string { return filepath.Join(l.dir, "address") }
func (l layout) broken() string  { return filepath.Join(l.dir, "broken") }
func (l layout) arrived() string { return filepath.Join(l.dir, "arrived") }
func (l layout) hungUp() string  { return filepath.Join(l.dir, "hung-up") }
func (l layout) pending() string { return filepath.Join(l.dir, "pending") }
func (l layout) refused() string { return filepath.Join(l.dir, "refused") }
func (l layout) audited() string { return filepath.Join(l.dir, "audited") }
func (l layout) libvirt() string { return filepath.Join(l.dir, "lv.sock") }
func (l layout) io() string      { return filepath.Join(l.dir, "io") }
func (l layout) memory() string  { return filepath.Join(l.io(), "mig.sock") }
func (l layout) disks() string   { return filepath.Join(l.io(), "nbd.sock") }
func (l layout) copy() string    { return filepath.Join(l.dir, "copy.sock") }

// socket is where a channel's connections begin on the source and end on the
// target, but for libvirt's, which has a socket of its own there.
func (l layout) socket(c channel) string {
	switch c {
	case memoryChannel:
		return l.memory()
	case diskChannel:
		return l.disks()
	case copyChannel:
		return l.copy()
	default:
		return l.libvirt()
	}
}
