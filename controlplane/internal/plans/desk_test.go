package plans

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestOneCallerDoesNotFillTheStoreWithPlans(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	d := cluster.Empty().Draft()
	for i := range mostOfOne {
		p := &storev1.Plan{Id: fmt.Sprintf("plan-%d", i), Principal: "panel", ExpiresAt: timestamppb.New(now.Add(time.Minute))}
		d.Plans.Put(p.GetId(), p, 1)
	}
	desk := NewDesk(still{snapshot: d.Snapshot(1)}, nil)
	if err := desk.room("panel", now); !errdefs.Is(err, errdefs.ResourceExhausted) {
		t.Errorf("one more than it may have: %v", err)
	}
	if err := desk.room("ann", now); err != nil {
		t.Errorf("another caller: %v", err)
	}
	if err := desk.room("panel", now.Add(2*time.Minute)); err != nil {
		t.Errorf("once its plans have expired: %v", err)
	}
}

// still is a view that does not change.
type still struct {
	View
	snapshot *cluster.Snapshot
}

func (s still) Current() *cluster.Snapshot { return s.snapshot }
