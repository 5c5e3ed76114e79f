package replication

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/debvisor/debvisor/agent/internal/zfs"
)

// seen is a dataset as it was found.
type seen struct {
	exists bool
	guid   uint64
	volume bool
	token  string // of a receive that was cut
	job    string // whose copy it is
	// successor is whose disk it has become, by a failover.
	successor string
}

const propertyToken = "receive_resume_token"

// look looks at a dataset.
func (r *Replication) look(ctx context.Context, dataset string) (seen, error) {
	return lookAt(ctx, r.zfs, dataset)
}

func lookAt(ctx context.Context, z *zfs.ZFS, dataset string) (seen, error) {
	found, err := z.Get(ctx, dataset, "guid", "type", propertyToken, zfs.PropertyJob, zfs.PropertySuccessor)
	if err != nil {
		return seen{}, unlessGone(err)
	}
	guid, err := strconv.ParseUint(found["guid"].Value, 10, 64)
	if err != nil {
		return seen{}, fmt.Errorf("the guid of %s: %w", dataset, err)
	}
	s := seen{exists: true, guid: guid, volume: found["type"].Value == "volume"}
	if token := found[propertyToken].Value; token != "-" {
		s.token = token
	}
	if job := found[zfs.PropertyJob]; job.Source == "local" {
		s.job = job.Value
	}
	if mark := found[zfs.PropertySuccessor]; mark.Source == "local" {
		s.successor = mark.Value
	}
	return s, nil
}

// guidOf gives the guid of what has that name.
func (r *Replication) guidOf(ctx context.Context, name string) (uint64, error) {
	found, err := r.zfs.Get(ctx, name, "guid")
	if err != nil {
		return 0, err
	}
	guid, err := strconv.ParseUint(found["guid"].Value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the guid of %s: %w", name, err)
	}
	return guid, nil
}

// snapshots lists a dataset's own snapshots, oldest first; none where it is not
// there.
func (r *Replication) snapshots(ctx context.Context, dataset string) ([]zfs.Snapshot, error) {
	return snapshotsOf(ctx, r.zfs, dataset)
}

func snapshotsOf(ctx context.Context, z *zfs.ZFS, dataset string) ([]zfs.Snapshot, error) {
	var all []zfs.Snapshot
	err := z.Snapshots(ctx, []string{dataset}, false, func(s zfs.Snapshot) error {
		all = append(all, s)
		return nil
	})
	sortByTXG(all)
	return all, unlessGone(err)
}

func sortByTXG(all []zfs.Snapshot) {
	slices.SortStableFunc(all, func(a, b zfs.Snapshot) int { return cmp.Compare(a.CreateTXG, b.CreateTXG) })
}
