package cluster

import (
	"maps"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Draft is the next snapshot in the making. It shares every collection with
// the snapshot that it began from until that collection is first changed. One
// goroutine uses it, once: after Snapshot it is spent.
type Draft struct {
	Nodes      *Table[*storev1.Node]
	Statuses   *Table[*storev1.NodeStatus]
	Healths    *Table[*storev1.NodeHealth]
	VMs        *Table[*storev1.VM]
	GoneVMs    *Table[*storev1.VM]
	Operations *Table[*storev1.Operation]
	Tasks      *Table[*storev1.Task]
	Plans      *Table[*storev1.Plan]
	InUse      *Table[string]
	JoinTokens *Table[*storev1.JoinToken]
	Principals *Table[*storev1.Principal]
	Replicas   *Table[*storev1.Replica]
	Roles      *Table[*storev1.Role]
	Tenants    *Table[*storev1.Tenant]
	APIKeys    *Table[*storev1.APIKey]
	KeyUses    *Table[*storev1.KeyUse]
	AuditHeads *Table[*storev1.AuditHead]
	Revoked    *Table[string]
	ZFS        *Table[*storev1.NodeZFS]

	Ceph        *Table[*storev1.NodeCeph]
	Definitions *Table[*storev1.Definition]
	LostCopies  *Table[*storev1.LostCopy]

	Replications        *Table[*storev1.ReplicationJob]
	RetentionPolicies   *Table[*storev1.RetentionPolicy]
	ReplicationPolicies *Table[*storev1.ReplicationPolicy]

	Certificates    *Table[*storev1.Certificate]
	ReplicaStatuses *Table[*storev1.ReplicaStatus]

	ca              Entry[*storev1.CARotation]
	restore         Entry[*storev1.Restore]
	lastBackup      Entry[*storev1.BackupNote]
	access          int64
	accessTurn      int64
	accessChanged   bool
	epoch           uint64
	candidates      map[string]candidate
	ownedCandidates bool

	vmsByName, vmsByNode          indexer
	tasksByOperation, tasksByNode indexer
	openTasksByNode               indexer
	activeOperations              indexer
	vmsByTenant, vmsByOwnName     indexer
	operationsByTenant            indexer

	endings Endings
}

// Endings are what came to its end.
type Endings struct {
	Operations []*storev1.Operation
	Tasks      []*storev1.Task
}

// Endings are those that this draft has seen happen, in their order.
func (d *Draft) Endings() Endings { return d.endings }

// Draft begins the next snapshot from this one.
func (s *Snapshot) Draft() *Draft {
	d := &Draft{
		Nodes:      newTable(s.Nodes, nil),
		Statuses:   newTable(s.Statuses, nil),
		Healths:    newTable(s.Healths, nil),
		GoneVMs:    newTable(s.GoneVMs, nil),
		Plans:      newTable(s.Plans, nil),
		InUse:      newTable(s.InUse, nil),
		JoinTokens: newTable(s.JoinTokens, nil),
		Replicas:   newTable(s.Replicas, nil),
		KeyUses:    newTable(s.KeyUses, nil),
		AuditHeads: newTable(s.AuditHeads, nil),
		ZFS:        newTable(s.ZFS, nil),

		Ceph:        newTable(s.Ceph, nil),
		Definitions: newTable(s.Definitions, nil),
		LostCopies:  newTable(s.LostCopies, nil),

		Replications:        newTable(s.Replications, nil),
		RetentionPolicies:   newTable(s.RetentionPolicies, nil),
		ReplicationPolicies: newTable(s.ReplicationPolicies, nil),

		Certificates:    newTable(s.Certificates, nil),
		ReplicaStatuses: newTable(s.ReplicaStatuses, nil),

		ca:         s.CA,
		restore:    s.Restore,
		lastBackup: s.LastBackup,
		access:     s.Access,
		accessTurn: s.AccessTurn,
		epoch:      s.Epoch,
		candidates: s.candidates,

		vmsByName:          indexer{postings: s.index.vmsByName},
		vmsByNode:          indexer{postings: s.index.vmsByNode},
		tasksByOperation:   indexer{postings: s.index.tasksByOperation},
		tasksByNode:        indexer{postings: s.index.tasksByNode},
		openTasksByNode:    indexer{postings: s.index.openTasksByNode},
		activeOperations:   indexer{postings: s.index.activeOperations},
		vmsByTenant:        indexer{postings: s.index.vmsByTenant},
		vmsByOwnName:       indexer{postings: s.index.vmsByOwnName},
		operationsByTenant: indexer{postings: s.index.operationsByTenant},
	}
	d.Principals = newTable(s.Principals, noteAccess[*storev1.Principal](d))
	d.Roles = newTable(s.Roles, noteAccess[*storev1.Role](d))
	d.Tenants = newTable(s.Tenants, noteAccess[*storev1.Tenant](d))
	d.APIKeys = newTable(s.APIKeys, noteAccess[*storev1.APIKey](d))
	d.Revoked = newTable(s.Revoked, noteAccess[string](d))
	d.VMs = newTable(s.VMs, d.indexVM)
	d.Tasks = newTable(s.Tasks, d.indexTask)
	d.Operations = newTable(s.Operations, d.indexOperation)
	return d
}

// noteAccess notes a change of who may do what.
func noteAccess[T any](d *Draft) func(string, T, bool, T, bool) {
	return func(string, T, bool, T, bool) { d.accessChanged = true }
}

// SetEpoch sets the cluster's epoch.
func (d *Draft) SetEpoch(epoch uint64) { d.epoch = epoch }

// SetAccessTurn sets the revision of the record of access changes' turns.
func (d *Draft) SetAccessTurn(modRevision int64) { d.accessTurn = modRevision }

// SetCA sets the cluster's CAs; nil: they were never exchanged.
func (d *Draft) SetCA(record *storev1.CARotation, modRevision int64) {
	d.ca, d.accessChanged = Entry[*storev1.CARotation]{Value: record, ModRevision: modRevision}, true
}

// SetRestore sets how the cluster was restored from a backup; nil: it never was.
func (d *Draft) SetRestore(record *storev1.Restore, modRevision int64) {
	d.restore = Entry[*storev1.Restore]{Value: record, ModRevision: modRevision}
}

// SetLastBackup sets the last backup; nil: there is none.
func (d *Draft) SetLastBackup(record *storev1.BackupNote, modRevision int64) {
	d.lastBackup = Entry[*storev1.BackupNote]{Value: record, ModRevision: modRevision}
}

// PutCandidate notes a key under election/ with its value and the revision at
// which it was created: the candidate with the lowest one leads.
func (d *Draft) PutCandidate(key string, value *storev1.Leader, createRevision int64) {
	d.ownCandidates()
	d.candidates[key] = candidate{value: value, createRevision: createRevision}
}

// DeleteCandidate notes that a key under election/ is gone.
func (d *Draft) DeleteCandidate(key string) {
	d.ownCandidates()
	delete(d.candidates, key)
}

func (d *Draft) ownCandidates() {
	if !d.ownedCandidates {
		d.candidates, d.ownedCandidates = maps.Clone(d.candidates), true
	}
}

// Snapshot ends the draft: the snapshot that is true at that revision.
func (d *Draft) Snapshot(revision int64) *Snapshot {
	if d.accessChanged {
		d.access = revision
	}
	return &Snapshot{
		Revision:   revision,
		Nodes:      d.Nodes.entries,
		Statuses:   d.Statuses.entries,
		Healths:    d.Healths.entries,
		VMs:        d.VMs.entries,
		GoneVMs:    d.GoneVMs.entries,
		Operations: d.Operations.entries,
		Tasks:      d.Tasks.entries,
		Plans:      d.Plans.entries,
		InUse:      d.InUse.entries,
		JoinTokens: d.JoinTokens.entries,
		Principals: d.Principals.entries,
		Replicas:   d.Replicas.entries,
		Roles:      d.Roles.entries,
		Tenants:    d.Tenants.entries,
		APIKeys:    d.APIKeys.entries,
		KeyUses:    d.KeyUses.entries,
		AuditHeads: d.AuditHeads.entries,
		ZFS:        d.ZFS.entries,

		Ceph:        d.Ceph.entries,
		Definitions: d.Definitions.entries,
		LostCopies:  d.LostCopies.entries,

		Replications:        d.Replications.entries,
		RetentionPolicies:   d.RetentionPolicies.entries,
		ReplicationPolicies: d.ReplicationPolicies.entries,

		Certificates:    d.Certificates.entries,
		ReplicaStatuses: d.ReplicaStatuses.entries,
		CA:              d.ca,
		Restore:         d.restore,
		LastBackup:      d.lastBackup,

		Access:     d.access,
		AccessTurn: d.accessTurn,
		Revoked:    d.Revoked.entries,
		Leader:     leaderOf(d.candidates, d.epoch),
		Epoch:      d.epoch,
		candidates: d.candidates,
		index: index{
			vmsByName:          d.vmsByName.postings,
			vmsByNode:          d.vmsByNode.postings,
			tasksByOperation:   d.tasksByOperation.postings,
			tasksByNode:        d.tasksByNode.postings,
			openTasksByNode:    d.openTasksByNode.postings,
			activeOperations:   d.activeOperations.postings,
			vmsByTenant:        d.vmsByTenant.postings,
			vmsByOwnName:       d.vmsByOwnName.postings,
			operationsByTenant: d.operationsByTenant.postings,
		},
	}
}

// leaderOf gives the candidate that leads, nil when there is none.
func leaderOf(candidates map[string]candidate, epoch uint64) *Leader {
	var first *candidate
	for _, c := range candidates {
		if first == nil || c.createRevision < first.createRevision {
			first = &c
		}
	}
	if first == nil {
		return nil
	}
	return &Leader{
		Name:           first.value.GetName(),
		CallersAddress: first.value.GetCallersAddress(),
		AgentsAddress:  first.value.GetAgentsAddress(),
		Term:           task.Term{Epoch: epoch, Revision: first.createRevision},
	}
}

func (d *Draft) indexVM(key string, was *storev1.VM, had bool, is *storev1.VM, has bool) {
	d.vmsByName.move(key, was.GetName(), had, is.GetName(), has)
	d.vmsByNode.move(key, was.GetNode(), had, is.GetNode(), has)
	d.indexTenant(key, was, had, is, has)
}

func (d *Draft) indexTask(key string, was *storev1.Task, had bool, is *storev1.Task, has bool) {
	d.tasksByOperation.move(key, was.GetOperationId(), had, is.GetOperationId(), has)
	d.tasksByNode.move(key, was.GetNode(), had, is.GetNode(), has)
	wasOpen := had && !task.Ended(task.State(was.GetState()))
	isOpen := has && !task.Ended(task.State(is.GetState()))
	d.openTasksByNode.move(key, was.GetNode(), wasOpen, is.GetNode(), isOpen)
	if wasOpen && has && !isOpen {
		d.endings.Tasks = append(d.endings.Tasks, is)
	}
}

func (d *Draft) indexOperation(key string, was *storev1.Operation, had bool, is *storev1.Operation, has bool) {
	wasActive := had && !task.OpEnded(was.GetState())
	isActive := has && !task.OpEnded(is.GetState())
	d.activeOperations.move(key, "", wasActive, "", isActive)
	// A change that is one transaction is born ended.
	if has && !isActive && (wasActive || !had) {
		d.endings.Operations = append(d.endings.Operations, is)
	}
	from, to := was.GetTenant(), is.GetTenant()
	d.operationsByTenant.move(key, from, had && from != "", to, has && to != "")
}
