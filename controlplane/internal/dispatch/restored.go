package dispatch

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// maxStrangers bounds how many nodes are noted that a backup does not know.
	maxStrangers = 1000
	// strangerTimeout is how long noting one may take.
	strangerTimeout = 2 * time.Second
)

// unconfirmed refuses every session of a cluster that was restored from a backup
// until an operator has confirmed it. Agents refuse it by themselves; those of
// earlier versions would obey at once, and what they then did for the former
// cluster would be done by two.
func unconfirmed(s *cluster.Snapshot) error {
	return errdefs.New(errdefs.FailedPrecondition, "RESTORE_UNCONFIRMED",
		"this cluster was restored from a backup (epoch %d) and takes no sessions until an operator says that the former one is off: hvctl cluster restore confirm",
		s.Epoch).WithRetry(time.Second)
}

// tellForeign tells the inventory which tasks the agent is at that no record
// knows.
func (s *session) tellForeign(known map[string]cluster.Entry[*storev1.Task]) {
	var at []string
	for _, r := range s.hello.GetTasks() {
		if t, ok := known[r.GetTaskId()]; !task.Ended(r.GetState()) && (!ok || t.Value.GetNode() != s.node) {
			at = append(at, r.GetTaskId())
		}
	}
	s.leader.cfg.Inventory.Foreign(s.node, at)
}

// noteStranger writes down that the agent of a node has called which a restored
// cluster does not know: it was enrolled after the backup was taken, and may run
// any VM. What cannot be written now is with its next call.
func (d *Dispatch) noteStranger(ctx context.Context, agent *identity.AgentIdentity) {
	stranger := agent.Node + " " + agent.Serial
	leader := d.current()
	s := d.cfg.View.Current()
	was := s.Restore
	if leader == nil || !s.Recovering() || slices.Contains(was.Value.GetStrangers(), stranger) || len(was.Value.GetStrangers()) >= maxStrangers {
		return
	}
	next := proto.CloneOf(was.Value)
	next.Strangers = append(next.GetStrangers(), stranger)
	ctx, cancel := context.WithTimeout(ctx, strangerTimeout)
	defer cancel()
	_, err := d.cfg.Store.Commit(ctx, store.Change{
		Fence: leader.lead.Fence, Require: []store.Condition{store.Unchanged(store.RestoreKey(), was.ModRevision)},
		Puts: []store.Put{store.PutProto(store.RestoreKey(), next)},
	})
	d.cfg.Log.Warn("the agent of a node calls that the backup does not know: enrol it, or revoke its certificate",
		"node", agent.Node, "serial", agent.Serial, "error", err)
}
