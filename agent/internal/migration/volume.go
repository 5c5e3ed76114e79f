package migration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// propertyRight is on a volume that a migration made, with its right's id,
	// until it is kept.
	propertyRight = "org.debvisor:migration"
	// volumeDir is where volumes are block devices.
	volumeDir = "/dev/zvol/"
	// volumeAppears is how long the host may take to make a volume's device.
	volumeAppears = 20 * time.Second
	volumePoll    = 20 * time.Millisecond
)

// isVolume tells whether a disk is a ZFS volume that the target makes.
func isVolume(d *agentv1.DiskTransfer) bool { return d.GetZfsDataset() != "" && d.GetType() == typeBlock }

// volume is a ZFS volume that a migration makes. It grows under a name of this
// migration alone, and is marked with its right before it gets the VM's name:
// whatever dies when, only one of that mark, or of that name, is ours to destroy.
type volume struct {
	zfs  *zfs.ZFS
	disk *agentv1.DiskTransfer
	mark string // the right's id
}

func (h *half) volume(d *agentv1.DiskTransfer) volume {
	return volume{h.m.cfg.ZFS, d, h.right.GetId()}
}

func (v volume) name() string { return v.disk.GetZfsDataset() }

// own is the name that it grows under.
func (v volume) own() string {
	sum := sha256.Sum256([]byte(v.mark + "\x00" + v.name()))
	return path.Join(path.Dir(v.name()), "debvisor-incoming-"+hex.EncodeToString(sum[:12]))
}

// found is a dataset as far as it matters here.
type found struct {
	guid   uint64
	volume bool
	right  string // its mark; empty: none of its own
	token  string // of a receive that was cut
}

// find looks a dataset up; ok is false where there is none.
func (v volume) find(ctx context.Context, name string) (f found, ok bool, err error) {
	p, err := v.zfs.Get(ctx, name, "guid", "type", "receive_resume_token", propertyRight)
	if errdefs.Is(err, errdefs.NotFound) {
		return found{}, false, nil
	}
	if err != nil {
		return found{}, false, err
	}
	if f.guid, err = strconv.ParseUint(p["guid"].Value, 10, 64); err != nil {
		return found{}, false, diskError(codeDisk, v.disk, "the guid of %s is %q", name, p["guid"].Value)
	}
	f.volume = p["type"].Value == "volume"
	if mark := p[propertyRight]; mark.Source == "local" || mark.Source == "received" {
		f.right = mark.Value
	}
	if token := p["receive_resume_token"].Value; token != "-" {
		f.token = token
	}
	return f, true, nil
}

// made tells whether it is there and ours.
func (v volume) made(ctx context.Context) (bool, error) {
	f, ok, err := v.find(ctx, v.name())
	return ok && f.volume && f.right == v.mark, err
}

// check makes sure that it can be made, or is ours already.
func (v volume) check(ctx context.Context) error {
	if v.disk.GetPath() != volumeDir+v.name() || v.zfs == nil {
		return diskError(codeDisk, v.disk, "%s is not the name of the ZFS volume %s on every host", v.disk.GetPath(), v.name())
	}
	f, ok, err := v.find(ctx, v.name())
	switch {
	case err != nil:
		return err
	case ok && f.right != v.mark:
		return diskError(codeDiskExists, v.disk, "there is a dataset %s on the target already, and it is left as it is: rename it, or plan another target", v.name())
	case ok:
		return nil
	}
	switch _, above, err := v.find(ctx, path.Dir(v.name())); {
	case err != nil:
		return err
	case !above:
		return diskError(codeDiskDirectory, v.disk, "the target has no dataset %s", path.Dir(v.name()))
	}
	return nil
}

// make makes it, empty and of the disk's size. It may be called again after
// whatever ended it.
func (v volume) make(ctx context.Context) error {
	switch made, err := v.made(ctx); {
	case err != nil:
		return err
	case made:
		return v.appear(ctx)
	}
	if err := v.destroy(ctx, v.own()); err != nil {
		return err
	}
	properties := map[string]string{propertyRight: v.mark}
	if n := v.disk.GetVolumeBlockBytes(); n > 0 {
		properties["volblocksize"] = strconv.FormatUint(n, 10)
	}
	err := v.zfs.Create(ctx, zfs.CreateSpec{
		Name: v.own(), VolumeSize: v.disk.GetCapacityBytes(), Sparse: !v.disk.GetVolumeReserved(), Properties: properties,
	})
	if err != nil {
		return err
	}
	return v.rename(ctx)
}

// rename gives it the VM's name, marked, and waits for its device.
func (v volume) rename(ctx context.Context) error {
	f, ok, err := v.find(ctx, v.own())
	if err != nil {
		return err
	}
	if !ok || f.right != v.mark {
		return diskError(codeDisk, v.disk, "%s is not as it was just made", v.own())
	}
	if err := v.zfs.Rename(ctx, v.own(), v.name(), f.guid); err != nil {
		return err
	}
	return v.appear(ctx)
}

// appear waits until the host has the volume's device under its name.
func (v volume) appear(ctx context.Context) error {
	deadline := time.Now().Add(volumeAppears)
	for {
		name, size := deviceOf(v.disk.GetPath())
		if name == v.name() && size >= v.disk.GetCapacityBytes() {
			return nil
		}
		if !time.Now().Before(deadline) {
			return diskError(codeDiskMissing, v.disk, "%s has not become a block device of %d bytes within %s (udev makes it; it is %q of %d bytes)",
				v.disk.GetPath(), v.disk.GetCapacityBytes(), volumeAppears, name, size)
		}
		timer := time.NewTimer(volumePoll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// keep leaves it as any other: it is the VM's.
func (v volume) keep(ctx context.Context) error {
	made, err := v.made(ctx)
	if err != nil || !made {
		return err
	}
	return v.zfs.Inherit(ctx, v.name(), propertyRight)
}

// discard destroys it, if this migration made it and has not kept it.
func (v volume) discard(ctx context.Context) error {
	if err := v.destroy(ctx, v.own()); err != nil {
		return err
	}
	if made, err := v.made(ctx); err != nil || !made {
		return err
	}
	return v.destroy(ctx, v.name())
}

// destroy destroys what has the name, which is known to be ours.
func (v volume) destroy(ctx context.Context, name string) error {
	f, ok, err := v.find(ctx, name)
	if err != nil || !ok {
		return err
	}
	_, err = v.zfs.DestroyDataset(ctx, name, f.guid)
	return err
}

// blkZName asks a ZFS volume's device for the volume's name: _IOR(0x12, 125, char[256]).
const blkZName = 0x8100127d

// deviceOf is the volume that a block device is, and its size; empty: it is none.
func deviceOf(device string) (name string, size uint64) {
	f, err := os.OpenFile(device, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", 0
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return "", 0
	}
	var buffer [256]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkZName, uintptr(unsafe.Pointer(&buffer[0]))); errno != 0 {
		return "", 0
	}
	end, err := f.Seek(0, 2)
	if err != nil {
		return "", 0
	}
	name = string(buffer[:max(bytes.IndexByte(buffer[:], 0), 0)])
	return strings.TrimSpace(name), uint64(end)
}
