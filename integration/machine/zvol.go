package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	zvolDir = "/dev/zvol"
	// blkZName is BLKZNAME of OpenZFS's sys/fs/zfs.h, _IOR(0x12, 125, char[256]): the name of the dataset of a zd device.
	blkZName = 2<<30 | 256<<16 | 0x12<<8 | 125
)

// links keeps /dev/zvol/POOL/DATASET leading to the devices of volumes, as udev's rules do on a host.
type links struct {
	socket int
	of     map[string]string // path of the link, by device
}

func newLinks() (*links, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("the kernel's events: %w", err)
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		return nil, fmt.Errorf("the kernel's events: %w", err)
	}
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, fmt.Errorf("the kernel's events: %w", err)
	}
	return &links{socket: s, of: map[string]string{}}, nil
}

// run follows the kernel's events for ever.
func (l *links) run() {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(l.socket, buf, 0)
		if err != nil {
			continue
		}
		event := map[string]string{}
		for _, field := range bytes.Split(buf[:n], []byte{0}) {
			if key, value, ok := strings.Cut(string(field), "="); ok {
				event[key] = value
			}
		}
		device := event["DEVNAME"]
		if event["SUBSYSTEM"] != "block" || !strings.HasPrefix(device, "zd") {
			continue
		}
		if err := l.update(event["ACTION"], device); err != nil {
			fmt.Fprintf(os.Stderr, "link of %s: %v\n", device, err)
		}
	}
}

// update makes or removes the link of a device.
func (l *links) update(action, device string) error {
	var path string
	if action != "remove" {
		name, err := dataset(device)
		if err != nil {
			return err
		}
		whole, part, isPart := strings.Cut(device, "p")
		path = filepath.Join(zvolDir, name)
		if isPart && whole != "" {
			path += "-part" + part
		}
	}
	old := l.of[device]
	if old == path {
		return nil
	}
	if old != "" {
		if to, err := os.Readlink(old); err == nil && to == "/dev/"+device {
			if err := os.Remove(old); err != nil {
				return err
			}
		}
		delete(l.of, device)
	}
	if path == "" {
		return nil
	}
	l.of[device] = path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Another device may have had the name until now: a link is replaced at once.
	if err := os.Symlink("/dev/"+device, path+".new"); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// dataset asks a device of which dataset it is.
func dataset(device string) (string, error) {
	fd, err := unix.Open("/dev/"+device, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var name [256]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkZName, uintptr(unsafe.Pointer(&name[0]))); errno != 0 {
		return "", errno
	}
	return unix.ByteSliceToString(name[:]), nil
}
