package zfs

import (
	"errors"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestMeanings has what OpenZFS 2.4.4 was seen to say. The same is provoked for
// real in the tests of the methods.
func TestMeanings(t *testing.T) {
	const partial = "\nPartially received snapshot is saved.\nA resuming stream can be generated on the sending system by running:\n    zfs send -t 1-a8d3cf117-f0-789c"
	for _, c := range []struct {
		verb, says string
		kind       errdefs.Kind
		code       string
		dataset    string
	}{
		{"destroy", "cannot destroy snapshot tank/a@1: it's being held. Run 'zfs holds -r tank/a@1' to see holders.\n", errdefs.FailedPrecondition, CodeSnapshotHeld, "asked"},
		{"destroy", "cannot destroy 'tank/a/m@2': snapshot has dependent clones\nuse '-R' to destroy the following datasets:\ntank/clone\n", errdefs.FailedPrecondition, CodeSnapshotHasClones, "tank/a/m@2"},
		{"destroy", "could not find any snapshots to destroy; check snapshot names.\n", errdefs.NotFound, CodeDatasetNotFound, "asked"},
		{"destroy", "bookmark 'tank/a#b9' does not exist.\n", errdefs.NotFound, CodeDatasetNotFound, "tank/a#b9"},
		{"destroy", "cannot destroy 'tank/a': filesystem has children\nuse '-r' to destroy the following datasets:\ntank/a@1\n", errdefs.FailedPrecondition, CodeDatasetHasChildren, "tank/a"},
		{"destroy", "cannot destroy 'tank/v': dataset is busy\n", errdefs.Unavailable, CodeDatasetBusy, "tank/v"},
		{"destroy", "cannot unmount '/mnt/a': pool or dataset is busy\n", errdefs.Unavailable, CodeDatasetBusy, "asked"},
		{"snapshot", "cannot create snapshot 'tank/a@1': dataset already exists\nno snapshots were created\n", errdefs.AlreadyExists, CodeSnapshotExists, "tank/a@1"},
		{"snapshot", "cannot open 'tank/nope': dataset does not exist\nusage:\n\tsnapshot [-r] …", errdefs.NotFound, CodeDatasetNotFound, "tank/nope"},
		{"snapshot", "cannot create snapshots : out of space\n", errdefs.ResourceExhausted, CodeNoSpace, "asked"},
		{"snapshot", "cannot open 'tank': pool I/O is currently suspended\n", errdefs.Unavailable, CodePoolSuspended, "tank"},
		{"snapshot", "Permission denied the ZFS utilities must be run as root.\n", errdefs.PermissionDenied, CodeNotPermitted, "asked"},
		{"program", "Channel program execution failed: pool I/O is currently suspended\n", errdefs.Unavailable, CodePoolSuspended, "asked"},
		{"bookmark", "cannot create bookmark 'tank/a#b1': bookmark exists\n", errdefs.AlreadyExists, CodeSnapshotExists, "tank/a#b1"},
		{"create", "cannot create 'tank/a': dataset already exists\n", errdefs.AlreadyExists, CodeDatasetExists, "tank/a"},
		{"create", "cannot create 'nopool/a': no such pool 'nopool'\n", errdefs.NotFound, CodeDatasetNotFound, "nopool/a"},
		{"create", "cannot create 'tank/nope/a': parent does not exist\n", errdefs.NotFound, CodeDatasetNotFound, "tank/nope/a"},
		{"create", "cannot create 'tank/e/sub': encryption root's key is not loaded or provided\n", errdefs.FailedPrecondition, CodeKeyNotLoaded, "tank/e/sub"},
		{"create", "cannot create 'tank/big': out of space\n", errdefs.ResourceExhausted, CodeNoSpace, "tank/big"},
		{"rollback", "cannot rollback to 'tank/a@1': more recent snapshots or bookmarks exist\nuse '-r' …", errdefs.FailedPrecondition, CodeNotLatest, "tank/a@1"},
		{"set", "cannot set property for 'tank/a': invalid property 'foo'\n", errdefs.InvalidArgument, CodeZFS, "tank/a"},
		{"set", "cannot set property for 'tank/a': size is less than current used or reserved space\n", errdefs.ResourceExhausted, CodeQuota, "tank/a"},
		{"send", "warning: cannot send 'tank/e@1': dataset key must be loaded\n", errdefs.FailedPrecondition, CodeKeyNotLoaded, "tank/e@1"},
		{"send", "warning: cannot send 'tank/a@2': incremental source (tank/a#nope) does not exist\n", errdefs.NotFound, CodeDatasetNotFound, "tank/a@2"},
		{"send", "warning: cannot send 'tank/a@2': No such process\n", errdefs.NotFound, CodeDatasetNotFound, "tank/a@2"},
		{"send", "warning: cannot send 'tank/a@2': not an earlier snapshot from the same fs\n", errdefs.FailedPrecondition, CodeNotEarlier, "tank/a@2"},
		{"resume", "cannot resume send: 'tank/a@1' used in the initial send no longer exists\n", errdefs.FailedPrecondition, CodeTokenDead, "tank/a@1"},
		{"resume", "cannot resume send: resume token is corrupt (incorrect checksum)\n", errdefs.FailedPrecondition, CodeTokenDead, "asked"},
		{"resume", "warning: cannot send 'tank/a@4': Invalid cross-device link\n", errdefs.FailedPrecondition, CodeTokenDead, "tank/a@4"},
		{"receive", "cannot receive new filesystem stream: checksum mismatch or incomplete stream." + partial, errdefs.Unavailable, CodeStreamBroken, "asked"},
		{"receive", "cannot receive new filesystem stream: incomplete stream\n", errdefs.Unavailable, CodeStreamBroken, "asked"},
		{"receive", "cannot receive: failed to read from stream\n", errdefs.Unavailable, CodeStreamBroken, "asked"},
		{"receive", "cannot receive incremental stream: kernel modules must be upgraded to receive this stream.\n", errdefs.Unavailable, CodeStreamBroken, "asked"},
		{"receive", "cannot receive new filesystem stream: destination 'tank/r' exists\nmust specify -F to overwrite it\n", errdefs.AlreadyExists, CodeDatasetExists, "tank/r"},
		{"receive", "cannot receive incremental stream: destination 'tank/r9' does not exist\n", errdefs.FailedPrecondition, CodeDestinationModified, "tank/r9"},
		{"receive", "cannot receive incremental stream: destination tank/r has been modified\nsince most recent snapshot\n", errdefs.FailedPrecondition, CodeDestinationModified, "asked"},
		{"receive", "cannot receive incremental stream: destination tank/cr contains partially-complete state from \"zfs receive -s\".\n", errdefs.FailedPrecondition, CodePartialReceive, "asked"},
		{"receive", "cannot receive new filesystem stream: destination tank/q/x space quota exceeded.\n", errdefs.ResourceExhausted, CodeQuota, "asked"},
		{"receive", "cannot receive new filesystem stream: out of space\n", errdefs.ResourceExhausted, CodeNoSpace, "asked"},
		{"receive", "cannot destroy 'tank/cr/%recv': dataset is busy\n", errdefs.Unavailable, CodeDatasetBusy, "asked"},
		{"receive", "something new\n", errdefs.FailedPrecondition, CodeZFS, "asked"},
		{"send", "", errdefs.FailedPrecondition, CodeZFS, "asked"},
	} {
		err := translate(c.verb, "asked", c.says, errors.New("exit status 1"))
		refused(t, err, c.kind, c.code, c.dataset)
		var e *errdefs.Error
		if errors.As(err, &e); e.Message == "" || len(e.Message) > maxShown+3 {
			t.Errorf("the message is %q", e.Message)
		}
	}
}
