package api

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// listAge is how long one answer serves, since ages in it grow.
const listAge = time.Second

// nodeList makes the list of nodes once for each snapshot and second, and keeps
// it encoded: panels ask for it all the time.
type nodeList struct {
	view  *store.View
	codec *rpc.Codec
	heard Heard

	making sync.Mutex
	last   atomic.Pointer[listAnswer]
}

type listAnswer struct {
	snapshot *cluster.Snapshot
	made     time.Time
	list     *debvisorv1.NodeList
}

func (a *listAnswer) serves(s *cluster.Snapshot, now time.Time) bool {
	return a != nil && a.snapshot == s && now.Sub(a.made) < listAge
}

// current gives the list, which must not be changed.
func (n *nodeList) current(now time.Time) (*debvisorv1.NodeList, error) {
	snapshot := n.view.Current()
	if last := n.last.Load(); last.serves(snapshot, now) {
		return last.list, nil
	}
	n.making.Lock()
	defer n.making.Unlock()
	snapshot = n.view.Current()
	if last := n.last.Load(); last.serves(snapshot, now) {
		return last.list, nil
	}
	list := &debvisorv1.NodeList{}
	for _, id := range slices.Sorted(maps.Keys(snapshot.Nodes)) {
		list.Nodes = append(list.Nodes, summary(snapshot, id, n.heard, now))
	}
	if n.codec != nil {
		if err := n.codec.Keep(list); err != nil {
			return nil, err
		}
	}
	n.last.Store(&listAnswer{snapshot: snapshot, made: now, list: list})
	return list, nil
}

// summary is a node with its last-known state.
func summary(s *cluster.Snapshot, id string, heard Heard, now time.Time) *debvisorv1.NodeSummary {
	node, status := s.Nodes[id].Value, s.Statuses[id].Value
	m := &debvisorv1.NodeSummary{
		Info: &debvisorv1.NodeInfo{
			Id: &debvisorv1.NodeId{Id: id}, Hostname: node.GetHostname(), Ip: node.GetIp(),
			Rack: node.GetRack(), Zone: node.GetZone(), Version: node.GetVersion(),
		},
		State: nodeState(status), Cordoned: node.GetCordoned(),
	}
	if status.GetAgentVersion() != "" {
		m.Info.Version = status.GetAgentVersion()
	}
	m.AgeMs = age(status, id, heard, now)
	m.Health = nodeHealth(s, id, m.GetState())
	for _, vm := range s.VMsOn(id) {
		if decode(vm.Value.GetDomain(), &agentv1.Domain{}).GetState() == debvisorv1.VMState_VM_STATE_RUNNING {
			m.RunningVms++
		}
	}
	return m
}

func nodeState(status *storev1.NodeStatus) debvisorv1.NodeState {
	switch status.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE:
		return debvisorv1.NodeState_NODE_STATE_ONLINE
	case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return debvisorv1.NodeState_NODE_STATE_SUSPECT
	case storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
		return debvisorv1.NodeState_NODE_STATE_UNREACHABLE
	}
	return debvisorv1.NodeState_NODE_STATE_REGISTERED
}

// age is how long ago the node's agent was heard, milliseconds; 0 where it
// never was.
func age(status *storev1.NodeStatus, id string, heard Heard, now time.Time) uint64 {
	var at time.Time
	if seen := status.GetLastSeen(); seen != nil {
		at = seen.AsTime()
	}
	if heard != nil {
		if later, ok := heard.LastHeard(id); ok && later.After(at) {
			at = later
		}
	}
	if at.IsZero() {
		return 0
	}
	return uint64(max(now.Sub(at).Milliseconds(), 0))
}

// nodeHealth is the health that was last reported, by the agent's session or by
// the unary Heartbeat, whichever is later. A node that is not heard is not
// well, whatever it last said.
func nodeHealth(s *cluster.Snapshot, id string, state debvisorv1.NodeState) *debvisorv1.Health {
	status, beat := s.Statuses[id].Value, s.Healths[id].Value
	health := decode(status.GetHealth(), &debvisorv1.Health{})
	if len(beat.GetHealth()) > 0 && (len(status.GetHealth()) == 0 || later(beat.GetReceivedAt(), status.GetLastSeen())) {
		health = decode(beat.GetHealth(), &debvisorv1.Health{})
	}
	health.NodeId = &debvisorv1.NodeId{Id: id}
	switch state {
	case debvisorv1.NodeState_NODE_STATE_SUSPECT:
		health.Overall = max(health.GetOverall(), debvisorv1.StatusCode_STATUS_WARN)
		health.Problems = append(health.GetProblems(), "its agent has missed 3 heartbeats")
	case debvisorv1.NodeState_NODE_STATE_UNREACHABLE:
		health.Overall = debvisorv1.StatusCode_STATUS_ERROR
		health.Problems = append(health.GetProblems(), "its agent is not heard; these figures are the last known")
	}
	return health
}

func later(a, b *timestamppb.Timestamp) bool { return a.AsTime().After(b.AsTime()) }
