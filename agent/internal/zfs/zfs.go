package zfs

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// Config is what a ZFS is made of. The commands zfs and zpool are those that PATH
// leads to.
type Config struct {
	// Log hears of commands that failed; nil: nobody does.
	Log hclog.Logger
}

// ZFS is this host's ZFS. It is safe for concurrent use.
type ZFS struct {
	log hclog.Logger

	mu     sync.Mutex
	probed *Capabilities // nil: not yet
	// left counts the commands that were killed and hang in the kernel.
	left atomic.Int32
	// takers are who has snapshots taken just now.
	takers takers
}

// New gives this host's ZFS; whether there is any, Probe tells.
func New(cfg Config) *ZFS {
	z := &ZFS{log: cfg.Log}
	if z.log == nil {
		z.log = hclog.NewNullLogger()
	}
	return z
}
