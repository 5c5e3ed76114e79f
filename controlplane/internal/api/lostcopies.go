package api

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// ListLostCopies answers the copies of the caller's VMs that were brought back
// elsewhere, and what becomes of them, by VM and node.
func (s *migrationService) ListLostCopies(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.LostCopyList, error) {
	scope := scopeOf(ctx, s.view.Current())
	list := &debvisorv1.LostCopyList{}
	for _, entry := range scope.Snapshot().LostCopies {
		if ownCopy(scope, entry.Value) {
			list.Copies = append(list.Copies, lostCopyMessage(entry.Value))
		}
	}
	slices.SortFunc(list.GetCopies(), func(a, b *debvisorv1.LostCopy) int {
		return cmp.Or(cmp.Compare(a.GetVmName(), b.GetVmName()), cmp.Compare(a.GetVm().GetVmId(), b.GetVm().GetVmId()),
			cmp.Compare(a.GetNode().GetNodeId().GetId(), b.GetNode().GetNodeId().GetId()))
	})
	return list, nil
}

// ownCopy tells whether a lost copy is in a scope.
func ownCopy(scope cluster.Scope, c *storev1.LostCopy) bool {
	return !scope.Confined() || c.GetTenant() == scope.Tenant()
}

func lostCopyMessage(c *storev1.LostCopy) *debvisorv1.LostCopy {
	evidence := decode(c.GetEvidence(), &agentv1.FenceEvidence{})
	m := &debvisorv1.LostCopy{
		Vm: &debvisorv1.VMRef{VmId: c.GetVmUuid()}, VmName: c.GetVmName(), Node: nodeRef(c.GetNode()), BroughtBackOn: nodeRef(c.GetBroughtBackOn()),
		OperationId: c.GetOperation(), At: timestamp(c.GetAt()), State: strings.ToLower(strings.TrimPrefix(c.GetState().String(), "LOST_COPY_STATE_")),
		Proof: c.GetProof(), LastError: c.GetLastError(),
		ReverseOffered: c.GetState() == storev1.LostCopyState_LOST_COPY_STATE_GONE && len(c.GetReverseJobs()) > 0,
	}
	if c.GetState() != storev1.LostCopyState_LOST_COPY_STATE_GONE || c.GetLastError() != "" {
		m.Blocklisted = evidence.GetBlocklisted()
	}
	return m
}

// ReverseReplication makes the replication jobs that bring a VM's data back to the
// node that had lost it; the offer ends with it. Their first runs set aside what
// the lost copy had beyond the last snapshot that both have. Errors: NotFound;
// FailedPrecondition COPY_NOT_GONE as long as the copy is not destroyed, NO_REPLICAS
// for a VM whose disks are images, and what a job of that id or to that dataset is
// refused for.
func (s *migrationService) ReverseReplication(ctx context.Context, ref *debvisorv1.LostCopyRef) (*debvisorv1.ReverseReplicationResult, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, "replication.reverse", ref)
	if err != nil {
		return nil, err
	}
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return reversedBefore(scope, op, err)
	}
	entry, err := findLostCopy(scope, ref)
	if err != nil {
		return nil, err
	}
	for _, b := range entry.Value.GetReverseJobs() {
		spec.Resources = append(spec.Resources, planResource+decode(b, &storev1.ReplicationJob{}).GetId())
	}
	spec.Owner = entry.Value.GetTenant()
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		scope := scopeOf(ctx, snapshot)
		entry, err := findLostCopy(scope, ref)
		if err != nil {
			return store.Change{}, err
		}
		return reverse(scope, entry, authn.From(ctx).Name, time.Now())
	})
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return reversedBefore(scopeOf(ctx, s.view.Current()), op, nil)
}

// planResource begins what the making of a replication job holds in use.
const planResource = "replication-plan/"

// reversedBefore answers with the jobs that an operation has made, as they are now.
func reversedBefore(scope cluster.Scope, op *storev1.Operation, err error) (*debvisorv1.ReverseReplicationResult, error) {
	if err != nil {
		return nil, err
	}
	result := &debvisorv1.ReverseReplicationResult{}
	for _, resource := range op.GetResources() {
		if job, ok := scope.Replication(strings.TrimPrefix(resource, planResource)); ok {
			result.Jobs = append(result.Jobs, jobMessage(job.Value, nil))
		}
	}
	return result, nil
}

// findLostCopy gives a lost copy of the scope. The VM may be gone by now: then it is
// meant by its UUID.
func findLostCopy(scope cluster.Scope, ref *debvisorv1.LostCopyRef) (cluster.Entry[*storev1.LostCopy], error) {
	none := cluster.Entry[*storev1.LostCopy]{}
	uuid := strings.ToLower(ref.GetVm().GetVmId())
	vm, err := findVM(scope, ref.GetVm())
	if err == nil {
		uuid = vm.GetUuid()
	} else if !errdefs.Is(err, errdefs.NotFound) {
		return none, err
	}
	node := ref.GetNode().GetNodeId().GetId()
	entry, ok := scope.Snapshot().LostCopies[uuid+"/"+node]
	if !ok || !ownCopy(scope, entry.Value) {
		if err != nil {
			return none, err
		}
		return none, errdefs.New(errdefs.NotFound, "LOST_COPY_NOT_FOUND", "node %s has lost no copy of VM %s, as far as is told of; see hvctl failover list", clip(node), clip(ref.GetVm().GetVmId())).
			With("vm", clip(ref.GetVm().GetVmId())).With("node", clip(node))
	}
	return entry, nil
}

// reverse is the change that makes the jobs and ends the offer.
func reverse(scope cluster.Scope, entry cluster.Entry[*storev1.LostCopy], by string, now time.Time) (store.Change, error) {
	c := entry.Value
	switch {
	case c.GetState() != storev1.LostCopyState_LOST_COPY_STATE_GONE:
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "COPY_NOT_GONE", "the copy of VM %s on %s has not been destroyed yet (%s): nothing is replicated over it",
			c.GetVmName(), c.GetNode(), strings.ToLower(strings.TrimPrefix(c.GetState().String(), "LOST_COPY_STATE_"))).With("vm", c.GetVmUuid()).With("node", c.GetNode())
	case len(c.GetReverseJobs()) == 0:
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "NO_REPLICAS", "VM %s has no disks whose data could be replicated back to %s: images of RBD are where they were",
			c.GetVmName(), c.GetNode()).With("vm", c.GetVmUuid()).With("node", c.GetNode())
	}
	if _, known := scope.Snapshot().Nodes[c.GetNode()]; !known {
		return store.Change{}, unknownNode(c.GetNode())
	}
	key := store.LostCopyKey(c.GetVmUuid(), c.GetNode())
	change := store.Change{Require: []store.Condition{store.Unchanged(key, entry.ModRevision)}, Deletes: []string{key}}
	for _, b := range c.GetReverseJobs() {
		job := decode(b, &storev1.ReplicationJob{})
		if was, exists := everyJob(scope.Snapshot())[job.GetId()]; exists {
			return store.Change{}, errdefs.New(errdefs.AlreadyExists, "JOB_EXISTS", "there is a replication job %s already (%s); delete it first", shownJob(scope, job.GetId()), pairOf(was.Value)).With("job", job.GetId())
		}
		if err := fits(scope, everyJob(scope.Snapshot()), "node", job.GetId(), pairOf(job)); err != nil {
			return store.Change{}, err
		}
		guid, err := guidOf(scope.Snapshot(), job)
		if err != nil {
			return store.Change{}, err
		}
		job.DatasetGuid, job.CreatedAt, job.CreatedBy = guid, timestamppb.New(now), by
		change.Require = append(change.Require, store.Absent(store.ReplicationKey(job.GetId())))
		change.Puts = append(change.Puts, store.PutProto(store.ReplicationKey(job.GetId()), job))
	}
	return change, nil
}

// guidOf is the guid of the dataset that a job begins from, as its node last
// reported it.
func guidOf(s *cluster.Snapshot, job *storev1.ReplicationJob) (uint64, error) {
	inventory := decode(s.ZFS[job.GetSource()].Value.GetInventory(), &agentv1.ZfsInventory{})
	for _, d := range inventory.GetDatasets() {
		if d.GetName() == job.GetDataset() {
			return d.GetGuid(), nil
		}
	}
	return 0, errdefs.New(errdefs.FailedPrecondition, "DATASET_NOT_FOUND", "node %s reports no dataset %s any more: there is nothing to bring back", job.GetSource(), job.GetDataset()).
		With("node", job.GetSource()).With("dataset", job.GetDataset())
}
