package planner

import "github.com/debvisor/debvisor/controlplane/internal/cluster"

// World is a snapshot made ready for planning. It is for one goroutine.
type World struct {
	snapshot *cluster.Snapshot
	facts    Facts
}

// NewWorld reads a snapshot once for any number of plans. Facts may be nil: then
// CPUs are not judged.
func NewWorld(s *cluster.Snapshot, facts Facts) *World { return &World{snapshot: s, facts: facts} }

// Evacuate plans the moves that empty a node.
func (w *World) Evacuate(EvacuationRequest) MovePlan { return MovePlan{} }

// Rebalance plans moves that even out the nodes.
func (w *World) Rebalance(RebalanceRequest) MovePlan { return MovePlan{} }
