package migration

import (
	"context"
	"path"
	"strconv"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// aside is the name that the source's volume gets once the VM runs elsewhere:
// nothing that still looks for the VM's finds it from then on.
func (v volume) aside() string {
	return v.name() + ".moved-" + v.own()[len(path.Dir(v.own())+"/debvisor-incoming-"):]
}

// volumeMark is a volume in the journal's words: by its guid, so that no other
// of the same name is ever taken for it.
func volumeMark(d *agentv1.DiskTransfer, guid uint64) string {
	return "volume/" + d.GetTarget() + "/" + strconv.FormatUint(guid, 10)
}

// noteVolume has the journal know which volume goes when the VM has gone.
func (s *sender) noteVolume(ctx context.Context, d *agentv1.DiskTransfer) error {
	v := s.volume(d)
	f, ok, err := v.find(ctx, v.name())
	if err != nil {
		return err
	}
	if !ok || !f.volume {
		return diskError(codeDiskMissing, d, "there is no ZFS volume %s on the source", v.name())
	}
	return s.run.Mark(ctx, volumeMark(d, f.guid))
}

// removeVolume removes the source's volume of a VM that runs elsewhere. One that
// has snapshots is set aside, read-only: they are on no other host, and may be
// what a replication goes on from.
func (s *sender) removeVolume(ctx context.Context, d *agentv1.DiskTransfer) error {
	v := s.volume(d)
	f, ok, err := v.find(ctx, v.name())
	if err != nil {
		return err
	}
	if ok {
		if !s.run.Marked(volumeMark(d, f.guid)) {
			s.log.Warn("a volume is left: it is not the one that was copied", "dataset", v.name())
			return nil
		}
		if err := v.zfs.Rename(ctx, v.name(), v.aside(), f.guid); err != nil {
			return err
		}
		// gofail: var sendAfterVolumeAside struct{}
	}
	if f, ok, err = v.find(ctx, v.aside()); err != nil || !ok {
		return err
	}
	kept := false
	err = v.zfs.Snapshots(ctx, []string{v.aside()}, false, func(zfs.Snapshot) error {
		kept = true
		return nil
	})
	if err != nil {
		return err
	}
	if kept {
		s.log.Warn("the VM's volume is set aside, as it has snapshots", "dataset", v.aside())
		return v.zfs.Set(ctx, v.aside(), map[string]string{"readonly": "on"})
	}
	_, err = v.zfs.DestroyDataset(ctx, v.aside(), f.guid)
	return err
}
