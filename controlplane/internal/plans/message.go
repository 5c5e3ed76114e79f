package plans

import (
	"errors"
	"fmt"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Verdict is the planner's result on one VM as callers see it.
func Verdict(r *planner.Result) *debvisorv1.MigrationPlanResult {
	m := &debvisorv1.MigrationPlanResult{
		Status: debvisorv1.StatusCode_STATUS_OK, Allowed: r.Allowed, Source: nodeRef(r.Source), Target: nodeRef(r.Target),
		Message: fmt.Sprintf("VM %s can move %s from %s to %s", r.Name, manner(r.Method), r.Source, r.Target),
		Vm:      &debvisorv1.VMRef{VmId: r.VM}, VmName: r.Name,
		Method: r.Method, Estimate: r.Estimate, NotLive: reasons(r.NotLive),
	}
	if !r.Allowed {
		m.Status, m.Message = debvisorv1.StatusCode_STATUS_ERROR, r.Refusal()
	}
	for _, d := range r.Disks {
		m.Disks = append(m.Disks, disk(d))
	}
	for _, v := range r.Nodes {
		n := &debvisorv1.NodeVerdict{
			Node: nodeRef(v.Node), Allowed: v.Allowed, Reasons: reasons(v.Reasons), Score: v.Score, Method: v.Method, Estimate: v.Estimate,
		}
		for _, part := range v.Parts {
			n.Parts = append(n.Parts, &debvisorv1.ScorePart{Name: part.Name, Weight: part.Weight, Value: part.Value})
		}
		m.Nodes = append(m.Nodes, n)
	}
	return m
}

// manner says how a VM moves.
func manner(m debvisorv1.MoveMethod) string {
	switch m {
	case debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY:
		return "live, its disks with it,"
	case debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE:
		return "shut off"
	}
	return "live"
}

// disk is what becomes of a disk, as callers see it.
func disk(d *agentv1.DiskTransfer) *debvisorv1.DiskAction {
	a := &debvisorv1.DiskAction{Target: d.GetTarget(), Bytes: d.GetCapacityBytes(), Reason: d.GetReason()}
	switch d.GetAction() {
	case agentv1.DiskAction_DISK_ACTION_COPY_LIVE:
		a.Action = "copy-live"
	case agentv1.DiskAction_DISK_ACTION_COPY_OFFLINE:
		a.Action = "copy-offline"
	case agentv1.DiskAction_DISK_ACTION_ZFS:
		a.Action = "zfs-increments"
	default:
		a.Action, a.Bytes = "shared", 0
	}
	return a
}

// moves are the planner's moves as callers see them.
func moves(p *planner.MovePlan, node string, parallel uint32) *debvisorv1.MovePlan {
	m := &debvisorv1.MovePlan{
		Node: nodeRef(node), ParallelPerNode: parallel, ImbalanceBefore: p.Before, ImbalanceAfter: p.After, Estimate: p.Estimate,
	}
	for _, move := range p.Moves {
		m.Moves = append(m.Moves, &debvisorv1.PlannedMove{
			Vm: &debvisorv1.VMRef{VmId: move.VM}, VmName: move.Name, Source: nodeRef(move.Source), Target: nodeRef(move.Target),
			Method: move.Method, Estimate: move.Estimate, Wave: uint32(move.Wave),
		})
	}
	for _, b := range p.Blocked {
		m.Blocked = append(m.Blocked, &debvisorv1.BlockedVM{Vm: &debvisorv1.VMRef{VmId: b.VM}, VmName: b.Name, Reasons: reasons(b.Reasons)})
	}
	return m
}

func reasons(list []planner.Reason) []*debvisorv1.PlanReason {
	var out []*debvisorv1.PlanReason
	for _, r := range list {
		out = append(out, &debvisorv1.PlanReason{Code: r.Code, Message: r.Message})
	}
	return out
}

// nodeRef refers to a node; nil for none.
func nodeRef(id string) *debvisorv1.NodeRef {
	if id == "" {
		return nil
	}
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

func nodeID(ref *debvisorv1.NodeRef) string { return ref.GetNodeId().GetId() }

func asError(err error, into **errdefs.Error) bool { return errors.As(err, into) }
