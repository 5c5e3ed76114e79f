package facts

import (
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Images gives the snapshots of RBD as retention sees them: the image's full name
// is their dataset, their number in its pool their guid, which is unique within
// an image only. Replication needs none of them.
func Images(snapshots []*agentv1.RbdSnapshot) []retention.Snapshot {
	all := make([]retention.Snapshot, 0, len(snapshots))
	for _, s := range snapshots {
		id := s.GetSnapshot()
		one := retention.Snapshot{
			Dataset: cluster.RBDPath(id.GetImage()), Name: id.GetName(), GUID: id.GetId(), CreateTXG: id.GetId(), Used: s.GetUsedBytes(),
			Ours: s.GetOperation() != "", Label: s.GetLabel(), Set: s.GetSet(), Protected: s.GetProtected(), Template: s.GetTemplate(),
		}
		for _, child := range s.GetChildren() {
			one.Clones = append(one.Clones, cluster.RBDPath(child))
		}
		if s.GetCreated() > 0 {
			one.Created = time.Unix(s.GetCreated(), 0)
		}
		all = append(all, one)
	}
	return all
}
