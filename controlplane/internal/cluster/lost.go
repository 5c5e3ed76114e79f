package cluster

import storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"

// HasLost tells whether a node has, or may have, a copy of a VM from before it was
// brought back elsewhere: nothing that the node says of the VM counts then.
func (s *Snapshot) HasLost(uuid, node string) bool {
	if len(s.LostCopies) == 0 {
		return false
	}
	c, ok := s.LostCopies[uuid+"/"+node]
	return ok && c.Value.GetState() != storev1.LostCopyState_LOST_COPY_STATE_GONE
}
