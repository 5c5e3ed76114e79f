package zvol

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// prefix begins the names of this migration's snapshots.
func (v Volume) prefix() string {
	op := v.Operation
	return "dvm-" + op[max(0, len(op)-8):] + "-" + v.tag() + "-"
}

// hold is the tag of the hold that keeps such a snapshot from pruning.
func (v Volume) hold() string { return "debvisor:" + v.prefix() + "hold" }

// Snap takes a snapshot of the source's volume, of a number higher than all of
// this migration's.
func (v Volume) Snap(ctx context.Context) (zfs.Ref, error) {
	ours, err := v.ours(ctx)
	if err != nil {
		return zfs.Ref{}, err
	}
	highest := 0
	for _, s := range ours {
		if n, err := strconv.Atoi(s.Name[len(v.prefix()):]); err == nil {
			highest = max(highest, n)
		}
	}
	name := v.prefix() + strconv.Itoa(highest+1)
	err = v.ZFS.Snapshot(ctx, zfs.SnapshotSpec{
		Datasets: []string{v.name()}, Name: name, Properties: map[string]string{zfs.PropertyOperation: v.Operation},
	})
	if err != nil {
		return zfs.Ref{}, err
	}
	if ours, err = v.ours(ctx); err != nil {
		return zfs.Ref{}, err
	}
	at := slices.IndexFunc(ours, func(s zfs.Snapshot) bool { return s.Name == name })
	if at < 0 {
		return zfs.Ref{}, v.fail(codeFailed, "the snapshot %s@%s is gone that was just taken", v.name(), name)
	}
	return zfs.Ref{Dataset: v.name(), Name: name, GUID: ours[at].GUID}, v.ZFS.Hold(ctx, v.hold(), v.name()+"@"+name)
}

// snapshots are all of the volume's, the oldest first.
func (v Volume) snapshots(ctx context.Context) ([]zfs.Snapshot, error) {
	var all []zfs.Snapshot
	err := v.ZFS.Snapshots(ctx, []string{v.name()}, false, func(s zfs.Snapshot) error {
		all = append(all, s)
		return nil
	})
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b zfs.Snapshot) int { return cmp.Compare(a.CreateTXG, b.CreateTXG) })
	return all, err
}

// ours are this migration's.
func (v Volume) ours(ctx context.Context) ([]zfs.Snapshot, error) {
	all, err := v.snapshots(ctx)
	return slices.DeleteFunc(all, func(s zfs.Snapshot) bool { return !strings.HasPrefix(s.Name, v.prefix()) }), err
}

// Clear destroys this migration's snapshots; one that is cloned or that somebody
// else holds stays.
func (v Volume) Clear(ctx context.Context) error {
	ours, err := v.ours(ctx)
	if err != nil {
		return err
	}
	for _, s := range ours {
		if err := v.ZFS.Release(ctx, v.hold(), s.FullName()); err != nil {
			return err
		}
		_, err := v.ZFS.DestroySnapshot(ctx, zfs.Ref{Dataset: s.Dataset, Name: s.Name, GUID: s.GUID})
		if err != nil && !errdefs.Is(err, errdefs.FailedPrecondition) {
			return err
		}
	}
	return nil
}

// Written is how much was written since the newest snapshot, bytes.
func (v Volume) Written(ctx context.Context) (uint64, error) {
	p, err := v.ZFS.Get(ctx, v.name(), "written")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(p["written"].Value, 10, 64)
	if err != nil {
		return 0, v.fail(codeFailed, "%q was written to %s", p["written"].Value, v.name())
	}
	return n, nil
}
