package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// madePower gives the states that a start or stop goes through.
func madePower(id, kind, step string, end func(*debvisorv1.Operation)) []*debvisorv1.Operation {
	running := &debvisorv1.Operation{
		Id: id, Kind: kind, State: debvisorv1.OperationState_OPERATION_STATE_RUNNING, Resources: []string{"vm/" + uuidWeb},
		Principal: "operator", CreatedAt: madeTime(0), StartedAt: madeTime(0), Step: step,
		Power: &debvisorv1.PowerDetails{VmId: uuidWeb, VmName: "web1", Node: nodeRef("n1"), Generation: 3},
	}
	last := proto.CloneOf(running)
	last.Step, last.EndedAt = "", madeTime(2)
	end(last)
	return []*debvisorv1.Operation{running, last}
}

// begun answers with an operation that the fake goes through when asked.
func (f *fakeVMs) begun(ctx context.Context, ref *debvisorv1.VMRef, states []*debvisorv1.Operation) (*debvisorv1.VMActionResult, error) {
	vm, err := f.made.find(ref)
	if err != nil {
		return nil, err
	}
	if vm.GetOperationId() != "" {
		return nil, errdefs.New(errdefs.Aborted, "IN_USE", "vm/%s is in use by operation op-busy", vm.GetId()).With("operation", "op-busy")
	}
	id := states[0].GetId()
	f.made.mu.Lock()
	f.made.operations[id] = states
	f.made.mu.Unlock()
	if err := grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", id)); err != nil {
		return nil, err
	}
	return &debvisorv1.VMActionResult{Status: debvisorv1.StatusCode_STATUS_OK}, nil
}

func powerDone(op *debvisorv1.Operation) {
	op.State = debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
}

func (f *fakeVMs) StartVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VMActionResult, error) {
	return f.begun(ctx, ref, madePower("op-start", "vm.start", "starting on n1", powerDone))
}

func (f *fakeVMs) ShutdownVM(ctx context.Context, req *debvisorv1.VMShutdownRequest) (*debvisorv1.VMActionResult, error) {
	end := powerDone
	if req.GetTimeoutSeconds() < 10 && !req.GetForce() {
		end = func(op *debvisorv1.Operation) {
			op.State = debvisorv1.OperationState_OPERATION_STATE_FAILED
			op.Error = &debvisorv1.ErrorDetails{Code: "SHUTDOWN_TIMEOUT", Message: "the guest of VM web1 has not shut down within 5s, and goes on"}
		}
	}
	return f.begun(ctx, req.GetVm(), madePower("op-shutdown", "vm.shutdown", "waiting for the guest to shut down on n1", end))
}

func (f *fakeVMs) DestroyVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VMActionResult, error) {
	return f.begun(ctx, ref, madePower("op-destroy", "vm.destroy", "ending its QEMU on n1", powerDone))
}

func (f *fakeVMs) SetVMAutostart(_ context.Context, req *debvisorv1.VMAutostartRequest) (*debvisorv1.VM, error) {
	return f.edit(req.GetVm(), func(vm *debvisorv1.VM) { vm.Autostart = req.GetAutostart() })
}

func (f *fakeVMs) SetVMPolicy(_ context.Context, req *debvisorv1.VMPolicyRequest) (*debvisorv1.VM, error) {
	return f.edit(req.GetVm(), func(vm *debvisorv1.VM) { vm.Policy = req.GetPolicy() })
}

func (f *fakeVMs) edit(ref *debvisorv1.VMRef, change func(*debvisorv1.VM)) (*debvisorv1.VM, error) {
	was, err := f.made.find(ref)
	if err != nil {
		return nil, err
	}
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	for i, vm := range f.made.vms {
		if vm == was {
			f.made.vms[i] = proto.CloneOf(vm)
			change(f.made.vms[i])
			return f.made.vms[i], nil
		}
	}
	return was, nil
}
