package cluster

import storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"

// ConfirmedOff tells whether an operator's word that the node is powered off
// counts: it was given about that boot, and the node has not been heard since,
// by its leader's clock alone: those of replicas may differ.
func (s *Snapshot) ConfirmedOff(node string) bool {
	said, status := s.Nodes[node].Value, s.Statuses[node].Value
	return said.GetOffConfirmedAt() != nil && status.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE &&
		said.GetOffBootId() == status.GetBootId() && said.GetOffLastSeen().AsTime().Equal(status.GetLastSeen().AsTime())
}
