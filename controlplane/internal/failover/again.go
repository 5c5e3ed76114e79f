package failover

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// again judges a VM that was brought to a node which is heard and has never told of
// it: the failover that moved the placement has ended before the VM was up. What
// proved that its former copy cannot write does so still. False: it is no such VM.
func (v *Verdict) again(s *cluster.Snapshot, r Request) bool {
	vm := v.VM.Value
	if v.domain.GetState() != debvisorv1.VMState_VM_STATE_UNSPECIFIED || !heard(s, vm.GetNode()) {
		return false
	}
	c, op := movedBy(s, vm)
	if op == nil {
		return false
	}
	v.Again, v.Source, v.Target, v.Start = op.GetFailover(), c.GetNode(), vm.GetNode(), op.GetFailover().GetStart()
	v.Status = s.Statuses[v.Source]
	v.Proof, v.FSID, v.Definition = c.GetProof(), c.GetFsid(), s.Definitions[vm.GetUuid()]
	for _, b := range v.Again.GetDisks() {
		one := Disk{FailoverDisk: &agentv1.FailoverDisk{}}
		if proto.Unmarshal(b, one.FailoverDisk) == nil {
			v.Disks = append(v.Disks, one)
		}
	}
	if r.Target != "" && r.Target != v.Target {
		v.no("PLACEMENT_CHANGED", "VM %s was brought to %s already, and belongs there with its disks: bring it up there", v.Name, v.Target)
	}
	if len(vm.GetConflictNodes()) > 0 {
		v.no(planner.VMConflict, "VM %s is in conflict: more than one node reports it running", v.Name)
	}
	if holder, held := s.Within(r.Tenant).Holder("vm/" + vm.GetUuid()); held && (holder == "" || holder != r.Operation) {
		v.no(planner.VMInUse, "VM %s is in use", v.Name)
	}
	v.plan.Allowed = true
	v.Allowed = len(v.Reasons) == 0
	return true
}

// movedBy finds what has brought a VM to the node that it belongs to; nil: nothing
// that is still told of.
func movedBy(s *cluster.Snapshot, vm *storev1.VM) (*storev1.LostCopy, *storev1.Operation) {
	for _, entry := range s.LostCopies {
		c := entry.Value
		if c.GetVmUuid() != vm.GetUuid() || c.GetBroughtBackOn() != vm.GetNode() || c.GetGeneration()+1 != vm.GetGeneration() {
			continue
		}
		if op := s.Operations[c.GetOperation()].Value; op.GetFailover() != nil && task.OpEnded(op.GetState()) {
			return c, op
		}
	}
	return nil, nil
}

// again does the start of a failover that ended before the VM was up once more.
func (d *decision) again(v *Verdict) *step {
	was := v.Again
	d.f.Phase, d.f.Attempt, d.f.AttemptAt = phaseStart, 1, timestamppb.New(d.now)
	d.f.Source, d.f.Generation, d.f.Target, d.f.Start = was.GetSource(), was.GetGeneration(), was.GetTarget(), was.GetStart()
	d.f.Disks, d.f.Fsid, d.f.Evidence, d.f.Proof, d.f.DataAgeSeconds = was.GetDisks(), was.GetFsid(), was.GetEvidence(), was.GetProof(), was.GetDataAgeSeconds()
	definition := v.Definition.Value.GetXml()
	if _, op := movedBy(d.snapshot, v.VM.Value); op != nil {
		for _, entry := range d.snapshot.TasksOf(op.GetId()) {
			if text := definitionIn(entry.Value); text != "" {
				definition = text
			}
		}
	}
	if definition == "" {
		return d.fail(DefinitionUnknown, "the definition of VM "+d.name()+" is not known any more: define it on "+d.f.GetTarget()+" with virsh")
	}
	s := d.startTask(stepAgain, definition)
	s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(d.f.GetVmUuid()), v.VM.ModRevision))
	return s
}
