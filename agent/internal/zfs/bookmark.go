package zfs

import (
	"context"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Bookmark is what is left of a snapshot to send increments from.
type Bookmark struct {
	Dataset, Name string
	// GUID and CreateTXG are those of the snapshot that it was made of.
	GUID, CreateTXG uint64
	Creation        time.Time
}

// FullName is dataset#name.
func (b Bookmark) FullName() string { return b.Dataset + "#" + b.Name }

// Bookmarks hands the bookmarks of the roots to yield, and with recursive those of
// the datasets below; no root means all pools. An error of yield ends it.
func (z *ZFS) Bookmarks(ctx context.Context, roots []string, recursive bool, yield func(Bookmark) error) error {
	return z.groups(ctx, "bookmark", "guid,createtxg,creation", roots, recursive, func(g *group) error {
		b := Bookmark{GUID: g.number("guid"), CreateTXG: g.number("createtxg"), Creation: g.time("creation")}
		b.Dataset, b.Name, _ = strings.Cut(g.name, "#")
		if g.err != nil {
			return g.err
		}
		return yield(b)
	})
}

// Bookmark makes a bookmark of a snapshot, both named in full and of one dataset.
// It is idempotent; a bookmark of that name which is of another snapshot is
// SNAPSHOT_EXISTS.
func (z *ZFS) Bookmark(ctx context.Context, snapshot, bookmark string) error {
	s, err := parseSnapshot("snapshot", snapshot)
	if err != nil {
		return err
	}
	b, err := parseBookmark("bookmark", bookmark)
	if err != nil {
		return err
	}
	if b.Dataset != s.Dataset {
		return errdefs.Field("bookmark", bookmark, "a bookmark of the snapshot's dataset, "+s.Dataset)
	}
	err = z.do(ctx, command{program: "zfs", args: []string{"bookmark", "--", snapshot, bookmark}, about: bookmark})
	if !has(err, CodeSnapshotExists) {
		return err
	}
	of, asked := z.guid(ctx, snapshot)
	if asked != nil {
		return asked
	}
	is, asked := z.guid(ctx, bookmark)
	if asked == nil && is == of {
		return nil
	}
	return err
}

// DestroyBookmark destroys a bookmark, named in full. It is idempotent.
func (z *ZFS) DestroyBookmark(ctx context.Context, bookmark string) error {
	if _, err := parseBookmark("bookmark", bookmark); err != nil {
		return err
	}
	err := z.do(ctx, command{program: "zfs", args: []string{"destroy", "--", bookmark}, about: bookmark})
	if has(err, CodeDatasetNotFound) {
		return nil
	}
	return err
}
