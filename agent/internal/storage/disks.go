package storage

import (
	"path"
	"path/filepath"
	"sync"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Describe fills in what the host knows of disks: what they lie on, whether it
// is shared, sizes, inode and backing file. It waits a moment at most for what
// hangs; of that the last answer is told, and what the name alone tells.
func (s *Storage) Describe(disks []*debvisorv1.VMDisk) error {
	mounts, err := s.mounts()
	if err != nil {
		return err
	}
	groups := map[string][]*debvisorv1.VMDisk{}
	for _, d := range disks {
		if (d.GetType() == "file" || d.GetType() == "block") && path.IsAbs(d.GetSource()) {
			m, _ := deepest(mounts, path.Clean(d.GetSource()))
			groups[m.point] = append(groups[m.point], d)
		}
	}
	known := s.volumes()
	late, stop := after(patience)
	defer stop()
	var group sync.WaitGroup
	for point, of := range groups {
		group.Go(func() {
			names := make([]named, len(of))
			for i, d := range of {
				names[i] = named{d.GetSource(), d.GetFormat()}
			}
			looked, _ := within(&s.bounded, "disks on "+point, late, func() []file { return examineAll(names) })
			for i, d := range of {
				s.describe(mounts, known, d, s.remember(d.GetSource(), looked, i))
			}
		})
	}
	group.Wait()
	return nil
}

// named is what is examined: the message itself may change while that hangs.
type named struct{ name, format string }

func examineAll(disks []named) []file {
	files := make([]file, len(disks))
	for i, d := range disks {
		files[i], _ = examine(d.name, d.format)
	}
	return files
}

// remember keeps what was found, and gives what was found before where nothing
// has answered. What cannot be examined (any more) has only a name.
func (s *Storage) remember(name string, looked []file, i int) file {
	s.mu.Lock()
	defer s.mu.Unlock()
	if looked == nil {
		return s.files[name]
	}
	if len(s.files) >= maxFiles {
		clear(s.files)
	}
	s.files[name] = looked[i]
	return looked[i]
}

func (s *Storage) describe(mounts []mount, known volumes, d *debvisorv1.VMDisk, f file) {
	name := filepath.Clean(d.GetSource())
	if f.resolved == "" {
		f.resolved = name
	}
	if d.GetType() == "block" {
		p := s.placeOfDevice(name, f.resolved)
		d.StorageId, d.Shared, d.ZfsDataset = p.id, p.shared, volumeOf(name, f.resolved, known)
	} else if p, ok := s.placeOfFile(mounts, f.resolved); ok {
		d.StorageId, d.Shared, d.ZfsDataset = p.id, p.shared, fileSystemOf(mounts, f.resolved)
	}
	d.CapacityBytes, d.AllocatedBytes, d.Inode = f.capacity, f.allocated, f.inode
	if d.GetBackingFile() == "" {
		d.BackingFile = f.backing
	}
}
