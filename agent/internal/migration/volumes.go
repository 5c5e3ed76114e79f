package migration

import (
	"context"
	"strconv"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func (h *half) volume(d *agentv1.DiskTransfer) zvol.Volume {
	return zvol.Volume{ZFS: h.m.cfg.ZFS, Disk: d, Right: h.right.GetId(), Operation: h.operation}
}

// volumeMark is a volume in the journal's words: by its guid, so that no other
// of the same name is ever taken for it.
func volumeMark(d *agentv1.DiskTransfer, guid uint64) string {
	return "volume/" + d.GetTarget() + "/" + strconv.FormatUint(guid, 10)
}

func refOf(s *agentv1.ZfsSnapshotID) zfs.Ref {
	return zfs.Ref{Dataset: s.GetDataset(), Name: s.GetName(), GUID: s.GetGuid()}
}

// noteVolume has the journal know which volume goes when the VM has gone.
func (s *sender) noteVolume(ctx context.Context, d *agentv1.DiskTransfer) error {
	guid, err := s.volume(d).GUID(ctx)
	if err != nil {
		return err
	}
	return s.run.Mark(ctx, volumeMark(d, guid))
}

// removeVolume removes the source's volume of a VM that runs elsewhere.
func (s *sender) removeVolume(ctx context.Context, d *agentv1.DiskTransfer) error {
	v := s.volume(d)
	aside, err := v.Remove(ctx, func(guid uint64) bool {
		ours := s.run.Marked(volumeMark(d, guid))
		if !ours {
			s.log.Warn("a volume is left: it is not the one that was copied", "dataset", d.GetZfsDataset())
		}
		return ours
	})
	if aside && err == nil {
		s.log.Warn("the VM's volume is set aside, as it has snapshots", "dataset", v.Aside())
	}
	return err
}

// markWhole is in the journal once the target's volumes have the source's last
// snapshots and may be written to.
const markWhole = "volumes-whole"

// startIntake lets the source's streams in.
func (r *receiver) startIntake(ctx context.Context) {
	disks := r.disks.only(increments)
	if r.opened = r.run.Marked(markWhole); r.opened || len(disks) == 0 {
		return
	}
	var volumes []zvol.Volume
	for _, d := range disks {
		volumes = append(volumes, r.volume(d))
	}
	r.intake = newIntake(ctx, volumes, func() {
		ring(r.kick)
		ring(r.bell)
	})
	r.cell.admit(r.intake)
}

func (r *receiver) stopIntake() {
	r.cell.admit(nil)
	r.intake.shut()
	r.intake = nil
}

// behind tells whether the volumes here lack what the guest last wrote.
func (r *receiver) behind() bool { return !r.opened && len(r.disks.only(increments)) > 0 }

// openVolumes lets the volumes be written to, once they have what the source says
// is the last; nothing more comes in from then on.
func (r *receiver) openVolumes(ctx context.Context) {
	if !r.behind() || len(r.other.GetLast()) == 0 {
		return
	}
	last := map[string]uint64{}
	for _, s := range r.other.GetLast() {
		last[s.GetDataset()] = s.GetGuid()
	}
	disks := r.disks.only(increments)
	for _, d := range disks {
		has, err := r.volume(d).Look(ctx)
		if err != nil || has.GetGuid() != last[d.GetZfsDataset()] {
			r.log.Debug("a volume is behind", "dataset", d.GetZfsDataset(), "has", has.GetGuid(), "last", last[d.GetZfsDataset()], "error", err)
			if r.intake == nil {
				r.startIntake(ctx) // the source's agent was restarted, and took others
			}
			return
		}
	}
	r.stopIntake()
	for _, d := range disks {
		behind, err := r.volume(d).Open(ctx, last[d.GetZfsDataset()])
		if !r.act("opening "+d.GetZfsDataset(), err) || behind {
			return
		}
	}
	// gofail: var receiveAfterVolumesOpened struct{}
	if err := r.run.Mark(ctx, markWhole); err != nil {
		return
	}
	r.opened = true
	r.log.Info("the volumes are whole")
}
