package members_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// saidHere is a view of what replicas have said.
type saidHere struct{ at *cluster.Snapshot }

func (s *saidHere) Current() *cluster.Snapshot { return s.at }
func (s *saidHere) Changed() <-chan struct{}   { return nil }

// TestHearing: who is heard is told by when reports came, whatever their hosts' clocks say.
func TestHearing(t *testing.T) {
	began := time.Now()
	for name, c := range map[string]struct {
		ahead time.Duration // of the replica's clock
		first time.Duration // silence, as it is taken for before another report came
	}{
		"its clock is right":          {0, 0},
		"its clock is an hour ahead":  {time.Hour, 0},
		"its clock is an hour behind": {-time.Hour, time.Hour},
	} {
		now := began
		view := &saidHere{cluster.Empty()}
		revision := int64(0)
		says := func() {
			revision++
			d := view.at.Draft()
			d.ReplicaStatuses.Put("r2", &storev1.ReplicaStatus{Name: "r2", At: timestamppb.New(now.Add(c.ahead))}, revision)
			view.at = d.Snapshot(revision)
		}
		h := &members.Hearing{View: view, Now: func() time.Time { return now }}
		if silence, ever := h.Silence("r2"); ever || h.Heard("r2") {
			t.Errorf("%s: silent for %s before it has said anything", name, silence)
		}
		says()
		if silence, ever := h.Silence("r2"); !ever || silence.Round(time.Second) != c.first {
			t.Errorf("%s: silent for %s at first, want %s", name, silence, c.first)
		}
		now = now.Add(10 * time.Second)
		says()
		if silence, _ := h.Silence("r2"); silence != 0 || !h.Heard("r2") {
			t.Errorf("%s: silent for %s when it has just said something", name, silence)
		}
		now = now.Add(members.SilentAfter - time.Second)
		if !h.Heard("r2") {
			t.Errorf("%s: not heard after %s", name, members.SilentAfter-time.Second)
		}
		now = now.Add(time.Second)
		if silence, _ := h.Silence("r2"); silence != members.SilentAfter || h.Heard("r2") {
			t.Errorf("%s: silent for %s, want %s", name, silence, members.SilentAfter)
		}
	}
}
