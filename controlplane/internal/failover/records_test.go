package failover

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	opID   = "op-1"
	vmID   = "6f2f3a1e-0000-4000-8000-000000000001"
	fsid   = "11111111-2222-4333-8444-555555555555"
	client = "192.0.2.1:0/4711"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// facts makes a snapshot of facts, comma-separated. The VM "web" of node "a",
// placement 4, which runs from image vms/web, and whose definition is known; a is
// unreachable, b and c are online, see the image's cluster and have room; and a
// failover of it to b, a minute old, unless they say otherwise:
//
//	pending | fence | start       the operation; without: there is none
//	try N                         the attempt of its phase
//	cancel                        its end was asked for
//	undoing CODE                  why it is being undone
//	word, loss D                  that a is off was said with it; so much may be lost
//	zfs | both                    its disk is tank/web, whose replica is back/web on b, 2m old; or it has both
//	rpo D, shut                   its policy's RPO; it was shut off
//	norepl, other                 there is no such job; there is another to c, too
//	receiving                     a run of the job is at work on b
//	replica GUID                  b's newest snapshot, as it was found
//	file, shareable, unknownceph  what is the matter with its disk
//	alsodisk                      another VM has its image
//	nolock                        the image cannot be fenced, as it was found
//	nodef, olddef, bound, transient   what is the matter with its definition
//	conflict, moved, novm         and with the VM
//	up NODE, down NODE, off NODE, nonode NODE   how nodes stand
//	seen                          a was heard since the operation was asked for
//	blind NODE                    it does not see the cluster
//	from ADDRESS                  a's clients come to the cluster from there
//	holds NODE                    it has the VM too
//	lost NODE STATE               its copy of the VM is lost
//	unsaid                        nobody has told of the VM since it was brought back
//	task KIND[/N] STATE [CODE]    a task of the operation, an hour old if it has ended
//	entries                       its evidence: who is on the blocklist
//	interrupted, now, asked       it broke off, it has just ended, it was asked to end
//	reinstalled                   another installation of a answers
type facts struct {
	t     *testing.T
	d     *cluster.Draft
	op    *storev1.Operation
	f     *storev1.Failover
	vm    *storev1.VM
	dom   *agentv1.Domain
	def   *storev1.Definition
	job   *storev1.ReplicationJob
	also  *storev1.ReplicationJob
	nodes map[string]*storev1.Node
	state map[string]*storev1.NodeStatus
	ceph  map[string]*agentv1.CephInventory
	disks []*agentv1.FailoverDisk
	tasks []*storev1.Task
	last  *agentv1.TaskOutcome
	copy  *storev1.LostCopy
	req   Request
}

func rbdDisk() *debvisorv1.VMDisk {
	return &debvisorv1.VMDisk{Target: "vda", Type: "network", Source: "vms/web", StorageId: "rbd:" + fsid + "/vms", Shared: true}
}

func zfsDisk() *debvisorv1.VMDisk {
	return &debvisorv1.VMDisk{Target: "vdb", Type: "block", Source: "/dev/zvol/tank/web", ZfsDataset: "tank/web", Format: "raw"}
}

func image() *agentv1.RbdImageID {
	return &agentv1.RbdImageID{Pool: "vms", Name: "web", Id: "abc"}
}

func newFacts(t *testing.T) *facts {
	t.Helper()
	x := &facts{
		t: t, d: cluster.Empty().Draft(),
		vm:  &storev1.VM{Uuid: vmID, Name: "web", Node: "a", Generation: 4},
		dom: &agentv1.Domain{Uuid: vmID, Name: "web", Persistent: true, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 1 << 30},
		def: &storev1.Definition{VmUuid: vmID, Node: "a", Generation: 4, Xml: "<domain/>"},
		job: &storev1.ReplicationJob{
			Id: "j", Source: "a", Dataset: "tank/web", Target: "b", TargetDataset: "back/web", DatasetGuid: 7, CursorName: "s1", CursorGuid: 11,
			CursorCreated: timestamppb.New(noon.Add(-3 * time.Minute)),
		},
		nodes: map[string]*storev1.Node{}, state: map[string]*storev1.NodeStatus{}, ceph: map[string]*agentv1.CephInventory{},
		req: Request{VM: vmID, Now: noon.Add(-time.Minute)},
	}
	x.dom.Disks = []*debvisorv1.VMDisk{rbdDisk()}
	x.disks = []*agentv1.FailoverDisk{{Target: "vda", Image: image()}}
	capacity := encoded(&debvisorv1.NodeCapacity{Cpus: 4, MemoryBytes: 16 << 30, MemoryAvailableBytes: 12 << 30})
	for _, id := range []string{"a", "b", "c"} {
		x.nodes[id] = &storev1.Node{Id: id}
		x.state[id] = &storev1.NodeStatus{
			Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, BootId: "boot-" + id, JournalId: "journal-" + id, Capacity: capacity,
			LastSeen: timestamppb.New(noon.Add(-5 * time.Minute)),
		}
		x.ceph[id] = &agentv1.CephInventory{Fsid: fsid, Pools: []*agentv1.CephPool{{Name: "vms"}}}
	}
	x.state["a"].Liveness, x.state["a"].Domains = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, []string{vmID}
	x.f = &storev1.Failover{
		VmUuid: vmID, VmName: "web", Source: "a", Generation: 4, Target: "b", Fsid: fsid, Attempt: 1, Start: true,
		SourceBootId: "boot-a", SourceLastSeen: x.state["a"].GetLastSeen(),
	}
	return x
}

// say takes one fact.
func (x *facts) say(fact string) {
	x.t.Helper()
	w := strings.Fields(fact)
	arg := func(i int) string {
		if len(w) > i {
			return w[i]
		}
		return ""
	}
	switch w[0] {
	case "pending", "fence", "start":
		x.operation(w[0])
	case "try":
		n, _ := strconv.Atoi(arg(1))
		x.f.Attempt = uint32(n)
	case "cancel":
		x.op.CancelRequested = true
	case "undoing":
		x.op.ErrorCode, x.op.ErrorMessage = arg(1), "because of "+arg(1)
	case "up", "down", "off", "nonode", "seen", "blind", "holds", "reinstalled":
		x.node(w[0], arg(1))
	case "from":
		x.ceph["a"].Address = arg(1)
	case "task", "entries", "interrupted", "now", "asked":
		x.taskFact(w)
	case "lost":
		state := storev1.LostCopyState(storev1.LostCopyState_value["LOST_COPY_STATE_"+strings.ToUpper(arg(2))])
		x.copy = &storev1.LostCopy{
			VmUuid: vmID, VmName: "web", Node: arg(1), Generation: 4, BroughtBackOn: "b", Operation: opID, State: state, Fsid: fsid, At: timestamppb.New(noon.Add(-time.Hour)),
			Attempt: 1, UnfenceNode: "b", JournalId: "journal-" + arg(1), Evidence: encoded(&agentv1.FenceEvidence{Fsid: fsid, Blocklisted: []string{client}}),
		}
	default:
		x.thing(w[0], arg(1))
	}
}

func (x *facts) operation(state string) {
	x.op = &storev1.Operation{Id: opID, Kind: Kind, State: task.OpRunning, Resources: []string{"vm/" + vmID}, CreatedAt: timestamppb.New(noon.Add(-time.Minute)), StartedAt: timestamppb.New(noon)}
	x.d.InUse.Put("vm/"+vmID, opID, 6)
	switch state {
	case "pending":
		x.op.State, x.op.StartedAt, x.f.Attempt = task.OpPending, nil, 0
	case "fence":
		x.f.Phase = phaseFence
	case "start":
		x.f.Phase = phaseStart
		x.vm.Node, x.vm.Generation = "b", 5
	}
}

func (x *facts) node(what, id string) {
	switch what {
	case "up":
		x.state[id].Liveness = storev1.NodeLiveness_NODE_LIVENESS_ONLINE
	case "down", "off":
		x.state[id].Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
		if what == "off" {
			x.nodes[id].OffConfirmedAt, x.nodes[id].OffBootId, x.nodes[id].OffLastSeen = timestamppb.New(noon), "boot-"+id, x.state[id].GetLastSeen()
			x.nodes[id].OffConfirmedBy, x.nodes[id].OffReason = "ada", "seen"
		}
	case "nonode":
		delete(x.nodes, id)
		delete(x.state, id)
	case "seen":
		x.state["a"].LastSeen = timestamppb.New(noon.Add(-time.Second))
	case "blind":
		x.ceph[id].Error = "it does not answer"
	case "holds":
		x.state[id].Domains = []string{vmID}
	case "reinstalled":
		x.state["a"].JournalId = "another"
	}
}

// thing takes a fact about the VM, its disks and its definition.
func (x *facts) thing(what, arg string) {
	x.t.Helper()
	span, _ := time.ParseDuration(arg)
	switch what {
	case "word":
		x.f.NodeIsOff, x.req.NodeIsOff = true, true
	case "loss":
		x.f.AcceptDataLossSeconds, x.req.AcceptLoss = uint64(span.Seconds()), span
	case "zfs", "both":
		x.zfs(what == "both")
	case "rpo":
		x.vm.Policy = encoded(&debvisorv1.VMPolicy{RpoSeconds: uint32(span.Seconds())})
	case "shut":
		x.dom.State = debvisorv1.VMState_VM_STATE_SHUTOFF
	case "unsaid":
		x.dom.State = debvisorv1.VMState_VM_STATE_UNSPECIFIED
	case "norepl":
		x.job = nil
	case "other":
		x.also = &storev1.ReplicationJob{Id: "k", Source: "a", Dataset: "tank/web", Target: "c", TargetDataset: "back/web", Policy: "p"}
	case "second": // another replica, on c, of a snapshot that is as old before noon
		age, err := time.ParseDuration(arg)
		if err != nil {
			x.t.Fatal(err)
		}
		x.also = &storev1.ReplicationJob{
			Id: "k", Source: "a", Dataset: "tank/web", Target: "c", TargetDataset: "back/web", DatasetGuid: 7, CursorName: "s3", CursorGuid: 13,
			CursorCreated: timestamppb.New(noon.Add(-age)),
		}
		x.d.ZFS.Put("c", &storev1.NodeZFS{Node: "c", Inventory: encoded(&agentv1.ZfsInventory{Datasets: []*agentv1.ZfsDataset{{Name: "back/web", ReplicationJob: "k"}}})}, 3)
	case "receiving":
		x.d.InUse.Put("replication/j", "op-run", 6)
		x.d.Tasks.Put("op-run/1/replicate-receive", &storev1.Task{Id: "op-run/1/replicate-receive", OperationId: "op-run", Node: "b", State: task.Recorded(task.Running)}, 6)
	case "replica":
		guid, _ := strconv.ParseUint(arg, 10, 64)
		x.req.Replicas = map[string]Replica{"vdb": {
			Node: "b", Job: "j", Snapshot: &agentv1.ZfsSnapshotID{Dataset: "back/web", Name: "s2", Guid: guid}, Created: noon.Add(-90 * time.Second),
		}}
	case "file":
		x.dom.Disks[0] = &debvisorv1.VMDisk{Target: "vda", Type: "file", Source: "/srv/web.raw"}
	case "shareable":
		x.dom.Disks[0].Shareable = true
	case "unknownceph":
		x.dom.Disks[0].StorageId = "rbd:192.0.2.9:6789/vms"
	case "alsodisk":
		x.d.VMs.Put("other", &storev1.VM{Uuid: "other", Name: "db", Node: "c", Domain: encoded(&agentv1.Domain{Uuid: "other", Disks: []*debvisorv1.VMDisk{rbdDisk()}})}, 3)
	case "nolock":
		x.req.Images = map[string]Image{"vda": {Code: NoExclusiveLock, Message: "it lacks exclusive-lock"}}
	case "nodef":
		x.def = nil
	case "olddef":
		x.def.Generation = 3
	case "bound":
		x.def.BoundToHost = []string{"a TPM"}
	case "transient":
		x.dom.Persistent = false
	case "conflict":
		x.vm.ConflictNodes = []string{"a", "b"}
	case "moved":
		x.vm.Node, x.vm.Generation = "c", 9
	case "novm":
		x.vm = nil
	default:
		x.t.Fatalf("what is %q?", what)
	}
}

func (x *facts) zfs(both bool) {
	disk := &agentv1.FailoverDisk{
		Target: "vdb", Dataset: "back/web", JobId: "j", Snapshot: &agentv1.ZfsSnapshotID{Dataset: "back/web", Name: "s1", Guid: 11},
		SourcePath: "/dev/zvol/tank/web", Path: "/dev/zvol/back/web", ReverseJobId: "j-back",
	}
	x.f.DataAgeSeconds = 120
	if both {
		x.dom.Disks, x.disks = append(x.dom.Disks, zfsDisk()), append(x.disks, disk)
		return
	}
	x.dom.Disks, x.disks, x.f.Fsid = []*debvisorv1.VMDisk{zfsDisk()}, []*agentv1.FailoverDisk{disk}, ""
}

func (x *facts) taskFact(w []string) {
	x.t.Helper()
	if w[0] == "task" {
		kind, attempt, _ := strings.Cut(w[1], "/")
		if attempt == "" {
			attempt = "1"
		}
		state, ok := agentv1.TaskState_value["TASK_STATE_"+strings.ToUpper(w[2])]
		if !ok {
			x.t.Fatalf("what state is %q?", w[2])
		}
		x.last = &agentv1.TaskOutcome{}
		if len(w) > 3 {
			x.last.ErrorCode, x.last.ErrorMessage = w[3], "the agent says "+w[3]
		}
		if kind == taskFence && task.State(storev1.TaskState(state)) == task.Succeeded {
			x.last.Rbd = &agentv1.RbdOutcome{Evidence: &agentv1.FenceEvidence{Fsid: fsid, Images: []*agentv1.FencedImage{{Image: image()}}}}
		}
		if kind == taskStart {
			x.last.Failover = &agentv1.FailoverOutcome{Running: true}
		}
		k := &storev1.Task{Id: opID + "/" + attempt + "/" + kind, OperationId: opID, Node: "b", State: storev1.TaskState(state), Outcome: encoded(x.last)}
		if kind == taskDiscard {
			k.Node = "a"
		}
		if task.Ended(task.State(k.GetState())) {
			k.EndedAt = timestamppb.New(noon.Add(-time.Hour))
		}
		x.tasks = append(x.tasks, k)
		return
	}
	k := x.tasks[len(x.tasks)-1]
	switch w[0] {
	case "entries":
		if x.last.GetRbd() == nil {
			x.last.Rbd = &agentv1.RbdOutcome{Evidence: &agentv1.FenceEvidence{Fsid: fsid}}
		}
		x.last.Rbd.Evidence.Blocklisted = []string{client}
		x.last.Rbd.Evidence.Images = []*agentv1.FencedImage{{Image: image(), Lockers: []*agentv1.CephClient{{Address: client}}}}
	case "interrupted":
		x.last.Interrupted = true
	case "now":
		k.EndedAt = timestamppb.New(noon)
	case "asked":
		k.CancelRequested = true
	}
	k.Outcome = encoded(x.last)
}

// snapshot makes the records of all that was said.
func (x *facts) snapshot() *cluster.Snapshot {
	x.t.Helper()
	for id, n := range x.nodes {
		x.d.Nodes.Put(id, n, 3)
	}
	for id, s := range x.state {
		x.d.Statuses.Put(id, s, 3)
		x.d.Ceph.Put(id, &storev1.NodeCeph{Node: id, Inventory: encoded(x.ceph[id])}, 3)
	}
	x.d.ZFS.Put("b", &storev1.NodeZFS{Node: "b", Inventory: encoded(&agentv1.ZfsInventory{Datasets: []*agentv1.ZfsDataset{{Name: "back/web", ReplicationJob: "j"}}})}, 3)
	if x.vm != nil {
		x.vm.Domain = encoded(x.dom)
		x.d.VMs.Put(vmID, x.vm, 4)
	}
	if x.def != nil {
		x.d.Definitions.Put(vmID, x.def, 4)
	}
	for _, job := range []*storev1.ReplicationJob{x.job, x.also} {
		if job != nil {
			x.d.Replications.Put(job.GetId(), job, 4)
		}
	}
	for _, k := range x.tasks {
		x.d.Tasks.Put(k.GetId(), k, 7)
	}
	if x.copy != nil {
		x.d.LostCopies.Put(vmID+"/"+x.copy.GetNode(), x.copy, 8)
	}
	if x.op != nil {
		for _, disk := range x.disks {
			x.f.Disks = append(x.f.Disks, encoded(disk))
		}
		x.op.Detail = &storev1.Operation_Failover{Failover: x.f}
		x.d.Operations.Put(opID, x.op, 5)
	}
	return x.d.Snapshot(9)
}

func records(t *testing.T, said string) (*cluster.Snapshot, *facts) {
	t.Helper()
	x := newFacts(t)
	for fact := range strings.SplitSeq(said, ",") {
		if fact = strings.TrimSpace(fact); fact != "" {
			x.say(fact)
		}
	}
	return x.snapshot(), x
}

// told is a step in a word or two: its name, the task that it writes, why the
// operation has ended or what it waits for.
func told(s *step) string {
	if s == nil {
		return ""
	}
	words := []string{string(s.name)}
	if s.task != nil {
		words = append(words, strings.TrimPrefix(s.task.GetId(), opID+"/"))
	}
	switch {
	case s.copy != nil && s.name != stepStart && s.name != stepDiscard && s.name != stepUnfence:
		words = append(words, strings.ToLower(strings.TrimPrefix(s.copy.GetState().String(), "LOST_COPY_STATE_")))
	case s.name == stepNote:
		words = append(words, s.op.GetStep())
	case s.op.GetErrorCode() != "":
		words = append(words, s.op.GetErrorCode())
	}
	return strings.Join(words, " ")
}

func specOf(t *testing.T, s *step) *agentv1.TaskSpec {
	t.Helper()
	spec := &agentv1.TaskSpec{}
	if s == nil || s.task == nil || proto.Unmarshal(s.task.GetSpec(), spec) != nil {
		t.Fatalf("%s writes no task", told(s))
	}
	return spec
}

func contains(codes []string, code string) bool { return slices.Contains(codes, code) }
