package replication

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// survey finds out which steps are here and what can be resumed, and refuses a
// dataset that is not as the plan has it.
func (c *receiver) survey(ctx context.Context) error {
	c.have, c.token = 0, ""
	found, err := c.r.look(ctx, c.dataset())
	if err != nil {
		return err
	}
	if !found.exists {
		if c.fromScratch() {
			return nil
		}
		return refuse(CodeTargetChanged, "%s is not there any more", c.dataset())
	}
	if found.successor != "" {
		return refuse(CodeTargetChanged, "%s has become the disk of a VM that was brought back here", c.dataset())
	}
	if guid := c.spec.GetTargetGuid(); guid != 0 && guid != found.guid {
		return refuse(CodeTargetChanged, "%s is not the dataset that the plan was made for", c.dataset())
	}
	if found.volume != (c.spec.GetType() == agentv1.ZfsType_ZFS_TYPE_VOLUME) {
		return refuse(CodeTargetChanged, "%s is not a %s", c.dataset(), c.spec.GetType())
	}
	list, err := c.r.snapshots(ctx, c.dataset())
	if err != nil {
		return err
	}
	c.have = c.haveOf(list)
	if c.wrong(list) {
		if err := c.destroyNewest(ctx, found, list); err != nil {
			return err
		}
		return c.survey(ctx)
	}
	c.token = found.token
	return c.checkNewest(found, list)
}

// haveOf is how many steps' snapshots are in the list.
func (c *receiver) haveOf(list []zfs.Snapshot) int {
	for i := len(c.steps()); i > 0; i-- {
		if byGUID(list, c.steps()[i-1].GetToGuid()) != nil {
			return i
		}
	}
	return 0
}

// checkNewest makes sure that the next stream fits on what is there.
func (c *receiver) checkNewest(found seen, list []zfs.Snapshot) error {
	if len(c.steps()) == 0 {
		if byGUID(list, c.spec.GetCursor().GetGuid()) == nil {
			return refuse(CodeTargetChanged, "%s has not got the snapshot @%s any more", c.dataset(), c.spec.GetCursor().GetName())
		}
		return nil
	}
	want := c.steps()[0].GetFromGuid()
	if c.have > 0 {
		want = c.steps()[c.have-1].GetToGuid()
	}
	switch {
	case want == 0 && len(list) > 0, want == 0 && !c.ours(found):
		return refuse(CodeTargetChanged, "%s is in the way", c.dataset())
	case want == 0 && found.token == "":
		// A receive that has not ended yet; or one that was not to be resumed.
		return errdefs.New(errdefs.Unavailable, zfs.CodeDatasetBusy, "%s is being received, and nothing of it can be resumed yet", c.dataset())
	case want == 0:
		return nil
	case len(list) == 0 || list[len(list)-1].GUID != want:
		return refuse(CodeTargetChanged, "the newest snapshot of %s is not the one that the plan goes on from", c.dataset())
	}
	return nil
}

// wrong tells whether the newest snapshot has the next step's name, and another
// guid, and this task has received it: a source sent something else than it said.
func (c *receiver) wrong(list []zfs.Snapshot) bool {
	if c.have >= len(c.steps()) || len(list) == 0 || !c.run.Marked(markTook(c.have)) {
		return false
	}
	return list[len(list)-1].Name == c.steps()[c.have].GetTo()
}

// destroyNewest destroys the newest of the list, which was received and is not what
// was planned; with the dataset, where that was made for it.
func (c *receiver) destroyNewest(ctx context.Context, found seen, list []zfs.Snapshot) error {
	wrong := list[len(list)-1]
	c.log.Error("a snapshot that is not the planned one was received: it is destroyed", "snapshot", wrong.FullName(), "guid", wrong.GUID)
	if len(list) == 1 {
		if !c.fromScratch() {
			return refuse(CodeTargetChanged, "%s has lost the snapshot that the plan goes on from", c.dataset())
		}
		_, err := c.r.zfs.DestroyDataset(ctx, c.dataset(), found.guid)
		return err
	}
	if _, err := c.r.zfs.DestroySnapshot(ctx, zfs.Ref{Dataset: c.dataset(), Name: wrong.Name, GUID: wrong.GUID}); err != nil {
		return err
	}
	before := list[len(list)-2]
	return c.r.zfs.Rollback(ctx, zfs.Ref{Dataset: c.dataset(), Name: before.Name, GUID: before.GUID})
}

func byGUID(list []zfs.Snapshot, guid uint64) *zfs.Snapshot {
	for i := range list {
		if list[i].GUID == guid && guid != 0 {
			return &list[i]
		}
	}
	return nil
}
