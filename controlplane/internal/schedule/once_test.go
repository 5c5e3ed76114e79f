package schedule

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// watched is an etcd that sees what is written.
type watched struct {
	*store.Store
	seen func(c store.Change)
}

func (w *watched) Commit(ctx context.Context, c store.Change) (int64, error) {
	w.seen(c)
	return w.Store.Commit(ctx, c)
}

// TestEveryChangeIsOfItsTerm: whoever does not lead any more begins nothing.
func TestEveryChangeIsOfItsTerm(t *testing.T) {
	b := newBench(t)
	b.put(everyTen(t, ""))
	l := b.elect("r1")
	b.lead(l, &watched{b.store, func(c store.Change) {
		if c.Fence != l.Fence {
			t.Errorf("a change with the fence %v", c.Fence)
		}
	}})
	b.pass(10 * time.Minute)
	b.await("a run", func(s *cluster.Snapshot) bool { return s.RetentionPolicies["p"].Value.GetRun().GetFired() == 1 })
}

// TestOnTheGroundOfWhatWasSeen: what is due makes the same operations whoever decides
// and whenever, and they are begun only while nobody has begun them, or has what they
// need.
func TestOnTheGroundOfWhatWasSeen(t *testing.T) {
	record := retentionRecord(t, &debvisorv1.RetentionPolicySpec{Schedule: "every 10m", Datasets: refs("tank/x tank/y")},
		&storev1.StoragePolicyRun{LastDue: timestamppb.New(noon.Add(-10 * time.Minute))})
	var ids [][]string
	for _, late := range []time.Duration{0, 3 * time.Second} {
		p := retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 8})
		s, _ := decide(viewOf(world(t, "a has tank/x tank/y"), noon.Add(late)), p)
		if s == nil || len(s.ops) == 0 {
			t.Fatal("nothing is begun")
		}
		var begun []string
		want := []store.Condition{store.Unchanged(store.RetentionPolicyKey(record.GetName()), 8)}
		for _, op := range s.ops {
			begun, want = append(begun, op.GetId()), append(want, store.Absent(store.OperationKey(op.GetId())))
			for _, r := range op.GetResources() {
				want = append(want, store.Absent(store.InUseKey(r)))
			}
		}
		for _, c := range want {
			if !slices.Contains(s.change.Require, c) {
				t.Errorf("%v is not required: %v", c, s.change.Require)
			}
		}
		ids = append(ids, begun)
	}
	if strings.Join(ids[0], " ") != strings.Join(ids[1], " ") {
		t.Errorf("the same time makes %v, then %v", ids[0], ids[1])
	}
}
