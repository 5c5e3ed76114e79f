package zfs

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Hold keeps a snapshot from being destroyed.
type Hold struct {
	Tag string
	// Created is exact to the minute: more is not told by every version.
	Created time.Time
}

// holdsAtOnce is how many snapshots one command is asked of.
const holdsAtOnce = 200

// Holds gives the holds of each of the snapshots that has any, by full name. Ask of
// those only whose UserRefs is not 0: it costs a question to the kernel for each. One
// that is gone has none.
func (z *ZFS) Holds(ctx context.Context, snapshots ...string) (map[string][]Hold, error) {
	if err := checkSnapshots(snapshots); err != nil {
		return nil, err
	}
	found := map[string][]Hold{}
	for some := range slices.Chunk(snapshots, holdsAtOnce) {
		c := command{program: "zfs", args: append([]string{"holds", "-H", "--"}, some...), about: some[0]}
		err := z.fields(ctx, c, 3, func(line []string) error {
			// "Sun Nov 22 13:39 2026", of TZ=UTC; the hour may be padded with a space.
			at, err := time.Parse("Mon Jan 2 15:04 2006", strings.Join(strings.Fields(line[2]), " "))
			if err != nil {
				return errdefs.New(errdefs.Internal, CodeZFS, "zfs lists a hold of %s with the time %q", line[0], shortened(line[2])).WithCause(err)
			}
			found[line[0]] = append(found[line[0]], Hold{Tag: line[1], Created: at})
			return nil
		})
		if err != nil && !has(err, CodeDatasetNotFound) {
			return nil, err
		}
	}
	return found, nil
}

// Hold holds snapshots. It is idempotent; of several, those before one that fails
// may be held.
func (z *ZFS) Hold(ctx context.Context, tag string, snapshots ...string) error {
	return z.eachHold(ctx, "hold", tag, snapshots, "tag already exists")
}

// Release lets snapshots go. It is idempotent; one that is gone is let go of.
func (z *ZFS) Release(ctx context.Context, tag string, snapshots ...string) error {
	return z.eachHold(ctx, "release", tag, snapshots, "no such tag", "does not exist")
}

// eachHold runs hold or release. What zfs says of one snapshot says nothing of the
// others: where it complains, they are asked one after another.
func (z *ZFS) eachHold(ctx context.Context, verb, tag string, snapshots []string, harmless ...string) error {
	if err := checkTag(tag); err != nil {
		return err
	}
	if err := checkSnapshots(snapshots); err != nil {
		return err
	}
	for some := range slices.Chunk(snapshots, holdsAtOnce) {
		err := z.hold(ctx, verb, tag, some, harmless)
		if err == nil {
			continue
		}
		if ctx.Err() != nil || len(some) == 1 {
			return err
		}
		for _, one := range some {
			if err := z.hold(ctx, verb, tag, []string{one}, harmless); err != nil {
				return err
			}
		}
	}
	return nil
}

func (z *ZFS) hold(ctx context.Context, verb, tag string, snapshots, harmless []string) error {
	err := z.do(ctx, command{program: "zfs", args: append([]string{verb, "--", tag}, snapshots...), about: snapshots[0]})
	if err == nil || len(snapshots) > 1 {
		return err
	}
	for _, words := range harmless {
		if ctx.Err() == nil && strings.Contains(err.Error(), words) {
			return nil
		}
	}
	return err
}

func checkSnapshots(names []string) error {
	for _, n := range names {
		if _, err := parseSnapshot("snapshot", n); err != nil {
			return err
		}
	}
	return nil
}
