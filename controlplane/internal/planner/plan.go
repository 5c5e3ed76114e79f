// Package planner decides whether a VM can move and where to. It is pure: a
// snapshot goes in, a plan comes out; it does no I/O and has no clock. It gives
// every reason for every node at once, each with the figures it was decided on.
//
// What other operations will still take is derived from the unfinished ones in
// the snapshot, so plans must be made one after another to take each other into
// account.
package planner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Request asks whether a VM can move.
type Request struct {
	// VM is the UUID.
	VM string
	// Source is where the caller believes the VM to be; empty: wherever it is.
	Source string
	// Target is the node to judge; empty: the best.
	Target string
	// Operation is the one that plans, which is not in its own way; empty: none.
	Operation string
	// AllowDowntime lets a guest be shut down that cannot move live.
	AllowDowntime bool
	// Options tune the move; nil: defaults.
	Options *debvisorv1.MigrateOptions
	// Tenant is the caller's: another's VM does not exist for it; empty: all do.
	Tenant string
	// Facts is what is known of CPUs; nil: they are not judged.
	Facts Facts
}

// Reason is one reason against a move.
type Reason struct {
	// Code is stable and for programs: one of the constants.
	Code string
	// Message is for people, with the figures.
	Message string
}

// The codes of reasons.
const (
	VMNotFound      = "VM_NOT_FOUND"
	VMConflict      = "VM_CONFLICT"
	VMInUse         = "VM_IN_USE"
	VMNotRunning    = "VM_NOT_RUNNING"
	DiskCache       = "DISK_CACHE_UNSAFE"
	WrongSource     = "WRONG_SOURCE"
	SourceNotHeard  = "SOURCE_NOT_REACHABLE"
	SourceLibvirt   = "SOURCE_LIBVIRT_DOWN"
	NodeNotFound    = "NODE_NOT_FOUND"
	NodeNotHeard    = "NODE_NOT_REACHABLE"
	NodeLibvirt     = "NODE_LIBVIRT_DOWN"
	NodeCordoned    = "NODE_CORDONED"
	AlreadyThere    = "ALREADY_THERE"
	CapacityUnknown = "CAPACITY_UNKNOWN"
	Memory          = "MEMORY"
	NameClash       = "NAME_CLASH"
	UUIDClash       = "UUID_CLASH"
	// VMTransient is a VM that would be gone once it is shut down.
	VMTransient = "VM_TRANSIENT"
	// PauseNotAllowed is a deadline that pauses a VM whose policy forbids it.
	PauseNotAllowed = "PAUSE_NOT_ALLOWED"
	// NotLive is a VM that runs, cannot move live and may not be shut down; why
	// is in Result.NotLive.
	NotLive         = "NOT_LIVE"
	CPUCount        = "CPU_COUNT"
	CPUIncompatible = "CPU_INCOMPATIBLE"
	CPUNotCompared  = "CPU_NOT_COMPARED"
	Arch            = "ARCH"
	VirtType        = "VIRT_TYPE"
	MachineType     = "MACHINE_TYPE"
	QEMUOlder       = "QEMU_OLDER"
	DiskUnreachable = "DISK_UNREACHABLE"
	DiskSpace       = "DISK_SPACE"
	DiskNotCopyable = "DISK_NOT_COPYABLE"
	Network         = "NETWORK"
	HostDevice      = "HOST_DEVICE"
	SharedDirectory = "SHARED_DIRECTORY"
	Snapshots       = "SNAPSHOTS"
	AntiAffinity    = "ANTI_AFFINITY"
)

// Verdict is what the planner thinks of one node as a target.
type Verdict struct {
	Node    string
	Allowed bool
	Reasons []Reason
	// Score is higher the better the node; of meaning within one plan only. It
	// is the sum of weight times value of its parts.
	Score float64
	Parts []ScorePart
	// Method is how the VM would move there; unspecified where it cannot.
	Method debvisorv1.MoveMethod
	// Estimate is what the move would take; nil where there is no method.
	Estimate *debvisorv1.MoveEstimate
}

// ScorePart is one part of a score.
type ScorePart struct {
	Name   string
	Weight float64
	// Value is 0 to 1.
	Value float64
}

// Result is a plan, or why there is none.
type Result struct {
	Allowed bool
	// VM is the UUID, Name the VM's name, Source the node that it is on.
	VM, Name, Source string
	// Target is the node that was asked for, or chosen; empty where none can be.
	Target string
	// Reasons speak against moving the VM wherever to.
	Reasons []Reason
	// Nodes are the verdicts on all nodes, best first.
	Nodes []Verdict
	// Method and Estimate are those of the target; nil and unspecified without one.
	Method   debvisorv1.MoveMethod
	Estimate *debvisorv1.MoveEstimate
	// NotLive is why a VM that runs cannot move live, wherever to; empty: it can.
	NotLive []Reason
	// Disks are the VM's, as the two tasks of a move to the target are told.
	Disks []*agentv1.DiskTransfer
	// Questions are what Facts did not know.
	Questions []Question
}

// Plan judges a move. It always has a result: a VM or a target that does not
// exist is a reason like any other.
func Plan(s *cluster.Snapshot, r Request) Result { return NewWorld(s, r.Facts).Plan(r) }

// Plan is as the function of that name. A request's Facts go before the world's.
func (w *World) Plan(r Request) Result {
	s := w.snapshot
	result := Result{VM: r.VM, Target: r.Target}
	entry, ok := s.VMs[r.VM]
	if !ok {
		result.Reasons = []Reason{{VMNotFound, fmt.Sprintf("no VM has the UUID %q", r.VM)}}
		return result
	}
	vm := newGuest(entry.Value)
	result.Name, result.Source = vm.name, vm.node
	result.Reasons = against(s, r, vm)
	reserved := reservations(s, r.Operation)
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		result.Nodes = append(result.Nodes, judge(s, id, vm, reserved[id]))
	}
	slices.SortStableFunc(result.Nodes, better)
	result.choose()
	return result
}

// choose settles the target and whether the move is allowed.
func (r *Result) choose() {
	if r.Target == "" && len(r.Nodes) > 0 && r.Nodes[0].Allowed {
		r.Target = r.Nodes[0].Node
	}
	at := slices.IndexFunc(r.Nodes, func(v Verdict) bool { return v.Node == r.Target })
	if at < 0 && r.Target != "" {
		unknown := Reason{NodeNotFound, fmt.Sprintf("no node is called %q", r.Target)}
		r.Nodes = append(r.Nodes, Verdict{Node: r.Target, Reasons: []Reason{unknown}})
		return
	}
	r.Allowed = at >= 0 && r.Nodes[at].Allowed && len(r.Reasons) == 0
}

// Refusal says in one text why the move is not allowed: all reasons against the
// VM, and those against the target or, where none was asked for, every node.
func (r *Result) Refusal() string {
	var parts []string
	for _, reason := range r.Reasons {
		parts = append(parts, reason.Message)
	}
	for _, v := range r.Nodes {
		if v.Allowed || r.Target != "" && v.Node != r.Target {
			continue
		}
		for _, reason := range v.Reasons {
			parts = append(parts, v.Node+": "+reason.Message)
		}
	}
	if len(r.Nodes) == 0 && len(parts) == 0 {
		parts = append(parts, "there are no nodes")
	}
	return strings.Join(parts, "; ")
}

// Codes are the codes of what Refusal tells: of reasons against the VM as they
// are, of those against a node after its id and a colon.
func (r *Result) Codes() []string {
	var codes []string
	for _, reason := range r.Reasons {
		codes = append(codes, reason.Code)
	}
	for _, v := range r.Nodes {
		if v.Allowed || r.Target != "" && v.Node != r.Target {
			continue
		}
		for _, reason := range v.Reasons {
			codes = append(codes, v.Node+":"+reason.Code)
		}
	}
	return codes
}

// Has tells whether a reason with that code speaks against the VM or, if one
// was asked for, the target.
func (r *Result) Has(code string) bool {
	is := func(reason Reason) bool { return reason.Code == code }
	if slices.ContainsFunc(r.Reasons, is) {
		return true
	}
	return slices.ContainsFunc(r.Nodes, func(v Verdict) bool {
		return v.Node == r.Target && slices.ContainsFunc(v.Reasons, is)
	})
}

// Only tells whether nothing but reasons of that code is in the way: of none
// against the VM, and of those against the target or, where none was asked for,
// against some node.
func (r *Result) Only(code string) bool {
	if r.Allowed || len(r.Reasons) > 0 {
		return false
	}
	other := func(reason Reason) bool { return reason.Code != code }
	return slices.ContainsFunc(r.Nodes, func(v Verdict) bool {
		return (r.Target == "" || v.Node == r.Target) && !slices.ContainsFunc(v.Reasons, other)
	})
}

func better(a, b Verdict) int {
	if a.Allowed != b.Allowed {
		if a.Allowed {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Node, b.Node))
}

// guest is a VM as the planner needs it.
type guest struct {
	uuid, name, node string
	domain           *agentv1.Domain
	conflict         []string
}

// newGuest reads a record. A domain that cannot be decoded is as one that was
// never reported: its state is unknown, so it does not move.
func newGuest(vm *storev1.VM) guest {
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), domain); err != nil {
		domain = &agentv1.Domain{}
	}
	return guest{
		uuid: vm.GetUuid(), name: vm.GetName(), node: vm.GetNode(),
		domain: domain, conflict: vm.GetConflictNodes(),
	}
}
