package planner

import (
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestTheTargetHearsOfIdentities: whether a block device is copied or not, the
// target has to know which one the source has.
func TestTheTargetHearsOfIdentities(t *testing.T) {
	for _, copied := range []bool{false, true} {
		d := disk{VMDisk: &debvisorv1.VMDisk{Target: "vda", Type: "block", Source: "/dev/x", Inode: 7}, copied: copied}
		got := d.transfer(&mover{}, debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY, way{})
		if live := got.GetAction() == agentv1.DiskAction_DISK_ACTION_COPY_LIVE; got.GetInode() != 7 || live != copied {
			t.Errorf("copied %v: %v", copied, got)
		}
	}
}
