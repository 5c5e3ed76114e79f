package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestSharedDirs(t *testing.T) {
	got, err := ParseSharedDirs([]string{"/srv/vms/", "/san=rack1/pool:7"})
	if err != nil || len(got) != 2 || got[0] != (SharedDir{"/srv/vms", "shared:/srv/vms"}) || got[1] != (SharedDir{"/san", "rack1/pool:7"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, texts := range [][]string{{""}, {"relative"}, {"/"}, {"/a="}, {"/a=b c"}, {"/a=local:x"}, {"/a", "/a/"}, {"/a\n"}, {"=x"}} {
		_, err := ParseSharedDirs(texts)
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "shared-dir") || !strings.Contains(err.Error(), "absolute path") {
			t.Errorf("%q: %v", texts, err)
		}
	}
}

// qemuImg makes a real image.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", append([]string{"create", "-q"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img create %v: %v: %s", args, err, out)
	}
}

// here is a host's storage: the test's directory on a file system of this one.
func here(t *testing.T, shared ...string) (*Storage, string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var dirs []SharedDir
	for _, d := range shared {
		dirs = append(dirs, SharedDir{filepath.Join(dir, d), "id-" + d})
	}
	return New(Config{Node: "n1", Shared: dirs}), dir
}

func TestDisksOfRealImages(t *testing.T) {
	s, dir := here(t, "pool", "link")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"pool", "real"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", at("link")); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "-f", "raw", at("a.raw"), "64M")
	qemuImg(t, "-f", "qcow2", at("pool/base.qcow2"), "3G")
	qemuImg(t, "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", at("pool/over.qcow2"))
	qemuImg(t, "-f", "raw", at("real/b.raw"), "1M")
	if err := os.Symlink(at("a.raw"), at("pool/out.raw")); err != nil {
		t.Fatal(err)
	}
	if err := s.Measure(); err != nil {
		t.Fatal(err)
	}
	disk := func(name, format string) *debvisorv1.VMDisk {
		return &debvisorv1.VMDisk{Type: "file", Source: at(name), Format: format}
	}
	raw, over, out, through, faked, gone := disk("a.raw", "raw"), disk("pool/over.qcow2", "qcow2"), disk("pool/out.raw", "raw"),
		disk("real/b.raw", "raw"), disk("pool/over.qcow2", "raw"), disk("pool/gone.raw", "raw")
	cd := &debvisorv1.VMDisk{Type: "file", Device: "cdrom"}
	if err := s.Describe([]*debvisorv1.VMDisk{raw, over, out, through, faked, gone, cd}); err != nil {
		t.Fatal(err)
	}
	if raw.GetShared() || !strings.HasPrefix(raw.GetStorageId(), "local:n1:") || raw.GetCapacityBytes() != 64<<20 || raw.GetInode() == 0 ||
		raw.GetAllocatedBytes() > 1<<20 {
		t.Errorf("raw: %v", raw)
	}
	if !over.GetShared() || over.GetStorageId() != "id-pool" || over.GetCapacityBytes() != 3<<30 || over.GetBackingFile() != at("pool/base.qcow2") ||
		over.GetAllocatedBytes() == 0 {
		t.Errorf("overlay: %v", over)
	}
	if out.GetShared() || out.GetInode() != raw.GetInode() {
		t.Errorf("a link out of the shared directory: %v", out)
	}
	if !through.GetShared() || through.GetStorageId() != "id-link" {
		t.Errorf("a file of a directory that was declared by a link to it: %v", through)
	}
	if faked.GetBackingFile() != "" || faked.GetCapacityBytes() == 3<<30 {
		t.Errorf("a raw disk with what looks like a header: %v", faked)
	}
	if !gone.GetShared() || gone.GetCapacityBytes() != 0 || gone.GetInode() != 0 {
		t.Errorf("a file that is not there: %v", gone)
	}
	if cd.GetStorageId() != "" || cd.GetShared() {
		t.Errorf("an empty drive: %v", cd)
	}
}

func TestFileSystemsOfThisHost(t *testing.T) {
	s, dir := here(t, "pool", "missing")
	if err := os.Mkdir(filepath.Join(dir, "pool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Measure(); err != nil {
		t.Fatal(err)
	}
	found := map[string]*debvisorv1.FileSystem{}
	for _, fs := range s.FileSystems() {
		found[fs.GetMountPoint()] = fs
	}
	if root := found["/"]; root.GetShared() || root.GetTotalBytes() == 0 || root.GetAvailableBytes() > root.GetTotalBytes() || root.GetType() == "" {
		t.Errorf("/: %v", root)
	}
	if pool := found[filepath.Join(dir, "pool")]; !pool.GetShared() || pool.GetStorageId() != "id-pool" || pool.GetTotalBytes() == 0 {
		t.Errorf("the declared directory: %v", pool)
	}
	if fs := found[filepath.Join(dir, "missing")]; fs != nil {
		t.Errorf("one that is not there: %v", fs)
	}
	if found["/proc"] != nil || len(found) > maxFileSystems {
		t.Errorf("%d: %v", len(found), found)
	}
}

func TestWhatHangsIsLeftAndTriedOnceAtATime(t *testing.T) {
	var b bounded
	thaw, began := make(chan struct{}), atomic.Int32{}
	hang := func() int { began.Add(1); <-thaw; return 7 }
	late, _ := after(time.Millisecond)
	if _, ok := within(&b, "a", late, hang); ok {
		t.Error("it has answered")
	}
	if _, ok := within(&b, "a", late, hang); ok || began.Load() != 1 {
		t.Errorf("tried %d times", began.Load())
	}
	soon, stop := after(20 * time.Second)
	defer stop()
	if v, ok := within(&b, "b", soon, func() int { return 3 }); !ok || v != 3 {
		t.Error("another file system waits for it")
	}
	close(thaw)
	if v, ok := within(&b, "a", soon, hang); !ok || v != 7 {
		t.Error("it is not tried again once it answers")
	}
}

func TestAFileSystemThatHangsIsKnownAsItWas(t *testing.T) {
	s, dir := here(t)
	name := filepath.Join(dir, "a.raw")
	qemuImg(t, "-f", "raw", name, "1M")
	disk := &debvisorv1.VMDisk{Type: "file", Source: name, Format: "raw"}
	if err := s.Describe([]*debvisorv1.VMDisk{disk}); err != nil {
		t.Fatal(err)
	}
	if f := s.remember(name, nil, 0); f.capacity != 1<<20 || f.inode != disk.GetInode() || f.resolved != name {
		t.Errorf("remembered: %+v", f)
	}
}

func image(version uint32, backingAt uint64, backing string, size uint64) []byte {
	b := make([]byte, 512)
	copy(b, qcowMagic)
	binary.BigEndian.PutUint32(b[4:], version)
	binary.BigEndian.PutUint64(b[8:], backingAt)
	binary.BigEndian.PutUint32(b[16:], uint32(len(backing)))
	binary.BigEndian.PutUint64(b[24:], size)
	if backingAt < 400 {
		copy(b[backingAt:], backing)
	}
	return b
}

func TestHeadersThatAreNone(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 512), image(4, 0, "", 1), image(3, 1<<40, "x", 1), image(3, 500, strings.Repeat("x", 100), 1), image(3, 1, strings.Repeat("x", 1100), 1)} {
		if h, err := parseHeader(bytes.NewReader(b)); err == nil {
			t.Errorf("%.40q: %+v", b, h)
		}
	}
	if h, err := parseHeader(bytes.NewReader(image(2, 200, "nbd://x", 5))); err != nil || h != (header{5, "nbd://x"}) || absolute(h.backing, "/a/b") != "nbd://x" {
		t.Errorf("%+v, %v", h, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(image(3, 100, "base.qcow2", 1<<30))
	f.Add(image(1, 0, "", 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(bytes.NewReader(b))
		if err == nil && len(h.backing) > 3*maxBacking {
			t.Fatalf("%d bytes of name", len(h.backing))
		}
		if err != nil && errors.Is(err, os.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
