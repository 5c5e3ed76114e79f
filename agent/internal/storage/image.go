package storage

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// file is what is known of the file behind a disk. Sizes are bytes; 0: unknown.
type file struct {
	resolved  string // without symbolic links
	inode     uint64
	capacity  uint64 // as the guest sees it
	allocated uint64
	backing   string // the image that it is an overlay of
}

// examine looks at a disk's file or block device. It may hang with its file
// system. The format is the definition's: what is in a raw image is the guest's
// own, and never looked at.
func examine(name, format string) (file, error) {
	resolved, err := filepath.EvalSymlinks(name)
	if err != nil {
		return file{}, err
	}
	f := file{resolved: resolved}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return file{}, &os.PathError{Op: "stat", Path: resolved, Err: err}
	}
	f.inode = st.Ino
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.capacity, f.allocated = uint64(st.Size), uint64(st.Blocks)*512
	case unix.S_IFBLK:
		f.inode = deviceID("/sys/dev/block", st.Rdev) // that of its name is each host's own
		f.capacity = deviceSize(st.Rdev)
		f.allocated = f.capacity
	default:
		return f, nil
	}
	switch format {
	case "raw":
	case "qcow2", "qcow":
		f.capacity, f.backing = 0, ""
		if h, err := readHeader(resolved); err == nil {
			f.capacity, f.backing = h.size, absolute(h.backing, resolved)
		}
	default:
		f.capacity = 0
	}
	return f, nil
}

// deviceSize is a block device's, by the kernel's count of 512-byte sectors.
func deviceSize(rdev uint64) uint64 {
	name := strconv.Itoa(int(unix.Major(rdev))) + ":" + strconv.Itoa(int(unix.Minor(rdev)))
	content, err := os.ReadFile("/sys/dev/block/" + name + "/size")
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 54)
	if err != nil {
		return 0
	}
	return sectors * 512
}

// absolute reads a backing file's name as QEMU does: a relative one is relative
// to the overlay, one with a protocol is taken as it is.
func absolute(backing, overlay string) string {
	if backing == "" || filepath.IsAbs(backing) || strings.Contains(backing, ":") {
		return backing
	}
	return filepath.Join(filepath.Dir(overlay), backing)
}

// header is what a qcow2 image says of itself (QEMU's docs/interop/qcow2.txt).
type header struct {
	size    uint64
	backing string
}

const (
	qcowMagic  = "QFI\xfb"
	headerSize = 32
	maxBacking = 1023
)

var errNotQcow = errors.New("not a qcow2 image")

func readHeader(name string) (h header, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return parseHeader(f)
}

func parseHeader(r io.ReaderAt) (header, error) {
	var b [headerSize]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return header{}, err
	}
	version := binary.BigEndian.Uint32(b[4:])
	if string(b[:4]) != qcowMagic || version < 1 || version > 3 {
		return header{}, errNotQcow
	}
	h := header{size: binary.BigEndian.Uint64(b[24:])}
	at, length := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])
	if at == 0 || length == 0 {
		return h, nil
	}
	if length > maxBacking || at > 1<<32 {
		return header{}, errNotQcow
	}
	name := make([]byte, length)
	if _, err := r.ReadAt(name, int64(at)); err != nil {
		return header{}, err
	}
	h.backing = strings.ToValidUTF8(string(name), "\uFFFD")
	return h, nil
}
