package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// libvirtDir is where libvirt keeps VMs that nobody told it to keep elsewhere.
const libvirtDir = "/var/lib/libvirt"

// disks is how full the file systems are that hold VMs.
type disks struct {
	fullest float64 // percent
	path    string  // on the fullest
	failed  []string
}

// sampleDisks measures every file system that holds a disk of a VM. It hangs
// with a file system that hangs.
func (c *Collector) sampleDisks(context.Context) disks {
	dirs := map[string]struct{}{c.host.path(libvirtDir): {}}
	c.mu.Lock()
	for _, d := range c.seen {
		for _, disk := range d.GetDisks() {
			if disk.GetType() == "file" && filepath.IsAbs(disk.GetSource()) {
				dirs[filepath.Dir(disk.GetSource())] = struct{}{}
			}
		}
	}
	c.mu.Unlock()
	var result disks
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		pct, err := usedPct(dir)
		if err != nil {
			result.failed = append(result.failed, err.Error())
			continue
		}
		if pct >= result.fullest {
			result.fullest, result.path = pct, dir
		}
	}
	return result
}

// usedPct is how full the file system is that holds (or would hold) the
// directory, as df counts: what only root may use is not there.
func usedPct(dir string) (float64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, fs.ErrNotExist) && dir != "/" {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return 0, fmt.Errorf("file system of %s cannot be measured: %w", dir, err)
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, nil
	}
	return 100 * float64(used) / float64(used+st.Bavail), nil
}
