package zvol

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/zfs"
)

// GUID is the source's volume's.
func (v Volume) GUID(ctx context.Context) (uint64, error) {
	f, ok, err := v.find(ctx, v.name())
	if err != nil {
		return 0, err
	}
	if !ok || !f.volume {
		return 0, v.fail(codeMissing, "there is no ZFS volume %s on the source", v.name())
	}
	return f.guid, nil
}

// Aside is the name that the source's volume gets once the VM runs elsewhere:
// nothing that still looks for the VM's finds it from then on.
func (v Volume) Aside() string { return v.name() + ".moved-" + v.tag() }

// Remove removes the source's volume of a VM that runs elsewhere, if ours says so
// of its guid. One that has snapshots is set aside, read-only: they are on no other
// host, and may be what a replication goes on from. aside tells of that.
func (v Volume) Remove(ctx context.Context, ours func(guid uint64) bool) (aside bool, err error) {
	f, ok, err := v.find(ctx, v.name())
	if err != nil {
		return false, err
	}
	if ok && ours(f.guid) {
		if err := v.Clear(ctx); err != nil {
			return false, err
		}
		if err := v.ZFS.Rename(ctx, v.name(), v.Aside(), f.guid); err != nil {
			return false, err
		}
		// gofail: var sendAfterVolumeAside struct{}
	}
	if f, ok, err = v.find(ctx, v.Aside()); err != nil || !ok {
		return false, err
	}
	err = v.ZFS.Snapshots(ctx, []string{v.Aside()}, false, func(zfs.Snapshot) error {
		aside = true
		return nil
	})
	if err != nil {
		return false, err
	}
	if aside {
		return true, v.ZFS.Set(ctx, v.Aside(), map[string]string{"readonly": on})
	}
	_, err = v.ZFS.DestroyDataset(ctx, v.Aside(), f.guid)
	return false, err
}
