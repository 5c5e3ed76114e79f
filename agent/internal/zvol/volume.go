package zvol

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strconv"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of what is wrong with a volume.
const (
	codeExists  = "DISK_EXISTS"
	codeParent  = "DISK_DIRECTORY_MISSING"
	codeMissing = "DISK_MISSING"
	codeFailed  = "DISK_FAILED"
)

const (
	// propertyRight is on a volume that a migration made, with its right's id,
	// until it is kept.
	propertyRight = "org.debvisor:migration"
	// Dir is where volumes are block devices, by the names that all hosts give them.
	Dir    = "/dev/zvol/"
	growth = "debvisor-incoming-"
	on     = "on"
	off    = "off"
)

// Volume is one ZFS volume of a migration. Of two migrations neither touches what
// the other has made. It holds no state but what is in the pool.
type Volume struct {
	ZFS  *zfs.ZFS
	Disk *agentv1.DiskTransfer
	// Right is the migration's, 128 random bits; Operation is what migrates.
	Right, Operation string
}

// Is tells whether a disk is a ZFS volume that the target makes.
func Is(d *agentv1.DiskTransfer) bool { return d.GetZfsDataset() != "" && d.GetType() == "block" }

func (v Volume) fail(code, format string, args ...any) error {
	return errdefs.New(errdefs.FailedPrecondition, code, "disk %s: %s", v.Disk.GetTarget(), fmt.Sprintf(format, args...))
}

func (v Volume) name() string { return v.Disk.GetZfsDataset() }

func (v Volume) tag() string {
	sum := sha256.Sum256([]byte(v.Right + "\x00" + v.Disk.GetTarget()))
	return hex.EncodeToString(sum[:8])
}

// own is the name that it grows under on the target: whatever dies when, what has
// that name, or the VM's and the right's mark, is ours to destroy.
func (v Volume) own() string { return path.Join(path.Dir(v.name()), growth+v.tag()) }

// found is a dataset as far as it matters here.
type found struct {
	guid   uint64
	volume bool
	right  string // its mark; empty: none of its own
	token  string // of a receive that was cut
}

// find looks a dataset up; ok is false where there is none.
func (v Volume) find(ctx context.Context, name string) (f found, ok bool, err error) {
	p, err := v.ZFS.Get(ctx, name, "guid", "type", "receive_resume_token", propertyRight)
	if errdefs.Is(err, errdefs.NotFound) {
		return found{}, false, nil
	}
	if err != nil {
		return found{}, false, err
	}
	if f.guid, err = strconv.ParseUint(p["guid"].Value, 10, 64); err != nil {
		return found{}, false, v.fail(codeFailed, "the guid of %s is %q", name, p["guid"].Value)
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
func (v Volume) made(ctx context.Context) (found, bool, error) {
	f, ok, err := v.find(ctx, v.name())
	return f, ok && f.volume && f.right == v.Right, err
}

// Check makes sure that the target can make it, or has.
func (v Volume) Check(ctx context.Context) error {
	if v.Disk.GetPath() != Dir+v.name() {
		return v.fail(codeFailed, "%s is not the name that the ZFS volume %s has on every host", v.Disk.GetPath(), v.name())
	}
	f, ok, err := v.find(ctx, v.name())
	switch {
	case err != nil:
		return err
	case ok && (f.right != v.Right || !f.volume):
		return v.fail(codeExists, "there is a dataset %s on the target already, and it is left as it is: rename it, or plan another target", v.name())
	case ok:
		return nil
	}
	switch _, above, err := v.find(ctx, path.Dir(v.name())); {
	case err != nil:
		return err
	case !above:
		return v.fail(codeParent, "the target has no dataset %s", path.Dir(v.name()))
	}
	return nil
}

// Make makes it, empty and of the disk's size, and waits for its device.
func (v Volume) Make(ctx context.Context) error {
	switch _, made, err := v.made(ctx); {
	case err != nil:
		return err
	case made:
		return v.appear(ctx)
	}
	if err := v.destroy(ctx, v.own()); err != nil {
		return err
	}
	properties := map[string]string{propertyRight: v.Right}
	if n := v.Disk.GetVolumeBlockBytes(); n > 0 {
		properties["volblocksize"] = strconv.FormatUint(n, 10)
	}
	err := v.ZFS.Create(ctx, zfs.CreateSpec{
		Name: v.own(), VolumeSize: v.Disk.GetCapacityBytes(), Sparse: !v.Disk.GetVolumeReserved(), Properties: properties,
	})
	if err != nil {
		return err
	}
	return v.christen(ctx)
}

// christen gives what has grown the VM's name, marked, and waits for its device.
func (v Volume) christen(ctx context.Context) error {
	f, ok, err := v.find(ctx, v.own())
	if err != nil {
		return err
	}
	if !ok || f.right != v.Right {
		return v.fail(codeFailed, "%s is not as it was just made", v.own())
	}
	if err := v.ZFS.Rename(ctx, v.own(), v.name(), f.guid); err != nil {
		return err
	}
	return v.appear(ctx)
}

// Keep leaves it as any other: it is the VM's.
func (v Volume) Keep(ctx context.Context) error {
	_, made, err := v.made(ctx)
	if err != nil || !made {
		return err
	}
	if err := v.Clear(ctx); err != nil {
		return err
	}
	return v.ZFS.Inherit(ctx, v.name(), propertyRight)
}

// Discard destroys it, if this migration made it and has not kept it.
func (v Volume) Discard(ctx context.Context) error {
	if err := v.destroy(ctx, v.own()); err != nil {
		return err
	}
	if _, made, err := v.made(ctx); err != nil || !made {
		return err
	}
	if err := v.Clear(ctx); err != nil {
		return err
	}
	return v.destroy(ctx, v.name())
}

// destroy destroys what has the name, which is known to be ours, and the rest of
// a stream that was cut.
func (v Volume) destroy(ctx context.Context, name string) error {
	f, ok, err := v.find(ctx, name)
	if err != nil || !ok {
		return err
	}
	if f.token != "" {
		if err := v.ZFS.AbortReceive(ctx, name); err != nil {
			return err
		}
		if f, ok, err = v.find(ctx, name); err != nil || !ok {
			return err // a first stream's rest was all that there was
		}
	}
	_, err = v.ZFS.DestroyDataset(ctx, name, f.guid)
	return err
}
