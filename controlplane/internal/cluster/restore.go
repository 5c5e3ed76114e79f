package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// Unconfirmed tells whether the cluster was restored from a backup and no
// operator has said yet that it is the one that nodes shall listen to: the former
// one may still be at work.
func (s *Snapshot) Unconfirmed() bool {
	r := s.Restore.Value
	return r != nil && r.GetConfirmedAt() == nil
}

// Recovering tells whether the cluster was restored from a backup and its
// records are not yet those of what the nodes run. Until then any node that was
// not heard may run any VM, whatever the records say.
func (s *Snapshot) Recovering() bool {
	r := s.Restore.Value
	return r != nil && r.GetReconciledAt() == nil
}

// ConfirmedEpoch is the last epoch that a restore began and an operator
// confirmed; 0: none.
func (s *Snapshot) ConfirmedEpoch() uint64 {
	if r := s.Restore.Value; r.GetConfirmedAt() != nil {
		return r.GetEpoch()
	}
	return 0
}

// Unheard are the nodes that a restored cluster still waits for, sorted: those of
// the backup that have not said yet what they run, and are not said to be powered
// off, and those that the backup does not know and that have called with a
// certificate that is not revoked.
func (s *Snapshot) Unheard() []string {
	r := s.Restore.Value
	if !s.Recovering() {
		return nil
	}
	waited := map[string]bool{}
	for id := range s.Nodes {
		waited[id] = !slices.Contains(r.GetHeardNodes(), id) && !s.ConfirmedOff(id)
	}
	for _, stranger := range r.GetStrangers() {
		id, serial, _ := strings.Cut(stranger, " ")
		_, enrolled := s.Nodes[id]
		if _, revoked := s.Revoked[serial]; !enrolled && !revoked {
			waited[id] = true
		}
	}
	maps.DeleteFunc(waited, func(_ string, waits bool) bool { return !waits })
	return slices.Sorted(maps.Keys(waited))
}

// CodeRecovering is the code of what is refused while a restored cluster waits for
// nodes.
const CodeRecovering = "RESTORE_UNFINISHED"

// MayRun says why no VM is started while such nodes are waited for.
func MayRun(waited []string) string {
	const most = 10
	names := strings.Join(waited[:min(len(waited), most)], ", ")
	if more := len(waited) - most; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return "the cluster was restored from a backup, and " + names + " have not been heard since: any VM may run there. " +
		"Start their agents, or confirm that they are powered off (hvctl node confirm-off)"
}

// beforeRestore stands for a record of a restore that cannot be read: nothing is
// confirmed by it.
func beforeRestore() *storev1.Restore { return &storev1.Restore{} }

// BrokenRestore puts what stands for a record that cannot be decoded.
func (d *Draft) BrokenRestore(modRevision int64) { d.SetRestore(beforeRestore(), modRevision) }
