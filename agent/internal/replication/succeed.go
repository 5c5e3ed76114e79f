package replication

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/zfs"
)

// The codes of a copy that cannot become a disk.
const (
	// CodeCopyGone: there is no such copy, or it has not got the snapshot.
	CodeCopyGone = "REPLICA_NOT_THERE"
	// CodeCopyChanged: it is not that job's, or has been written to.
	CodeCopyChanged = "REPLICA_CHANGED"
)

// Successor is a job's copy of a volume that takes its source's place.
type Successor struct {
	Dataset, Job string
	// SnapshotGUID is that of a snapshot of the source's that the copy has.
	SnapshotGUID uint64
	// Mark tells whose it becomes: whoever finds it there has taken it before.
	Mark string
	// Back is the job that replicates back; empty: none does.
	Back string
}

// Succeed makes a job's copy a volume of its own, that can be written to and holds
// what its newest snapshot does. Of the source's snapshot a bookmark stays, for the
// job that replicates back. It can be done again wherever it was cut; what has been
// written since then is left alone.
func Succeed(ctx context.Context, z *zfs.ZFS, s Successor) error {
	found, err := lookAt(ctx, z, s.Dataset)
	if err != nil {
		return err
	}
	if found.successor != s.Mark {
		if err := s.check(ctx, z, found); err != nil {
			return err
		}
		// Both at once: what can be written to is marked, and is never checked again.
		// gofail: var failoverBeforeSucceed struct{}
		if err := z.Set(ctx, s.Dataset, map[string]string{"readonly": "off", zfs.PropertySuccessor: s.Mark}); err != nil {
			return err
		}
	}
	// gofail: var failoverAfterSucceed struct{}
	if err := s.keepBookmark(ctx, z); err != nil {
		return err
	}
	keep := keeper{z, s.Job, s.Dataset}
	if err := keep.release(ctx); err != nil {
		return err
	}
	if err := keep.unmark(ctx); err != nil {
		return err
	}
	if found.job == "" {
		return nil
	}
	return z.Inherit(ctx, s.Dataset, zfs.PropertyJob)
}

// check makes sure that it is the job's copy, whole and as it was received.
func (s Successor) check(ctx context.Context, z *zfs.ZFS, found seen) error {
	switch {
	case !found.exists:
		return refuse(CodeCopyGone, "there is no dataset %s", s.Dataset)
	case found.job != s.Job:
		return refuse(CodeCopyChanged, "%s is not the copy of job %s", s.Dataset, s.Job)
	case !found.volume:
		return refuse(CodeCopyChanged, "%s is no volume", s.Dataset)
	}
	if found.token != "" {
		if err := z.AbortReceive(ctx, s.Dataset); err != nil {
			return err
		}
	}
	list, err := snapshotsOf(ctx, z, s.Dataset)
	if err != nil {
		return err
	}
	if byGUID(list, s.SnapshotGUID) == nil {
		return refuse(CodeCopyGone, "%s has not got the snapshot with the guid %d", s.Dataset, s.SnapshotGUID)
	}
	p, err := z.Get(ctx, s.Dataset, "written", "keystatus")
	if err != nil {
		return err
	}
	switch written, key := p["written"].Value, p["keystatus"].Value; {
	case written != "0":
		return refuse(CodeCopyChanged, "%s has been written to since its newest snapshot (%s bytes)", s.Dataset, written)
	case key == "unavailable":
		return refuse(zfs.CodeKeyNotLoaded, "%s is encrypted, and its key is not loaded: zfs load-key it", s.Dataset)
	}
	return nil
}

// keepBookmark keeps what the job that replicates back begins at.
func (s Successor) keepBookmark(ctx context.Context, z *zfs.ZFS) error {
	if s.Back == "" {
		return nil
	}
	list, err := snapshotsOf(ctx, z, s.Dataset)
	if err != nil {
		return err
	}
	from := byGUID(list, s.SnapshotGUID)
	if from == nil {
		return nil // pruned since a former attempt, which has made the bookmark
	}
	return keeper{z, s.Back, s.Dataset}.mark(ctx, from.Name, from.GUID)
}

// Succeeded tells whether the copy has become what Succeed makes of it, and nothing
// of its job is left on it.
func Succeeded(ctx context.Context, z *zfs.ZFS, s Successor) (bool, error) {
	found, err := lookAt(ctx, z, s.Dataset)
	return found.successor == s.Mark && found.job == "", err
}

// Former is a dataset that a job has replicated from here, and which another has
// succeeded.
type Former struct {
	Dataset string
	GUID    uint64
	Job     string
	// Back is the job whose copy it becomes; empty: no job's.
	Back string
}

// Retire makes a former source a copy: nobody can write to it any more, and what
// its job held is held for the job that replicates back. A dataset that is gone, or
// another of that name, is left alone. It can be done again.
func Retire(ctx context.Context, z *zfs.ZFS, f Former) error {
	found, err := lookAt(ctx, z, f.Dataset)
	if err != nil || !found.exists || found.guid != f.GUID {
		return err
	}
	if f.Back != "" && (found.job == "" || found.job == f.Back) {
		if err := f.adopt(ctx, z, found); err != nil {
			return err
		}
	}
	// gofail: var failoverBeforeRelease struct{}
	keep := keeper{z, f.Job, f.Dataset}
	if err := keep.release(ctx); err != nil {
		return err
	}
	return keep.unmark(ctx)
}

// adopt marks it as the copy of the job that replicates back.
func (f Former) adopt(ctx context.Context, z *zfs.ZFS, found seen) error {
	held, err := keeper{z, f.Job, f.Dataset}.held(ctx)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(held))
	for _, s := range held {
		names = append(names, s.Name)
	}
	if err := (keeper{z, f.Back, f.Dataset}).hold(ctx, names...); err != nil {
		return err
	}
	if found.successor != "" {
		if err := z.Inherit(ctx, f.Dataset, zfs.PropertySuccessor); err != nil {
			return err
		}
	}
	return z.Set(ctx, f.Dataset, map[string]string{"readonly": "on", zfs.PropertyJob: f.Back})
}

// Retired tells whether nothing is left for Retire to do.
func Retired(ctx context.Context, z *zfs.ZFS, f Former) (bool, error) {
	found, err := lookAt(ctx, z, f.Dataset)
	if err != nil || !found.exists || found.guid != f.GUID {
		return err == nil, err
	}
	keep := keeper{z, f.Job, f.Dataset}
	held, err := keep.held(ctx)
	if err != nil {
		return false, err
	}
	marks, err := keep.marks(ctx)
	return len(held)+len(marks) == 0 && (f.Back == "" || found.job != ""), err
}
