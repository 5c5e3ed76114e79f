package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// keeper keeps a job's holds and bookmarks on one dataset of this node.
type keeper struct {
	zfs     *zfs.ZFS
	job     string
	dataset string
}

func (k keeper) tag() string    { return "debvisor:" + k.job }
func (k keeper) prefix() string { return "debvisor-" + k.job + "-" }

func (k keeper) bookmark(guid uint64) string {
	return fmt.Sprintf("%s#%s%x", k.dataset, k.prefix(), guid)
}

func (k keeper) snapshot(name string) string { return k.dataset + "@" + name }

// hold holds snapshots, by name.
func (k keeper) hold(ctx context.Context, names ...string) error {
	for part := range slices.Chunk(names, 100) {
		full := make([]string, 0, len(part))
		for _, name := range part {
			full = append(full, k.snapshot(name))
		}
		if err := k.zfs.Hold(ctx, k.tag(), full...); err != nil {
			return err
		}
	}
	return nil
}

// mark makes the job's bookmark of a snapshot.
func (k keeper) mark(ctx context.Context, name string, guid uint64) error {
	err := k.zfs.Bookmark(ctx, k.snapshot(name), k.bookmark(guid))
	if codeOf(err) == zfs.CodeSnapshotExists && err != nil {
		return k.marked(ctx, guid)
	}
	return err
}

// marked makes sure that the job's bookmark of that guid is what it says.
func (k keeper) marked(ctx context.Context, guid uint64) error {
	marks, err := k.marks(ctx)
	if err != nil {
		return err
	}
	for _, m := range marks {
		if m.FullName() == k.bookmark(guid) && m.GUID == guid {
			return nil
		}
	}
	return refuse(CodeSourceChanged, "%s is not the bookmark of the snapshot with that guid", k.bookmark(guid))
}

// held lists the snapshots that the job holds.
func (k keeper) held(ctx context.Context) ([]zfs.Snapshot, error) {
	var some []zfs.Snapshot
	err := k.zfs.Snapshots(ctx, []string{k.dataset}, false, func(s zfs.Snapshot) error {
		if s.UserRefs > 0 {
			some = append(some, s)
		}
		return nil
	})
	if gone(err) || len(some) == 0 {
		return nil, unlessGone(err)
	}
	names := make([]string, 0, len(some))
	for _, s := range some {
		names = append(names, s.FullName())
	}
	holds := map[string][]zfs.Hold{}
	for part := range slices.Chunk(names, 500) {
		found, err := k.zfs.Holds(ctx, part...)
		if err != nil {
			return nil, err
		}
		for name, list := range found {
			holds[name] = list
		}
	}
	return slices.DeleteFunc(some, func(s zfs.Snapshot) bool {
		return !slices.ContainsFunc(holds[s.FullName()], func(h zfs.Hold) bool { return h.Tag == k.tag() })
	}), nil
}

// release lets go of all that the job holds but the snapshots with those guids.
func (k keeper) release(ctx context.Context, keep ...uint64) error {
	held, err := k.held(ctx)
	if err != nil {
		return err
	}
	return k.releaseAll(ctx, slices.DeleteFunc(held, func(s zfs.Snapshot) bool { return slices.Contains(keep, s.GUID) }))
}

// releaseOnly lets go of the snapshots with those guids.
func (k keeper) releaseOnly(ctx context.Context, guids []uint64) error {
	held, err := k.held(ctx)
	if err != nil {
		return err
	}
	return k.releaseAll(ctx, slices.DeleteFunc(held, func(s zfs.Snapshot) bool { return !slices.Contains(guids, s.GUID) }))
}

func (k keeper) releaseAll(ctx context.Context, held []zfs.Snapshot) error {
	for part := range slices.Chunk(held, 100) {
		names := make([]string, 0, len(part))
		for _, s := range part {
			names = append(names, s.FullName())
		}
		if err := k.zfs.Release(ctx, k.tag(), names...); err != nil {
			return err
		}
	}
	return nil
}

// marks lists the job's bookmarks.
func (k keeper) marks(ctx context.Context) ([]zfs.Bookmark, error) {
	var out []zfs.Bookmark
	err := k.zfs.Bookmarks(ctx, []string{k.dataset}, false, func(b zfs.Bookmark) error {
		if k.isMark(b.Name) {
			out = append(out, b)
		}
		return nil
	})
	return out, unlessGone(err)
}

// isMark tells the job's bookmarks by their names: behind the prefix there is the guid
// and no more, as "debvisor-j-" also begins those of a job "j-1".
func (k keeper) isMark(name string) bool {
	guid, ok := strings.CutPrefix(name, k.prefix())
	return ok && guid != "" && strings.Trim(guid, "0123456789abcdef") == ""
}

// unmark destroys the job's bookmarks but those of the guids.
func (k keeper) unmark(ctx context.Context, keep ...uint64) error {
	marks, err := k.marks(ctx)
	if err != nil {
		return err
	}
	for _, m := range marks {
		if slices.Contains(keep, m.GUID) && m.FullName() == k.bookmark(m.GUID) {
			continue
		}
		if err := k.zfs.DestroyBookmark(ctx, m.FullName()); err != nil {
			return err
		}
	}
	return nil
}

// gone tells that what was looked for is not there.
func gone(err error) bool { return errdefs.Is(err, errdefs.NotFound) }

func unlessGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
