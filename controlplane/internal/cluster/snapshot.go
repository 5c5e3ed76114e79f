// Package cluster holds what the control plane knows: the types, and the
// immutable Snapshot that every other package reads. It does no I/O and has no
// clock. A Snapshot is made from the one before it by a Draft, which copies
// only the collections that a batch of changes touches; store feeds it.
package cluster

import (
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Entry is one record and the etcd revision of its last change, which a
// transaction may require to be still the same. The value is never changed:
// who wants another makes a copy of it.
type Entry[T any] struct {
	Value       T
	ModRevision int64
}

// Leader is who holds the election.
type Leader struct {
	Name string
	// CallersAddress is host:port of its callers' listener.
	CallersAddress string
	// AgentsAddress is host:port of its agents' listener.
	AgentsAddress string
	Term          task.Term
}

// Snapshot is the whole state of the cluster at one etcd revision. It is never
// changed; its maps are for reading only, since other snapshots share them.
// Records that could not be decoded are not in it.
type Snapshot struct {
	// Revision is the etcd revision at which it is true.
	Revision int64

	// Nodes, Statuses and Healths are by node id.
	Nodes    map[string]Entry[*storev1.Node]
	Statuses map[string]Entry[*storev1.NodeStatus]
	Healths  map[string]Entry[*storev1.NodeHealth]
	// VMs are by UUID.
	VMs map[string]Entry[*storev1.VM]
	// GoneVMs are those that no node has any more, by UUID: what is ours of
	// them, for the case that they appear again.
	GoneVMs map[string]Entry[*storev1.VM]
	// Operations and Tasks are by id.
	Operations map[string]Entry[*storev1.Operation]
	Tasks      map[string]Entry[*storev1.Task]
	// Plans are by id.
	Plans map[string]Entry[*storev1.Plan]
	// InUse says which operation (its id) holds a resource.
	InUse map[string]Entry[string]
	// JoinTokens are by id.
	JoinTokens map[string]Entry[*storev1.JoinToken]
	// Principals and Replicas are by name.
	Principals map[string]Entry[*storev1.Principal]
	Replicas   map[string]Entry[*storev1.Replica]
	// Roles and Tenants are by name.
	Roles   map[string]Entry[*storev1.Role]
	Tenants map[string]Entry[*storev1.Tenant]
	// APIKeys and KeyUses are by the key's id. No key's text is in them.
	APIKeys map[string]Entry[*storev1.APIKey]
	KeyUses map[string]Entry[*storev1.KeyUse]
	// Revoked holds certificate serials, with what was noted of each.
	Revoked map[string]Entry[string]
	// AuditHeads are by replica.
	AuditHeads map[string]Entry[*storev1.AuditHead]
	// ZFS is what each node last reported of its own, by node.
	ZFS map[string]Entry[*storev1.NodeZFS]
	// Ceph is what each node last reported of its Ceph cluster, by node.
	Ceph map[string]Entry[*storev1.NodeCeph]
	// Definitions are libvirt's of VMs, by UUID.
	Definitions map[string]Entry[*storev1.Definition]
	// LostCopies are copies of VMs that were brought back elsewhere, by the VM's
	// UUID, "/" and the node that has lost it.
	LostCopies map[string]Entry[*storev1.LostCopy]
	// Replications are replication jobs, by id.
	Replications map[string]Entry[*storev1.ReplicationJob]
	// RetentionPolicies and ReplicationPolicies are by name.
	RetentionPolicies   map[string]Entry[*storev1.RetentionPolicy]
	ReplicationPolicies map[string]Entry[*storev1.ReplicationPolicy]
	// Certificates are those that were issued, by serial.
	Certificates map[string]Entry[*storev1.Certificate]
	// ReplicaStatuses are what replicas say of themselves, by name.
	ReplicaStatuses map[string]Entry[*storev1.ReplicaStatus]
	// CA is the cluster's CAs; its value is nil while they were never exchanged.
	CA Entry[*storev1.CARotation]
	// Restore says which backup the cluster was restored from, and how far the
	// return is; its value is nil while it never was.
	Restore Entry[*storev1.Restore]
	// LastBackup is the last backup that was taken whole; its value is nil before
	// the first.
	LastBackup Entry[*storev1.BackupNote]
	// Access is the revision of the last change of what says who may do what:
	// principals, roles, tenants, keys, revocations, CAs. Two snapshots with the
	// same one agree in all of that.
	Access int64
	// AccessTurn is the revision of the record that every change of these by a
	// call writes and requires to be unchanged: what must hold of several of
	// them holds then, since of two changes at once one is made anew. 0: none.
	AccessTurn int64

	// Leader is nil while nobody holds the election.
	Leader *Leader
	// Epoch grows when the cluster is restored from a backup.
	Epoch uint64

	candidates map[string]candidate
	index      index
}

// candidate is one key under election/; the oldest one leads.
type candidate struct {
	value          *storev1.Leader
	createRevision int64
}

// Empty is the snapshot of a cluster that has no records.
func Empty() *Snapshot {
	return &Snapshot{
		Nodes:      map[string]Entry[*storev1.Node]{},
		Statuses:   map[string]Entry[*storev1.NodeStatus]{},
		Healths:    map[string]Entry[*storev1.NodeHealth]{},
		VMs:        map[string]Entry[*storev1.VM]{},
		GoneVMs:    map[string]Entry[*storev1.VM]{},
		Operations: map[string]Entry[*storev1.Operation]{},
		Tasks:      map[string]Entry[*storev1.Task]{},
		Plans:      map[string]Entry[*storev1.Plan]{},
		InUse:      map[string]Entry[string]{},
		JoinTokens: map[string]Entry[*storev1.JoinToken]{},
		Principals: map[string]Entry[*storev1.Principal]{},
		Replicas:   map[string]Entry[*storev1.Replica]{},
		Roles:      map[string]Entry[*storev1.Role]{},
		Tenants:    map[string]Entry[*storev1.Tenant]{},
		APIKeys:    map[string]Entry[*storev1.APIKey]{},
		KeyUses:    map[string]Entry[*storev1.KeyUse]{},
		AuditHeads: map[string]Entry[*storev1.AuditHead]{},
		Revoked:    map[string]Entry[string]{},
		ZFS:        map[string]Entry[*storev1.NodeZFS]{},

		Ceph:        map[string]Entry[*storev1.NodeCeph]{},
		Definitions: map[string]Entry[*storev1.Definition]{},
		LostCopies:  map[string]Entry[*storev1.LostCopy]{},

		Replications:        map[string]Entry[*storev1.ReplicationJob]{},
		RetentionPolicies:   map[string]Entry[*storev1.RetentionPolicy]{},
		ReplicationPolicies: map[string]Entry[*storev1.ReplicationPolicy]{},

		Certificates:    map[string]Entry[*storev1.Certificate]{},
		ReplicaStatuses: map[string]Entry[*storev1.ReplicaStatus]{},

		candidates: map[string]candidate{},
		index:      newIndex(),
	}
}
