package zfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// guid gives the guid of a dataset, snapshot or bookmark.
func (z *ZFS) guid(ctx context.Context, name string) (uint64, error) {
	found, err := z.Get(ctx, name, "guid")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(found["guid"].Value, 10, 64)
	if err != nil {
		return 0, errdefs.New(errdefs.Internal, CodeZFS, "%s has the guid %q", name, found["guid"].Value).WithCause(err)
	}
	return n, nil
}

// expect refuses with DATASET_CHANGED what has not the guid.
func (z *ZFS) expect(ctx context.Context, name string, guid uint64) error {
	is, err := z.guid(ctx, name)
	if err == nil && is != guid {
		return changed(name, is, guid)
	}
	return err
}

// CreateSpec is a file system or a volume to make.
type CreateSpec struct {
	Name string
	// VolumeSize in bytes makes it a volume; 0: a file system.
	VolumeSize uint64
	// Sparse reserves no space for a volume.
	Sparse     bool
	Properties map[string]string
}

// createPatience is how long making a dataset may take.
const createPatience = 2 * time.Minute

// Create makes a file system or a volume below a dataset that is there. What has
// its name already makes it DATASET_EXISTS. A volume's size is rounded up to whole
// blocks.
//
// File systems are made by go-zfs, which knows no context: when ctx ends, Create
// does, and what was begun may still come to be; a command that hangs is ended after
// two minutes. Volumes are not: go-zfs says that it has made one which was there.
func (z *ZFS) Create(ctx context.Context, s CreateSpec) error {
	n, err := parseDataset("name", s.Name)
	if err != nil {
		return err
	}
	if n.Pool() == s.Name {
		return errdefs.Field("name", s.Name, "a dataset of a pool, pool/name")
	}
	properties, err := assignments("-o", s.Properties)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("making %s: %w", s.Name, ctx.Err())
	}
	if s.VolumeSize == 0 {
		return createFilesystem(ctx, s)
	}
	args := []string{"create", "-V", strconv.FormatUint(s.VolumeSize, 10)}
	if s.Sparse {
		args = append(args, "-s")
	}
	args = append(append(args, properties...), "--", s.Name)
	return z.do(ctx, command{program: "zfs", args: args, about: s.Name})
}

func createFilesystem(ctx context.Context, s CreateSpec) error {
	gozfs.SetRunner(&gozfs.Runner{Timeout: createPatience, Grace: patience})
	done := make(chan error, 1)
	go func() {
		_, err := gozfs.CreateFilesystem(s.Name, maps.Clone(s.Properties))
		done <- err
	}()
	select {
	case err := <-done:
		var refused *gozfs.Error
		if errors.As(err, &refused) {
			return translate("create", s.Name, refused.Stderr, refused.Err)
		}
		return err
	case <-ctx.Done():
		return fmt.Errorf("making %s: %w", s.Name, ctx.Err())
	}
}

// Rename renames a dataset that has the guid, within its pool. Between the look at
// the guid and the renaming somebody else could give the name to another dataset:
// callers hold their own lock on it.
func (z *ZFS) Rename(ctx context.Context, from, to string, guid uint64) error {
	f, err := parseDataset("from", from)
	if err != nil {
		return err
	}
	t, err := parseDataset("to", to)
	if err != nil {
		return err
	}
	if t.Pool() != f.Pool() || !strings.Contains(to, "/") || !strings.Contains(from, "/") {
		return errdefs.Field("to", to, "a dataset of the pool "+f.Pool())
	}
	if err := z.expect(ctx, from, guid); err != nil {
		return err
	}
	return z.do(ctx, command{program: "zfs", args: []string{"rename", "--", from, to}, about: from})
}

// DestroyDataset destroys a dataset that has the guid, with its snapshots and
// bookmarks; gone tells that it was gone before. Datasets below it, clones and holds
// are refused, and so are pools. What a receive that was cut off has left of it goes
// too.
//
// The snapshots go by their guids (see DestroySnapshots), and then the dataset
// itself, which nothing but being empty protects between the last look at its guid
// and the end: callers hold their own lock on it.
func (z *ZFS) DestroyDataset(ctx context.Context, name string, guid uint64) (gone bool, err error) {
	n, err := parseDataset("name", name)
	if err != nil {
		return false, err
	}
	if n.Pool() == name {
		return false, errdefs.Field("name", name, "a dataset of a pool, pool/name")
	}
	if err := z.expect(ctx, name, guid); has(err, CodeDatasetNotFound) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	if err := z.onlyItself(ctx, name); err != nil {
		return false, err
	}
	if err := z.AbortReceive(ctx, name); err != nil {
		return false, err
	}
	if err := z.destroyAllSnapshots(ctx, name); has(err, CodeDatasetNotFound) {
		return false, nil // to abort its first receive was to destroy it
	} else if err != nil {
		return false, err
	}
	if err := z.expect(ctx, name, guid); err != nil {
		return false, err
	}
	return false, z.do(ctx, command{program: "zfs", args: []string{"destroy", "--", name}, about: name})
}

// onlyItself refuses a dataset with others below it, before any of its snapshots
// goes.
func (z *ZFS) onlyItself(ctx context.Context, name string) error {
	return z.groups(ctx, datasetTypes, "guid", []string{name}, true, func(g *group) error {
		if g.name == name {
			return nil
		}
		return errdefs.New(errdefs.FailedPrecondition, CodeDatasetHasChildren, "%s has datasets below it, such as %s", name, g.name).With("dataset", name)
	})
}

// destroyAllSnapshots destroys the snapshots of a dataset, none of them where one
// is held or cloned.
func (z *ZFS) destroyAllSnapshots(ctx context.Context, name string) error {
	var refs []Ref
	err := z.Snapshots(ctx, []string{name}, false, func(s Snapshot) error {
		refs = append(refs, Ref{Dataset: s.Dataset, Name: s.Name, GUID: s.GUID})
		switch {
		case s.UserRefs > 0:
			return errdefs.New(errdefs.FailedPrecondition, CodeSnapshotHeld, "%s is held", s.FullName()).With("dataset", s.FullName())
		case len(s.Clones) > 0:
			return errdefs.New(errdefs.FailedPrecondition, CodeSnapshotHasClones, "%s has clones, such as %s", s.FullName(), s.Clones[0]).With("dataset", s.FullName())
		}
		return nil
	})
	if err != nil {
		return err
	}
	errs, err := z.DestroySnapshots(ctx, refs)
	return errors.Join(append(errs, err)...)
}

// Rollback takes a dataset back to its latest snapshot, which must have the guid. A
// later one makes it SNAPSHOT_NOT_LATEST.
func (z *ZFS) Rollback(ctx context.Context, to Ref) error {
	if _, err := parseSnapshot("snapshot", to.FullName()); err != nil {
		return err
	}
	if err := z.expect(ctx, to.FullName(), to.GUID); err != nil {
		return err
	}
	return z.do(ctx, command{program: "zfs", args: []string{"rollback", "--", to.FullName()}, about: to.FullName()})
}
