package planner

import debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"

// EvacuationRequest asks for the plan of emptying a node.
type EvacuationRequest struct {
	Node string
	// AllowDowntime lets guests be shut down that cannot move live.
	AllowDowntime bool
	// Parallel bounds the moves at once from one node, and to one; 0: the
	// nodes' own limits, which hold in any case.
	Parallel int
	// Only are the UUIDs of the VMs that are to move; nil: all.
	Only []string
	// Tenant is whose VMs move; empty: all.
	Tenant string
}

// RebalanceRequest asks for the plan of evening out the nodes.
type RebalanceRequest struct {
	// MaxMoves bounds the plan; 0: 20.
	MaxMoves int
	// Nodes are those that take part; none: all.
	Nodes []string
	// Parallel is as in EvacuationRequest.
	Parallel int
}

// MovePlan is an ordered list of moves.
type MovePlan struct {
	// Moves are in the order in which they begin: each is valid once those of
	// the waves before it are done, whatever those of its own wave do.
	Moves []Move
	// Blocked are the VMs that should move and cannot.
	Blocked []Blocked
	// Before and After are the nodes' imbalance: the standard deviation of the
	// share of memory that their VMs take, 0 to 1.
	Before, After float64
	// Estimate is of the whole plan: duration of all waves, bytes of all moves,
	// the longest downtime of any VM.
	Estimate *debvisorv1.MoveEstimate
	// Questions are what Facts did not know.
	Questions []Question
}

// Move is one move of a plan.
type Move struct {
	// VM is the UUID.
	VM, Name, Source, Target string
	Method                   debvisorv1.MoveMethod
	Estimate                 *debvisorv1.MoveEstimate
	// Wave is from 0. Moves of one wave may run at once.
	Wave int
}

// Blocked is a VM that should move and cannot.
type Blocked struct {
	// VM is the UUID.
	VM, Name string
	// Reasons are those against the VM, then one for each code that speaks
	// against nodes, which it names.
	Reasons []Reason
}
