package storage

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// patience is how long one file system may take.
	patience = 2 * time.Second
	// maxFileSystems bounds what is told.
	maxFileSystems = 128
	// maxFiles bounds what is remembered of files that no longer answer.
	maxFiles = 8192
)

// Config says whose storage it is.
type Config struct {
	// Node makes the ids of what other nodes do not see unlike theirs.
	Node string
	// Shared are the directories declared to be shared.
	Shared []SharedDir
	// Root is where /proc and /dev are found; empty: "/".
	Root string
}

// Storage is one host's. It is safe for concurrent use.
type Storage struct {
	cfg     Config
	bounded bounded

	mu     sync.Mutex
	known  []*debvisorv1.FileSystem // as last measured
	files  map[string]file          // as last examined, by name
	linked []SharedDir              // declared, their paths without symbolic links
}

// New makes a Storage that has measured nothing yet.
func New(cfg Config) *Storage {
	return &Storage{cfg: cfg, files: map[string]file{}}
}

// FileSystems are those last measured, ordered by mount point; from memory.
// One that hangs is not among them.
func (s *Storage) FileSystems() []*debvisorv1.FileSystem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// mounts reads what is mounted now; it asks the kernel only, and never hangs.
func (s *Storage) mounts() ([]mount, error) {
	content, err := os.ReadFile(filepath.Join("/", s.cfg.Root, "proc/self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("reading the mounts: %w", err)
	}
	return parseMounts(bytes.NewReader(content))
}

// Measure looks at all file systems that can hold disks, for a moment at most,
// and keeps what FileSystems tells.
func (s *Storage) Measure() error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	var candidates []*debvisorv1.FileSystem
	writable := map[*debvisorv1.FileSystem]bool{}
	add := func(point string, m mount, p place) {
		fs := &debvisorv1.FileSystem{MountPoint: point, Type: m.kind, StorageId: p.id, Shared: p.shared}
		candidates, writable[fs] = append(candidates, fs), !m.readOnly
	}
	for _, d := range s.cfg.Shared {
		if m, ok := deepest(mounts, d.Path); ok {
			add(d.Path, m, place{d.ID, true})
		}
	}
	for _, m := range mounts {
		declared := slices.ContainsFunc(s.cfg.Shared, func(d SharedDir) bool { return d.Path == m.point })
		if !declared && holdsDisks(m) {
			add(m.point, m, s.placeOf(m))
		}
	}
	slices.SortStableFunc(candidates, byWorth)
	late, stop := after(patience)
	defer stop()
	answered := make([]bool, len(candidates))
	var group sync.WaitGroup
	for i, fs := range candidates[:min(len(candidates), maxFileSystems)] {
		group.Go(func() { answered[i] = s.measure(fs, writable[fs], late) })
	}
	links, linked := within(&s.bounded, "declared directories", late, s.resolveDeclared)
	group.Wait()
	known := make([]*debvisorv1.FileSystem, 0, len(candidates))
	for i, fs := range candidates {
		if answered[i] {
			known = append(known, fs)
		}
	}
	slices.SortFunc(known, func(a, b *debvisorv1.FileSystem) int { return cmp.Compare(a.GetMountPoint(), b.GetMountPoint()) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = known
	if linked {
		s.linked = links
	}
	return nil
}

// byWorth puts first what is least to be missed: what is shared, then what is
// near the root.
func byWorth(a, b *debvisorv1.FileSystem) int {
	if a.GetShared() != b.GetShared() {
		if a.GetShared() {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(strings.Count(a.GetMountPoint(), "/"), strings.Count(b.GetMountPoint(), "/")), cmp.Compare(a.GetMountPoint(), b.GetMountPoint()))
}

// measure asks one file system for its size; false: it has not answered, or is
// no directory.
func (s *Storage) measure(fs *debvisorv1.FileSystem, writable bool, late <-chan struct{}) bool {
	type answer struct {
		st  unix.Statfs_t
		err error
	}
	a, ok := within(&s.bounded, fs.GetMountPoint(), late, func() (a answer) {
		info, err := os.Stat(fs.GetMountPoint())
		if err == nil && !info.IsDir() {
			err = unix.ENOTDIR
		}
		if err == nil {
			err = unix.Statfs(fs.GetMountPoint(), &a.st)
		}
		a.err = err
		return a
	})
	if !ok || a.err != nil {
		return false
	}
	block := uint64(max(a.st.Frsize, 0))
	fs.TotalBytes = a.st.Blocks * block
	if writable {
		fs.AvailableBytes = a.st.Bavail * block
	}
	return true
}

func (s *Storage) resolveDeclared() []SharedDir {
	resolved := slices.Clone(s.cfg.Shared)
	for i := range resolved {
		if to, err := filepath.EvalSymlinks(resolved[i].Path); err == nil {
			resolved[i].Path = to
		}
	}
	return resolved
}

// place is what a path lies on.
type place struct {
	id     string
	shared bool
}

func (s *Storage) placeOf(m mount) place {
	if networked(m.kind) {
		return place{sharedID(m, s.cfg.Node, s.uuidOf), true}
	}
	return place{localPrefix + s.cfg.Node + ":" + m.device, false}
}

// placeOfFile tells what a file lies on. Its name without symbolic links
// decides: a link in a shared directory may lead out of it.
func (s *Storage) placeOfFile(mounts []mount, resolved string) (place, bool) {
	if d, ok := declaredFor(append(slices.Clone(s.cfg.Shared), s.declared()...), resolved); ok {
		return place{d.ID, true}, true
	}
	m, ok := deepest(mounts, resolved)
	if !ok {
		return place{}, false
	}
	return s.placeOf(m), true
}

// placeOfDevice tells what a block device is: its name in the definition counts
// as well as where that leads, which is as often as not /dev/dm-7.
func (s *Storage) placeOfDevice(name, resolved string) place {
	dirs := append(slices.Clone(s.cfg.Shared), s.declared()...)
	for _, p := range []string{name, resolved} {
		if d, ok := declaredFor(dirs, p); ok {
			return place{d.ID, true}
		}
	}
	return place{localPrefix + s.cfg.Node + ":" + resolved, false}
}

func (s *Storage) declared() []SharedDir {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked
}

// declaredFor is the declared directory that holds a path, the deepest of them.
func declaredFor(dirs []SharedDir, p string) (best SharedDir, ok bool) {
	for _, d := range dirs {
		if under(p, d.Path) && len(d.Path) > len(best.Path) {
			best, ok = d, true
		}
	}
	return best, ok
}

// uuidOf is the UUID of the file system on a block device, as udev knows it;
// empty: it does not.
func (s *Storage) uuidOf(device string) string {
	dir := filepath.Join("/", s.cfg.Root, "dev/disk/by-uuid")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if to = filepath.Join("/dev/disk/by-uuid", to); to == device || path.Base(to) == path.Base(device) && path.Dir(device) == "/dev" {
			return e.Name()
		}
	}
	return ""
}
