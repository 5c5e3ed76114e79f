package cluster_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

func TestAWordThatANodeIsOffCountsUntilItIsHeard(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	said := func() *storev1.Node {
		return &storev1.Node{Id: "a", OffConfirmedAt: timestamppb.New(noon), OffBootId: "boot-1", OffLastSeen: timestamppb.New(noon.Add(-time.Minute))}
	}
	silent := func() *storev1.NodeStatus {
		return &storev1.NodeStatus{
			Id: "a", Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, BootId: "boot-1", LastSeen: timestamppb.New(noon.Add(-time.Minute)),
		}
	}
	for what, c := range map[string]struct {
		node   func(*storev1.Node)
		status func(*storev1.NodeStatus)
		want   bool
	}{
		"said of a silent node": {want: true},
		"nothing was said":      {node: func(n *storev1.Node) { n.OffConfirmedAt = nil }},
		"it is heard":           {status: func(s *storev1.NodeStatus) { s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_ONLINE }},
		"it is only late":       {status: func(s *storev1.NodeStatus) { s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_SUSPECT }},
		"it was heard since":    {status: func(s *storev1.NodeStatus) { s.LastSeen = timestamppb.New(noon.Add(time.Second)) }},
		// The clock of the replica that took the word down may be ahead.
		"it was heard since, by a clock that is late": {status: func(s *storev1.NodeStatus) { s.LastSeen = timestamppb.New(noon.Add(-time.Second)) }},
		"it has booted since":                         {status: func(s *storev1.NodeStatus) { s.BootId = "boot-2" }},
	} {
		node, status := said(), silent()
		if c.node != nil {
			c.node(node)
		}
		if c.status != nil {
			c.status(status)
		}
		d := cluster.Empty().Draft()
		d.Nodes.Put("a", node, 1)
		d.Statuses.Put("a", status, 1)
		if got := d.Snapshot(1).ConfirmedOff("a"); got != c.want {
			t.Errorf("%s: it counts: %v, want %v", what, got, c.want)
		}
	}
	if cluster.Empty().ConfirmedOff("b") {
		t.Error("a node that nobody knows counts as off")
	}
}
