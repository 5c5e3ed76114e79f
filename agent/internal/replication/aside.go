package replication

import (
	"context"
	"slices"

	"github.com/debvisor/debvisor/agent/internal/zfs"
)

// clear takes out of the way what the plan says, and nothing else.
func (c *receiver) clear(ctx context.Context) error {
	aside := c.spec.GetAside()
	switch {
	case aside == nil:
		return nil
	case c.run.Marked(markClear):
		c.aside = aside.GetRenameTo()
		return nil
	}
	if err := c.run.Mark(ctx, markAside); err != nil {
		return err
	}
	c.r.pass(pointReceiveAside)
	do := c.rollBack
	if aside.GetRenameTo() != "" {
		do = c.setAside
	}
	if err := do(ctx); err != nil {
		return err
	}
	c.r.pass(pointReceiveSetAside)
	return c.run.Mark(ctx, markClear)
}

// setAside renames the dataset that has the plan's guid. One that has been renamed
// by a former process is found under its new name.
func (c *receiver) setAside(ctx context.Context) error {
	aside := c.spec.GetAside()
	found, err := c.r.look(ctx, c.dataset())
	if err != nil {
		return err
	}
	if found.exists && found.guid == aside.GetGuid() {
		if found.token != "" {
			if err := c.r.zfs.AbortReceive(ctx, c.dataset()); err != nil {
				return err
			}
			if found, err = c.r.look(ctx, c.dataset()); err != nil || !found.exists {
				return err // it was nothing but a part
			}
		}
		if err := c.r.zfs.Rename(ctx, c.dataset(), aside.GetRenameTo(), aside.GetGuid()); err != nil {
			return err
		}
	}
	if err := c.leaveAside(ctx); err != nil {
		return err
	}
	if c.aside == "" && found.exists {
		return refuse(CodeTargetChanged, "%s is not the dataset that was to be set aside", c.dataset())
	}
	return nil // or somebody else has taken it away
}

// leaveAside makes the copy that was renamed one of no job's: it stays read-only.
func (c *receiver) leaveAside(ctx context.Context) error {
	aside := c.spec.GetAside()
	if aside.GetRenameTo() == "" {
		return nil
	}
	former, err := c.r.look(ctx, aside.GetRenameTo())
	if err != nil || !former.exists || former.guid != aside.GetGuid() {
		return err
	}
	c.aside = aside.GetRenameTo()
	keep := keeper{c.r.zfs, c.right.GetJobId(), c.aside}
	if err := keep.release(ctx); err != nil {
		return err
	}
	if former.job != c.right.GetJobId() {
		return nil
	}
	return c.r.zfs.Inherit(ctx, c.aside, zfs.PropertyJob)
}

// rollBack destroys the plan's snapshots, if they are all that is newer than the
// one to keep, and goes back to that one.
func (c *receiver) rollBack(ctx context.Context) error {
	aside := c.spec.GetAside()
	found, err := c.r.look(ctx, c.dataset())
	if err != nil {
		return err
	}
	if !found.exists || found.guid != aside.GetGuid() {
		return refuse(CodeTargetChanged, "%s is not the dataset that was to be rolled back", c.dataset())
	}
	list, err := c.r.snapshots(ctx, c.dataset())
	if err != nil {
		return err
	}
	at := slices.IndexFunc(list, func(s zfs.Snapshot) bool { return s.GUID == aside.GetKeepGuid() })
	if at < 0 {
		return refuse(CodeTargetChanged, "%s has not got the snapshot to go back to any more", c.dataset())
	}
	keep, newer := list[at], list[at+1:]
	if err := c.mayDestroy(ctx, newer); err != nil {
		return err
	}
	if found.token != "" {
		if err := c.r.zfs.AbortReceive(ctx, c.dataset()); err != nil {
			return err
		}
	}
	if err := c.keep.hold(ctx, keep.Name); err != nil {
		return err
	}
	if err := c.keep.release(ctx, keep.GUID); err != nil {
		return err
	}
	for _, s := range slices.Backward(newer) {
		if _, err := c.r.zfs.DestroySnapshot(ctx, zfs.Ref{Dataset: c.dataset(), Name: s.Name, GUID: s.GUID}); err != nil {
			return err
		}
	}
	c.r.pass(pointReceiveRolling)
	return c.r.zfs.Rollback(ctx, zfs.Ref{Dataset: c.dataset(), Name: keep.Name, GUID: keep.GUID})
}

// mayDestroy makes sure, before the first is destroyed, that each is in the plan
// and that nothing but this job keeps it.
func (c *receiver) mayDestroy(ctx context.Context, newer []zfs.Snapshot) error {
	for _, s := range newer {
		planned := false
		for _, id := range c.spec.GetAside().GetDestroy() {
			planned = planned || id.GetGuid() == s.GUID
		}
		if !planned {
			return refuse(CodeTargetChanged, "%s was not there when the plan was made, and is not destroyed", s.FullName())
		}
		if len(s.Clones) > 0 {
			return refuse(zfs.CodeSnapshotHasClones, "%s has clones, such as %s, and cannot be destroyed", s.FullName(), s.Clones[0])
		}
		if s.UserRefs == 0 {
			continue
		}
		holds, err := c.r.zfs.Holds(ctx, s.FullName())
		if err != nil {
			return err
		}
		for _, h := range holds[s.FullName()] {
			if h.Tag != c.keep.tag() {
				return refuse(zfs.CodeSnapshotHeld, "%s is held as %q, and cannot be destroyed", s.FullName(), h.Tag)
			}
		}
	}
	return nil
}
