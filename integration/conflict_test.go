package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// vmCall is a call of the API that takes a VM.
type vmCall struct {
	method protoreflect.MethodDescriptor
	// field is where the VM goes; nil: the request is the VM.
	field protoreflect.FieldDescriptor
}

// vmCalls are all calls of a service that take one VM.
func vmCalls(t *testing.T, service string) []vmCall {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	vm := (&debvisorv1.VMRef{}).ProtoReflect().Descriptor().FullName()
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	var all []vmCall
	for i := range methods.Len() {
		m := methods.Get(i)
		if m.Input().FullName() == vm {
			all = append(all, vmCall{method: m})
			continue
		}
		fields := m.Input().Fields()
		for j := range fields.Len() {
			if f := fields.Get(j); f.Message() != nil && f.Message().FullName() == vm && !f.IsList() {
				all = append(all, vmCall{m, f})
			}
		}
	}
	return all
}

// message makes an empty message of a type.
func message(t *testing.T, d protoreflect.MessageDescriptor) protoreflect.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New()
}

// call makes the call, of a replica as the operator, for a VM. What else the request must say is empty.
func (v vmCall) call(ctx context.Context, t *testing.T, c *cluster, r *lab.Replica, vm string) (proto.Message, error) {
	t.Helper()
	req, answer := message(t, v.method.Input()), message(t, v.method.Output())
	ref := vmRef(vm).ProtoReflect()
	if v.field == nil {
		req = ref
	} else {
		req.Set(v.field, protoreflect.ValueOfMessage(ref))
	}
	fields := v.method.Input().Fields()
	if policy := fields.ByName("policy"); policy != nil {
		req.Mutable(policy)
	}
	conn, err := c.Dial(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	name := fmt.Sprintf("/%s/%s", v.method.Parent().FullName(), v.method.Name())
	return answer.Interface(), conn.Invoke(ctx, name, req.Interface(), answer.Interface())
}

// TestConflict starts the same VM by hand on two nodes. It is shown as a conflict, and whatever would change it is refused until
// one of the two is gone.
func TestConflict(t *testing.T) {
	c := plain.use(t)
	// With a disk of each node's own: QEMU's lock on a shared one keeps the second from starting.
	n, other := c.Nodes[0], c.Nodes[1]
	g, err := n.StartGuest(c.within(90*time.Second), lab.GuestSpec{Name: "twin", Disks: []lab.DiskSpec{{Kind: lab.DiskLocal}}})
	c.must(err)
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			_ = n.Destroy(g.UUID)
			_ = n.Undefine(g.UUID)
		}
	})
	a, leader := c.follower()
	shown := func(want debvisorv1.VMState, nodes int) {
		t.Helper()
		for _, r := range c.Replicas {
			c.eventually(30*time.Second, fmt.Sprintf("%s shows the VM %v", r.Name, want), func() error {
				vm, err := c.api(r).vms.GetVM(c.within(5*time.Second), vmRef(g.UUID))
				if err == nil && (vm.GetState() != want || len(vm.GetConflictNodes()) != nodes) {
					err = fmt.Errorf("it is %v, conflict of %v", vm.GetState(), vm.GetConflictNodes())
				}
				return err
			})
		}
	}
	shown(debvisorv1.VMState_VM_STATE_RUNNING, 0)
	alarm := c.mark(leader.LogFile())
	c.must(g.StartTwin(c.within(time.Minute), other))
	shown(debvisorv1.VMState_VM_STATE_CONFLICT, 2)
	alarm.says("CONFLICT", g.UUID)

	var calls []vmCall
	for _, service := range []string{"debvisor.v1.VMService", "debvisor.v1.MigrationService"} {
		calls = append(calls, vmCalls(t, service)...)
	}
	if len(calls) < 8 {
		t.Errorf("only %d calls take a VM", len(calls))
	}
	before := c.revisions(leader, "vms/"+g.UUID, "operations/", "tasks/", "inuse/")
	for _, v := range calls {
		name := string(v.method.Name())
		answer, err := v.call(c.within(30*time.Second), t, c, a.replica, g.UUID)
		switch name {
		case "GetVM": // shown above
			c.must(err)
		case "PrepareMigration": // a dry run answers with its reasons
			c.must(err)
			if plan := answer.(*debvisorv1.MigrationPlanResult); plan.GetAllowed() || !holds(plan.GetMessage(), "conflict") {
				t.Errorf("a plan says %v", plan)
			}
		case "PlanFailover":
			c.must(err)
			if plan := answer.(*debvisorv1.FailoverPlan); plan.GetAllowed() || !holds(plan.GetMessage(), "conflict") {
				t.Errorf("the plan of a failover says %v", plan)
			}
		case "ReverseReplication": // about a lost copy: the VM alone names none
			refused(t, err, codes.InvalidArgument)
		default:
			if d := refused(t, err, codes.FailedPrecondition); !holds(fmt.Sprint(d.GetCode(), d.GetContext()), "VM_CONFLICT") || !holds(err.Error(), n.Name, other.Name) {
				t.Errorf("%s is refused with %v: %v", name, d, err)
			}
		}
	}
	after := c.revisions(leader, "vms/"+g.UUID, "operations/", "tasks/", "inuse/")
	for key, revision := range after {
		if before[key] != revision {
			t.Errorf("%s was written", key)
		}
	}
	for _, n := range c.Nodes {
		if d, err := n.Domain(g.UUID); err != nil || d.State != lab.DomainRunning {
			t.Errorf("%s has it %+v: %v", n.Name, d, err)
		}
	}
	c.must(other.Destroy(g.UUID))
	c.must(other.Undefine(g.UUID))
	shown(debvisorv1.VMState_VM_STATE_RUNNING, 0)
}
