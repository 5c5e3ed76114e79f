package storage

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// zvolDir is where udev links each volume by its name.
const zvolDir = "/dev/zvol/"

// zvolDevice is the kernel's own name of a volume, or of a partition on it.
var zvolDevice = regexp.MustCompile(`^/dev/(zd[0-9]+)(p[0-9]+)?$`)

// volumes finds ZFS volumes by their devices; it looks when it is first asked.
type volumes func() map[string]string

// volumes are those of now, by the name of their device such as zd16.
func (s *Storage) volumes() volumes {
	return sync.OnceValue(func() map[string]string { return linkedVolumes(filepath.Join("/", s.cfg.Root, zvolDir)) })
}

// linkedVolumes reads udev's links. A volume's snapshots, where they are shown,
// are counted as the volume.
func linkedVolumes(dir string) map[string]string {
	found := map[string]string{}
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type() != fs.ModeSymlink {
			return nil //nolint:nilerr // what cannot be read has no name; the rest has
		}
		to, err := os.Readlink(path)
		if err != nil || !zvolDevice.MatchString("/dev/"+filepath.Base(to)) || strings.Contains(filepath.Base(to), "p") {
			return nil //nolint:nilerr // it went away, or is a partition's
		}
		if name, err := filepath.Rel(dir, path); err == nil {
			found[filepath.Base(to)] = datasetOf(name)
		}
		return nil
	})
	return found
}

// datasetOf is a dataset's name as ZFS has it, of udev's, which has + for a space
// (no dataset's name has a +), or of a mount's source.
func datasetOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	return strings.ReplaceAll(name, "+", " ")
}

// volumeOf is the volume that a disk's device is, or is a partition of; empty:
// none. Where a name under /dev/zvol leads nowhere at present, it alone tells.
func volumeOf(name, resolved string, known volumes) string {
	parts := zvolDevice.FindStringSubmatch(resolved)
	switch {
	case parts != nil:
		return known()[parts[1]]
	case resolved == name && strings.HasPrefix(name, zvolDir):
		return datasetOf(strings.TrimPrefix(name, zvolDir))
	}
	return ""
}

// fileSystemOf is the ZFS file system that holds a file; empty: none does.
func fileSystemOf(mounts []mount, resolved string) string {
	if m, ok := deepest(mounts, resolved); ok && m.kind == "zfs" {
		name, _, _ := strings.Cut(m.source, "@")
		return name
	}
	return ""
}
