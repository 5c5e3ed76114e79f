package main

import (
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// madeTime is a moment some seconds into 2026.
func madeTime(seconds int64) *debvisorv1.Timestamp {
	return &debvisorv1.Timestamp{Seconds: 1767225600 + seconds}
}

func madeNode(id string, state debvisorv1.NodeState, age uint64) *debvisorv1.NodeDetail {
	return &debvisorv1.NodeDetail{
		Summary: &debvisorv1.NodeSummary{
			Info: &debvisorv1.NodeInfo{
				Id: &debvisorv1.NodeId{Id: id}, Hostname: id + ".example.org", Ip: "192.0.2.1", Rack: "r1", Zone: "z1", Version: "1.0",
			},
			Health: &debvisorv1.Health{
				Overall: debvisorv1.StatusCode_STATUS_OK, CephStatus: "none", CpuLoad: 0.254, MemUsedPct: 41.6, DiskUsedPct: 77, NetRttMs: 0.35,
			},
			State: state, AgeMs: age, RunningVms: 1,
		},
		RegisteredAt: madeTime(0),
		Capacity:     &debvisorv1.NodeCapacity{Cpus: 8, MemoryBytes: 32 << 30, MemoryAvailableBytes: 20 << 30, MemoryVmsBytes: 3 << 29},
		Capabilities: &debvisorv1.NodeCapabilities{
			Arch: "x86_64", CpuModel: "EPYC", CpuVendor: "AMD", LibvirtVersion: "9.0.0", QemuVersion: "7.2.0",
			Networks: []string{"default", "br0"}, Kernel: "6.1.0", MachineTypes: []string{"pc-q35-7.2"},
		},
		AgentVersion: "1.0", PeerAddress: "192.0.2.1:7445",
	}
}

func madeVM(uuid, name, node string) *debvisorv1.VM {
	return &debvisorv1.VM{
		Id: uuid, Name: name, Node: nodeRef(node), Generation: 3, State: debvisorv1.VMState_VM_STATE_RUNNING,
		MemoryBytes: 3 << 29, Vcpus: 2, Persistent: true,
		Disks: []*debvisorv1.VMDisk{{Target: "vda", Type: "file", Source: "/srv/" + name + ".raw", Format: "raw", Cache: "none"}},
	}
}

func madeVerdicts() []*debvisorv1.NodeVerdict {
	return []*debvisorv1.NodeVerdict{
		{
			Node: nodeRef("n3"), Allowed: true, Score: 0.825, Method: debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY,
			Estimate: &debvisorv1.MoveEstimate{DurationMs: 14200, DowntimeMs: 300, Bytes: 3 << 29},
			Parts:    []*debvisorv1.ScorePart{{Name: "memory", Weight: 50, Value: 0.01}, {Name: "cpu", Weight: 1, Value: 0.325}},
		},
		{Node: nodeRef("n1"), Reasons: []*debvisorv1.PlanReason{{Code: "ALREADY_THERE", Message: "the VM is there"}}},
		{Node: nodeRef("n2"), Reasons: []*debvisorv1.PlanReason{
			{Code: "NODE_NOT_REACHABLE", Message: "not heard for 2 minutes"},
			{Code: "MEMORY", Message: "2 GiB are missing"},
		}},
	}
}

// madeMigration gives the states that a migration goes through.
func madeMigration(id, name, uuid string, end func(*debvisorv1.Operation)) []*debvisorv1.Operation {
	pending := &debvisorv1.Operation{
		Id: id, Kind: "migrate", State: debvisorv1.OperationState_OPERATION_STATE_PENDING, Resources: []string{"vm/" + uuid},
		Principal: "operator", CreatedAt: madeTime(0), TraceId: "0123456789abcdef",
		Migration: &debvisorv1.MigrationDetails{VmId: uuid, VmName: name, Source: nodeRef("n1")},
	}
	states := []*debvisorv1.Operation{pending}
	next := func(change func(*debvisorv1.Operation)) {
		op := proto.CloneOf(states[len(states)-1])
		change(op)
		states = append(states, op)
	}
	next(func(op *debvisorv1.Operation) {
		op.State, op.Step, op.StartedAt = debvisorv1.OperationState_OPERATION_STATE_RUNNING, "preparing the target", madeTime(0)
		op.Migration.Target, op.Migration.Attempt = nodeRef("n3"), 1
	})
	for _, done := range []float64{3, 7, 43, 44, 88} {
		next(func(op *debvisorv1.Operation) {
			op.Step = "copying memory"
			op.Progress = &debvisorv1.OperationProgress{
				Percent: done, BytesTotal: 3 << 29, BytesDone: uint64(done * (3 << 29) / 100), BytesPerSecond: 110 << 20, EtaMs: 14000,
			}
		})
	}
	next(end)
	return states
}

func succeeded(op *debvisorv1.Operation) {
	op.State, op.EndedAt = debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED, madeTime(12)
	op.EndedAt.Nanos = 340e6
	op.Migration.DowntimeMs, op.Migration.SwitchedOver = 84, true
}

func failed(op *debvisorv1.Operation) {
	op.State, op.EndedAt = debvisorv1.OperationState_OPERATION_STATE_FAILED, madeTime(3)
	op.Error = &debvisorv1.ErrorDetails{
		Code: "LIBVIRT", Message: "libvirt on n1: internal error:\nqemu closed the \x1b[31mmonitor", TraceId: "fedcba9876543210",
	}
}

func endless(*debvisorv1.Operation) {}
