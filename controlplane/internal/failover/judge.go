package failover

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Kind is the kind of the operations that this controller advances.
const Kind = "failover"

// Request asks whether a VM can be brought back.
type Request struct {
	// VM is the UUID.
	VM string
	// Target is the node to judge; empty: the best.
	Target string
	// Tenant is the caller's, as in planner.Request.
	Tenant string
	// Operation is the one that asks, which is not in its own way; empty: none.
	Operation string
	// NodeIsOff is the word of By that the VM's node is powered off.
	NodeIsOff bool
	By        string
	// AcceptLoss is how old replicas may be; 0: as the VM's policy says.
	AcceptLoss time.Duration
	// Images are what Ceph was found to have, Replicas the newest snapshots that
	// targets were found to have, by disk; nil: nobody has looked, which is no
	// reason yet.
	Images   map[string]Image
	Replicas map[string]Replica
	Now      time.Time
}

// Image is what Ceph has of an RBD disk.
type Image struct {
	ID *agentv1.RbdImageID
	// Why it cannot be fenced; an empty code: it can.
	Code, Message string
}

// Replica is what a target has of a disk on ZFS.
type Replica struct {
	// Node and Job are whose it is.
	Node, Job string
	Snapshot  *agentv1.ZfsSnapshotID
	Created   time.Time
	// Why it cannot be used; an empty code: it can.
	Code, Message string
}

// Verdict is what comes of a request.
type Verdict struct {
	Allowed bool
	// Reasons are all that speak against bringing the VM back wherever to.
	Reasons []planner.Reason
	// Again is a failover that has moved the placement and ended before the VM was
	// up: only its start is done again; nil: there is none.
	Again *storev1.Failover
	// VM is as in the records; Source is its node, Status how that stands.
	Status       cluster.Entry[*storev1.NodeStatus]
	VM           cluster.Entry[*storev1.VM]
	Name, Source string
	Target       string
	Nodes        []planner.Verdict
	Disks        []Disk
	FSID         string
	Definition   cluster.Entry[*storev1.Definition]
	Start        bool
	Proof        []string
	DataAge      time.Duration
	plan         planner.Result
	domain       *agentv1.Domain
	// off is that somebody has said that the node is.
	off bool
}

// The codes of reasons against bringing a VM back.
const (
	NodeReachable       = "NODE_REACHABLE"
	DefinitionUnknown   = "DEFINITION_UNKNOWN"
	BoundToHost         = "BOUND_TO_HOST"
	VMElsewhere         = "VM_ELSEWHERE"
	NotProtected        = "NOT_PROTECTED"
	NoProof             = "NO_PROOF"
	DataTooOld          = "DATA_TOO_OLD"
	DataLossNotAccepted = "DATA_LOSS_NOT_ACCEPTED"
	ReplicationRunning  = "REPLICATION_RUNNING"
	CephUnreachable     = "CEPH_UNREACHABLE"
	ReplicaNotThere     = "REPLICA_NOT_THERE"
	NoExclusiveLock     = "NO_EXCLUSIVE_LOCK"
	ImageShared         = "IMAGE_SHARED"
)

// Judge tells whether a VM can be brought back, where, and from what; or every
// reason why not. It is pure.
func Judge(s *cluster.Snapshot, r Request) *Verdict {
	v := &Verdict{Target: r.Target, domain: &agentv1.Domain{}}
	entry, ok := s.Within(r.Tenant).VM(r.VM)
	if !ok {
		v.no(planner.VMNotFound, "no VM has the UUID %q", r.VM)
		return v
	}
	v.VM, v.Name, v.Source = entry, cmp.Or(entry.Value.GetName(), r.VM), entry.Value.GetNode()
	if proto.Unmarshal(entry.Value.GetDomain(), v.domain) != nil {
		v.no(DefinitionUnknown, "the record of VM %s cannot be read", v.Name)
		return v
	}
	v.Status = s.Statuses[v.Source]
	v.Start = starts(v.domain.GetState())
	if v.again(s, r) {
		return v
	}
	if _, op := movedBy(s, entry.Value); op != nil && v.domain.GetState() == debvisorv1.VMState_VM_STATE_UNSPECIFIED {
		v.Start = op.GetFailover().GetStart() // nobody has told of it since
	}
	v.node(s)
	v.recovering(s)
	v.definition(s)
	v.elsewhere(s)
	v.readDisks(s, r)
	v.place(s, r)
	v.proof(s, r)
	v.age(s, r)
	v.Allowed = len(v.Reasons) == 0 && v.plan.Allowed
	return v
}

// starts tells whether a VM of that state is started again: all that took memory
// is, also a guest that was paused because its disks were gone.
func starts(state debvisorv1.VMState) bool {
	return state != debvisorv1.VMState_VM_STATE_SHUTOFF && state != debvisorv1.VMState_VM_STATE_CRASHED
}

func (v *Verdict) no(code, format string, args ...any) {
	v.Reasons = append(v.Reasons, planner.Reason{Code: code, Message: fmt.Sprintf(format, args...)})
}

// recovering refuses every VM while a restored cluster waits for what nodes run:
// the record of where this one was is as old as the backup.
func (v *Verdict) recovering(s *cluster.Snapshot) {
	switch waited := s.Unheard(); {
	case len(waited) > 0:
		v.no(cluster.CodeRecovering, "%s", cluster.MayRun(waited))
	case s.Recovering():
		v.no(cluster.CodeRecovering, "the cluster was restored from a backup, and what its nodes run is being taken over: try again in some seconds")
	}
}

// node refuses a VM whose node is heard.
func (v *Verdict) node(s *cluster.Snapshot) {
	if live := s.Statuses[v.Source].Value.GetLiveness(); live != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE {
		v.no(NodeReachable, "node %s, where VM %s is, is %s and not unreachable: it can be asked to do anything, such as to migrate the VM",
			v.Source, v.Name, livenessWord(live))
	}
}

func livenessWord(l storev1.NodeLiveness) string {
	if l == storev1.NodeLiveness_NODE_LIVENESS_UNSPECIFIED {
		return "in a state that is not known"
	}
	return strings.ToLower(strings.TrimPrefix(l.String(), "NODE_LIVENESS_"))
}

// definition finds what the VM is made of anew.
func (v *Verdict) definition(s *cluster.Snapshot) {
	vm := v.VM.Value
	known, ok := s.Definitions[vm.GetUuid()]
	d := known.Value
	switch {
	case !ok || d.GetXml() == "":
		v.no(DefinitionUnknown, "the definition of VM %s is not known: its node had not told of it", v.Name)
		return
	case d.GetNode() == vm.GetNode() && d.GetGeneration() == vm.GetGeneration():
	case broughtFrom(s, vm, d):
		// It was brought to a node that was lost before it told of it.
	default:
		v.no(DefinitionUnknown, "the definition of VM %s that is known is that of its time on %s (placement %d), and not on %s (placement %d)",
			v.Name, d.GetNode(), d.GetGeneration(), vm.GetNode(), vm.GetGeneration())
		return
	}
	if bound := d.GetBoundToHost(); len(bound) > 0 {
		v.no(BoundToHost, "VM %s needs more of %s than its definition and its disks: %s", v.Name, v.Source, strings.Join(bound, ", "))
	}
	if !v.domain.GetPersistent() {
		v.no(DefinitionUnknown, "VM %s has no persistent definition", v.Name)
	}
	v.Definition = known
}

// broughtFrom tells whether a definition is that from which the VM was brought to
// the node that it belongs to now.
func broughtFrom(s *cluster.Snapshot, vm *storev1.VM, d *storev1.Definition) bool {
	c, ok := s.LostCopies[vm.GetUuid()+"/"+d.GetNode()]
	return ok && c.Value.GetBroughtBackOn() == vm.GetNode() && c.Value.GetGeneration() == d.GetGeneration() &&
		vm.GetGeneration() == c.Value.GetGeneration()+1
}

// elsewhere refuses a VM that another node has, as far as is known.
func (v *Verdict) elsewhere(s *cluster.Snapshot) {
	var nodes []string
	for id, status := range s.Statuses {
		if id != v.Source && slices.Contains(status.Value.GetDomains(), v.VM.Value.GetUuid()) && !s.ConfirmedOff(id) && !s.HasLost(v.VM.Value.GetUuid(), id) {
			nodes = append(nodes, id)
		}
	}
	if len(nodes) > 0 {
		slices.Sort(nodes)
		v.no(VMElsewhere, "VM %s is on %s too, as far as is known: look at it there with virsh", v.Name, strings.Join(nodes, ", "))
	}
}

// place finds where the VM goes.
func (v *Verdict) place(s *cluster.Snapshot, r Request) {
	ask := planner.Request{
		VM: r.VM, Target: r.Target, TargetOnly: r.Operation != "", Operation: r.Operation, Tenant: r.Tenant,
		Recovery: &planner.Recovery{Starts: v.Start, Disk: func(node string, d *debvisorv1.VMDisk) (string, string) { return v.fits(s, r, node, d) }},
	}
	v.plan = planner.Plan(s, ask)
	if newest := v.newest(s, r); newest != "" && newest != v.plan.Target {
		ask.Target = newest
		v.plan = planner.Plan(s, ask)
	}
	v.Reasons = append(v.Reasons, v.plan.Reasons...)
	v.Nodes, v.Target = v.plan.Nodes, v.plan.Target
	if v.plan.Allowed || v.Target != "" || len(v.plan.Reasons) > 0 {
		v.choose(s, r, v.Target)
		return
	}
	// No node will do: what a dry run tells of disks and ages is of the best.
	if len(v.Nodes) > 0 {
		v.choose(s, r, v.Nodes[0].Node)
	}
}

// newest is, of the nodes that the VM can be brought back to, the one whose
// replicas lose the least, the better one of two that lose as much; "": it is not
// for this to say, or there are no replicas.
func (v *Verdict) newest(s *cluster.Snapshot, r Request) string {
	if r.Target != "" || !v.plan.Allowed {
		return ""
	}
	newest, least := "", time.Duration(0)
	for _, n := range v.plan.Nodes {
		if !n.Allowed {
			continue
		}
		v.choose(s, r, n.Node)
		if oldest := v.oldest(); oldest != nil && (newest == "" || oldest.Age < least) {
			newest, least = n.Node, oldest.Age
		}
	}
	return newest
}

// oldest is the disk that loses the most; nil: none is a replica.
func (v *Verdict) oldest() *Disk {
	var oldest *Disk
	for i, d := range v.Disks {
		if d.Dataset != "" && (oldest == nil || d.Age > oldest.Age) {
			oldest = &v.Disks[i]
		}
	}
	return oldest
}

// proof tells what keeps the former copy from writing.
func (v *Verdict) proof(s *cluster.Snapshot, r Request) {
	var images []string
	byWord := false
	for _, d := range v.Disks {
		switch {
		case d.Image != nil:
			images = append(images, cluster.RBDPath(d.Image))
		case d.writes:
			byWord = true
		}
	}
	if len(images) > 0 {
		v.Proof = append(v.Proof, fmt.Sprintf("whoever has %s open, or holds its lock, is put on the blocklist of Ceph cluster %s, and all primary OSDs have answered since", strings.Join(images, ", "), v.FSID))
	}
	node := s.Nodes[v.Source].Value
	word := ""
	switch {
	case r.NodeIsOff:
		word = fmt.Sprintf("%s is powered off, by the word of %s", v.Source, cmp.Or(r.By, "the caller"))
	case s.ConfirmedOff(v.Source):
		word = fmt.Sprintf("%s is powered off, by the word of %s (%s)", v.Source, node.GetOffConfirmedBy(), node.GetOffReason())
	}
	if v.off = word != ""; v.off {
		v.Proof = append(v.Proof, word)
	}
	if (byWord || len(images) == 0) && word == "" {
		v.no(NoProof, "nothing proves that the copy of VM %s on %s writes no more: make sure that %s is powered off, and say so (--node-is-off, or hvctl node confirm-off)",
			v.Name, v.Source, v.Source)
	}
}

// age refuses replicas that are older than may be lost.
func (v *Verdict) age(_ *cluster.Snapshot, r Request) {
	oldest := v.oldest()
	if oldest == nil {
		return
	}
	v.DataAge = oldest.Age
	may, whose := r.AcceptLoss, "was accepted"
	if may == 0 {
		policy := &debvisorv1.VMPolicy{}
		if proto.Unmarshal(v.VM.Value.GetPolicy(), policy) == nil {
			may, whose = time.Duration(policy.GetRpoSeconds())*time.Second, "the VM's policy allows (rpo_seconds)"
		}
	}
	switch {
	case may == 0:
		v.no(DataLossNotAccepted, "the replica of disk %s of VM %s is %s old, and nobody has said how much may be lost: say so (--accept-data-loss), or in the VM's policy (rpo_seconds)",
			oldest.Target, v.Name, oldest.Age.Round(time.Second))
	case oldest.Age > may:
		v.no(DataTooOld, "the replica of disk %s of VM %s (%s) is %s old, and %s %s",
			oldest.Target, v.Name, oldest.Snapshot.GetName(), oldest.Age.Round(time.Second), may, whose)
	}
}

// Refusal says in one text why the VM cannot be brought back.
func (v *Verdict) Refusal() string {
	parts := make([]string, 0, len(v.Reasons))
	for _, reason := range v.Reasons {
		parts = append(parts, reason.Message)
	}
	of := planner.Result{Target: v.Target, Nodes: v.Nodes}
	if !v.plan.Allowed && len(v.plan.Reasons) == 0 && v.VM.Value != nil {
		parts = append(parts, of.Refusal())
	}
	return strings.Join(parts, "; ")
}

// Codes are the codes of what Refusal tells; those against a node after its id
// and a colon, but for the target that was asked for.
func (v *Verdict) Codes() []string {
	var codes []string
	for _, reason := range v.Reasons {
		codes = append(codes, reason.Code)
	}
	if v.plan.Allowed {
		return codes
	}
	of := planner.Result{Target: v.Target, Nodes: v.Nodes}
	return append(codes, of.Codes()...)
}

// Code is the first of the reasons'.
func (v *Verdict) Code() string {
	if len(v.Reasons) > 0 {
		return v.Reasons[0].Code
	}
	return "NO_TARGET"
}
