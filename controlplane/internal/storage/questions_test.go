package storage

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// TestCephIsNotInTheWay: however many questions about a Ceph that is dead hang, those about ZFS are asked.
func TestCephIsNotInTheWay(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hanging := make(chan struct{}, 10*maxAsking)
	d := newDesk(func(ctx context.Context, _ string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
		if q.GetListRbd() != nil {
			hanging <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		return part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: &agentv1.ZfsListing{}}})
	}, nowhere{}, hclog.NewNullLogger())
	for i := range 3 * maxAsking {
		d.put(ctx, fmt.Sprint("images-", i), &question{key: "images", node: "a", images: &agentv1.ListRbd{}})
	}
	for range maxAsking {
		<-hanging
	}
	d.put(ctx, "datasets", &question{key: "datasets", node: "a", list: &agentv1.ListZfs{}, remove: &storev1.RemoveSnapshots{}})
	select {
	case <-d.learned:
	case <-time.After(10 * time.Second):
		t.Error("nothing is heard of ZFS while Ceph hangs")
	}
	if a := d.answer("datasets"); a == nil || a.err != nil {
		t.Errorf("of ZFS is heard %+v", a)
	}
	cancel()
	d.wait()
	if more := len(hanging); more > 0 {
		t.Errorf("%d questions were asked about Ceph at once, %d may be", maxAsking+more, maxAsking)
	}
}

// nowhere is the view of an empty cluster.
type nowhere struct{ View }

func (nowhere) Current() *cluster.Snapshot { return &cluster.Snapshot{} }
