package migrate

import (
	"context"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// still is a view that never changes, and an etcd that takes everything.
type still struct {
	snapshot *cluster.Snapshot
	taken    int
}

func (s *still) Current() *cluster.Snapshot         { return s.snapshot }
func (s *still) Changed() <-chan struct{}           { return nil }
func (s *still) Await(context.Context, int64) error { return nil }

func (s *still) Commit(context.Context, store.Change) (revision int64, err error) {
	s.taken++
	return s.snapshot.Revision, nil
}

// With a step a round, a hundred migrations that each tell of their progress
// every second would leave no turn to the next.
func TestEachMigrationHasItsTurnInARound(t *testing.T) {
	s, entry := records(t, "running 1, receive assigned")
	d := s.Draft()
	for _, id := range []string{"op-2", "op-3"} {
		other := proto.CloneOf(entry.Value)
		other.Id = id
		d.Operations.Put(id, other, 5)
		receive := proto.CloneOf(s.Tasks[opID+"/1/migrate-receive"].Value)
		receive.Id, receive.OperationId = id+"/1/migrate-receive", id
		d.Tasks.Put(receive.GetId(), receive, 7)
	}
	etcd := &still{snapshot: d.Snapshot(10)}
	c := New(etcd, etcd, nil, nil, hclog.NewNullLogger())
	again, err := c.round(t.Context(), election.Leadership{})
	if err != nil || !again || etcd.taken != 3 {
		t.Errorf("a round took %d steps, again %v, error %v; want one of each of the 3", etcd.taken, again, err)
	}
}
