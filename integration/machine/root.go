package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// newRoot is where the root directory is made: a directory that every host has and of which nothing is wanted.
const newRoot = "/proc"

// freshDirs are directories of a machine's own, empty and in memory.
var freshDirs = []string{
	"/tmp", "/var/tmp", "/run", "/mnt", "/media", "/root", "/etc/zfs", "/var/log", "/var/cache", "/var/spool", "/var/lib/debvisor",
	"/dev", "/proc", "/sys",
}

// copied bounds the files that are copied, not bound: for each mount there is a line for all to read that look at mounts.
const copied = 256 << 10

// A root is the plan of a root directory: it is a file system in memory, in which the host's directories appear, read-only, by bind
// mounts. A directory in which anything differs from the host's is made anew, with what the host has in it bound or copied.
type root struct {
	differs map[string]bool // directories that are made anew
	fresh   map[string]bool
	files   map[string]string
	visible []string // of the host, read-only
	shared  []string // of the host
}

// makeRoot makes the machine's root directory and changes to it.
func makeRoot(i inside) error {
	r := planRoot(i)
	if err := unix.Mount("tmpfs", newRoot, "tmpfs", 0, "mode=755,size=75%"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := r.fill("/"); err != nil {
		return err
	}
	for _, m := range []struct{ at, kind, data string }{
		{"/proc", "proc", ""},
		{"/sys", "sysfs", ""},
		{"/dev", "devtmpfs", "mode=755"},
		{"/dev/pts", "devpts", "newinstance,ptmxmode=666,mode=620,gid=5"},
		{"/dev/shm", "tmpfs", "mode=1777"},
		{"/run", "tmpfs", "mode=755"},
	} {
		if err := errors.Join(os.MkdirAll(newRoot+m.at, 0o755), unix.Mount(m.kind, newRoot+m.at, m.kind, 0, m.data)); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.Mkdir(newRoot+"/run/lock", 0o755); err != nil {
		return err
	}
	for _, path := range r.visible {
		if err := bind(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, dir := range r.shared {
		if err := errors.Join(os.MkdirAll(newRoot+dir, 0o755), unix.Mount("host", newRoot+dir, "hostfs", 0, dir)); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for path, contents := range r.files {
		if err := os.MkdirAll(newRoot+filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(newRoot+path, []byte(contents), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Symlink("/proc/self/fd", newRoot+"/dev/fd"), os.Chmod(newRoot+"/tmp", 0o1777), os.Chmod(newRoot+"/var/tmp", 0o1777),
		os.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
}

func planRoot(i inside) root {
	r := root{differs: map[string]bool{"/": true}, fresh: map[string]bool{}, files: map[string]string{}}
	r.files["/etc/hostname"] = i.Name + "\n"
	r.files["/etc/hosts"] = "127.0.0.1 localhost\n"
	if i.Systemd {
		for name, contents := range targets {
			r.files[filepath.Join(UnitsDir, name)] = contents
		}
		i.Fresh = append(i.Fresh, UnitsDir)
	}
	for path, contents := range i.Files {
		r.files[filepath.Clean(path)] = contents
	}
	for _, dir := range slices.Concat(freshDirs, i.Fresh) {
		r.fresh[filepath.Clean(dir)] = true
		r.differ(filepath.Dir(filepath.Clean(dir)))
	}
	for path := range r.files {
		r.differ(filepath.Dir(path))
	}
	r.visible = r.paths(append([]string{i.Program, i.Built}, i.Visible...))
	r.shared = r.paths(i.Shared)
	return r
}

// paths prepares paths of the host that the machine is to see: outer ones come first.
func (r root) paths(of []string) []string {
	var all []string
	for _, path := range of {
		all = append(all, filepath.Clean(path))
		r.differ(filepath.Dir(filepath.Clean(path)))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// bind makes a path of the host visible in the new root, in a directory that differs.
func bind(path string) error {
	at, err := os.Stat(path)
	if err != nil {
		return err
	}
	to := newRoot + path
	if at.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		err = os.WriteFile(to, nil, at.Mode().Perm())
	}
	if err != nil {
		return err
	}
	return unix.Mount(path, to, "", unix.MS_BIND, "")
}

// differ marks a directory and all above it as made anew.
func (r root) differ(dir string) {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		r.differs[dir] = true
	}
}

// fill makes the contents of a directory that differs.
func (r root) fill(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := r.entry(filepath.Join(dir, e.Name()), e); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, e.Name()), err)
		}
	}
	// Those that the host does not have.
	for path := range r.fresh {
		if filepath.Dir(path) == dir {
			if err := os.MkdirAll(newRoot+path, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry makes one entry of a directory that differs.
func (r root) entry(path string, e os.DirEntry) error {
	to := newRoot + path
	if _, own := r.files[path]; own {
		return nil
	}
	switch {
	case e.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case e.IsDir():
		mode := fs.FileMode(0o755)
		if at, err := e.Info(); err == nil {
			mode = at.Mode().Perm()
		}
		if err := os.Mkdir(to, mode); err != nil {
			return err
		}
		if r.fresh[path] {
			return nil
		}
		if r.differs[path] {
			return r.fill(path)
		}
		return unix.Mount(path, to, "", unix.MS_BIND, "")
	case e.Type().IsRegular():
		return r.file(path, to, e)
	}
	return nil // sockets and the like mean nothing here
}

// file copies or binds a file.
func (r root) file(path, to string, e os.DirEntry) error {
	at, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the host goes on living
	}
	if err != nil {
		return err
	}
	if at.Size() > copied || strings.HasPrefix(path, "/var/") {
		return errors.Join(os.WriteFile(to, nil, at.Mode().Perm()), unix.Mount(path, to, "", unix.MS_BIND, ""))
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.WriteFile(to, raw, at.Mode().Perm()))
}
