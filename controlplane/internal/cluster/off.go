package cluster

import storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"

// ConfirmedOff tells whether an operator's word that the node is powered off
// counts: it was given after the node was last heard, about that boot, and the
// node has not been heard since.
func (s *Snapshot) ConfirmedOff(node string) bool {
	said, status := s.Nodes[node].Value, s.Statuses[node].Value
	at := said.GetOffConfirmedAt()
	return at != nil && status.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE &&
		said.GetOffBootId() == status.GetBootId() && at.AsTime().After(status.GetLastSeen().AsTime())
}
