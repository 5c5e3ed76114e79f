package zfs

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Snapshot is a snapshot; sizes are bytes.
type Snapshot struct {
	Dataset, Name   string
	GUID, CreateTXG uint64
	Creation        time.Time
	// Used is what only this snapshot holds, Written what was written between the one
	// before and this.
	Used, Referenced, Written uint64
	// UserRefs is how many holds it has.
	UserRefs uint64
	// DeferDestroy: it goes when its last hold or clone does.
	DeferDestroy bool
	Clones       []string
	// Properties are the org.debvisor ones set on this snapshot itself.
	Properties map[string]string
}

// FullName is dataset@name.
func (s Snapshot) FullName() string { return s.Dataset + "@" + s.Name }

// Snapshots hands the snapshots of the roots to yield, and with recursive those of
// the datasets below; no root means all pools. They come by dataset, and of each
// dataset in the order they were taken. One listing is read as it comes: beyond what
// yield keeps, one snapshot is in memory. An error of yield ends it.
func (z *ZFS) Snapshots(ctx context.Context, roots []string, recursive bool, yield func(Snapshot) error) error {
	return z.groups(ctx, "snapshot", snapshotProperties, roots, recursive, func(g *group) error {
		s := g.snapshot()
		if g.err != nil {
			return g.err
		}
		return yield(s)
	})
}

const snapshotProperties = "guid,createtxg,creation,used,referenced,written,userrefs,defer_destroy,clones," + ownProperties

func (g *group) snapshot() Snapshot {
	s := Snapshot{
		GUID: g.number("guid"), CreateTXG: g.number("createtxg"), Creation: g.time("creation"),
		Used: g.number("used"), Referenced: g.number("referenced"), Written: g.number("written"),
		UserRefs: g.number("userrefs"), DeferDestroy: g.text("defer_destroy") == "on",
		Properties: g.own(),
	}
	s.Dataset, s.Name, _ = strings.Cut(g.name, "@")
	if clones := g.text("clones"); clones != "" {
		s.Clones = strings.Split(clones, ",")
	}
	return s
}

// SnapshotSpec is an atomic set of snapshots.
type SnapshotSpec struct {
	// Datasets are of one pool.
	Datasets []string
	// Name is the part behind the @, the same for all.
	Name string
	// Properties are user properties to set on them.
	Properties map[string]string
}

// Snapshot takes an atomic set of snapshots: all at one moment, or none. One that
// is there already makes it SNAPSHOT_EXISTS; whose it is, its properties tell.
func (z *ZFS) Snapshot(ctx context.Context, s SnapshotSpec) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	properties, err := assignments("-o", s.Properties)
	if err != nil {
		return err
	}
	args := append(append([]string{"snapshot"}, properties...), "--")
	return z.do(ctx, command{program: "zfs", args: append(args, names...), about: names[0]})
}

// names checks the set and gives its snapshots' full names.
func (s SnapshotSpec) names() (names []string, err error) {
	if len(s.Datasets) == 0 {
		return nil, errdefs.Field("datasets", "", "at least one dataset")
	}
	for _, d := range s.Datasets {
		if _, err := parseDataset("datasets", d); err != nil {
			return nil, err
		}
		n, err := parseSnapshot("name", d+"@"+s.Name)
		if err != nil {
			return nil, err
		}
		if pool, _, _ := strings.Cut(s.Datasets[0], "/"); n.Pool() != pool {
			return nil, errdefs.Field("datasets", d, "datasets of one pool, here "+pool)
		}
		if slices.Contains(names, n.String()) {
			return nil, errdefs.Field("datasets", d, "each dataset once")
		}
		names = append(names, n.String())
	}
	for p := range s.Properties {
		if !strings.Contains(p, ":") {
			return nil, errdefs.Field("properties", shortened(p), "user properties, which have a ':' in their name")
		}
		if err := checkProperty(p); err != nil {
			return nil, err
		}
	}
	return names, nil
}
