package cluster_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

func TestWhomARestoredClusterWaitsFor(t *testing.T) {
	now := timestamppb.New(time.Unix(1_800_000_000, 0))
	unreachable := storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	for _, c := range []struct {
		name    string
		restore *storev1.Restore
		off     string // a node that is said to be off
		revoked string
		want    string
		states  string // u: unconfirmed, r: recovering
	}{
		{"never restored", nil, "", "", "", ""},
		{"unconfirmed", &storev1.Restore{Epoch: 9}, "", "", "a b", "ur"},
		{"confirmed", &storev1.Restore{Epoch: 9, ConfirmedAt: now}, "", "", "a b", "r"},
		{"one is heard", &storev1.Restore{Epoch: 9, ConfirmedAt: now, HeardNodes: []string{"a"}}, "", "", "b", "r"},
		{"the other is off", &storev1.Restore{Epoch: 9, ConfirmedAt: now, HeardNodes: []string{"a"}}, "b", "", "", "r"},
		{"a stranger", &storev1.Restore{Epoch: 9, ConfirmedAt: now, HeardNodes: []string{"a", "b"}, Strangers: []string{"x 0A"}}, "", "", "x", "r"},
		{"a stranger that was revoked", &storev1.Restore{Epoch: 9, ConfirmedAt: now, HeardNodes: []string{"a", "b"}, Strangers: []string{"x 0A"}}, "", "0A", "", "r"},
		{"a stranger that was enrolled and heard", &storev1.Restore{Epoch: 9, ConfirmedAt: now, HeardNodes: []string{"a", "b"}, Strangers: []string{"a 0A"}}, "", "", "", "r"},
		{"over", &storev1.Restore{Epoch: 9, ConfirmedAt: now, ReconciledAt: now}, "", "", "", ""},
	} {
		d := cluster.Empty().Draft()
		d.SetEpoch(9)
		for _, id := range []string{"a", "b"} {
			n := &storev1.Node{Id: id}
			if id == c.off {
				n.OffConfirmedAt = now
			}
			d.Nodes.Put(id, n, 1)
			d.Statuses.Put(id, &storev1.NodeStatus{Id: id, Liveness: unreachable}, 1)
		}
		if c.revoked != "" {
			d.Revoked.Put(c.revoked, "x", 1)
		}
		d.SetRestore(c.restore, 1)
		s := d.Snapshot(2)
		states := ""
		if s.Unconfirmed() {
			states += "u"
		}
		if s.Recovering() {
			states += "r"
		}
		if got := strings.Join(s.Unheard(), " "); got != c.want || states != c.states {
			t.Errorf("%s: waits for %q, want %q; is %q, want %q", c.name, got, c.want, states, c.states)
		}
		confirmed := uint64(0)
		if c.restore.GetConfirmedAt() != nil {
			confirmed = 9
		}
		if s.ConfirmedEpoch() != confirmed {
			t.Errorf("%s: confirmed is epoch %d, want %d", c.name, s.ConfirmedEpoch(), confirmed)
		}
	}
}

func TestMayRunBoundsItsNames(t *testing.T) {
	text := cluster.MayRun(slices.Repeat([]string{"node"}, 25))
	if strings.Count(text, "node,") > 10 || !strings.Contains(text, "15 more") {
		t.Error(text)
	}
}
