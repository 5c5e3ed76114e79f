package zvol

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// appears is how long the host may take to make a volume's device.
	appears = 20 * time.Second
	poll    = 20 * time.Millisecond
	// blkZName asks a volume's device for its name: _IOR(0x12, 125, char[256]).
	blkZName = 0x8100127d
)

// appear waits until the host has the volume's device under its name.
func (v Volume) appear(ctx context.Context) error {
	deadline := time.Now().Add(appears)
	for {
		name, size := deviceOf(v.Disk.GetPath())
		if name == v.name() && size >= v.Disk.GetCapacityBytes() {
			return nil
		}
		if !time.Now().Before(deadline) {
			return v.fail(codeMissing, "%s has not become a block device of %d bytes within %s (udev makes it; it is %q of %d bytes)",
				v.Disk.GetPath(), v.Disk.GetCapacityBytes(), appears, name, size)
		}
		timer := time.NewTimer(poll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// Ready waits until the host has the volume's device, and drops what its kernel has
// read of it so far.
func (v Volume) Ready(ctx context.Context) error {
	if err := v.appear(ctx); err != nil {
		return err
	}
	return v.flush()
}

// deviceOf is the volume that a block device is, and its size; empty: it is none.
func deviceOf(device string) (name string, size uint64) {
	f, err := openDevice(device)
	if err != nil {
		return "", 0
	}
	defer func() { _ = f.Close() }()
	var buffer [256]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkZName, uintptr(unsafe.Pointer(&buffer[0]))); errno != 0 {
		return "", 0
	}
	end, err := f.Seek(0, 2)
	if err != nil {
		return "", 0
	}
	return string(buffer[:max(bytes.IndexByte(buffer[:], 0), 0)]), uint64(end)
}

func openDevice(device string) (*os.File, error) {
	f, err := os.OpenFile(device, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		_ = f.Close()
		return nil, fmt.Errorf("%s is no block device", device)
	}
	return f, nil
}

// flush drops what this host's kernel has read of the volume before the last
// snapshots came: it does not notice that they did.
func (v Volume) flush() error {
	f, err := openDevice(v.Disk.GetPath())
	if err != nil {
		return v.fail(codeMissing, "%v", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return v.fail(codeFailed, "flushing %s: %v", v.Disk.GetPath(), err)
	}
	return nil
}
