package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/simagent"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// leaderTTL is the leader's lease, as debvisor-rpcd serves by default.
const leaderTTL = 3 * time.Second

// simulated registers a node and gives an agent for it that has a hypervisor in name only.
func (c *cluster) simulated(a *api, name string, domains ...*agentv1.Domain) *simagent.Agent {
	c.t.Helper()
	_, err := a.nodes.RegisterNode(c.within(10*time.Second), &debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: name}, Hostname: name})
	if status.Code(err) != codes.AlreadyExists {
		c.must(err)
	}
	config, err := c.AgentTLS(name)
	c.must(err)
	s := &simagent.Agent{
		Node: name, Journal: "journal-" + uuid.NewString(), TLS: config, Domains: domains,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return c.Operator.DialContext(ctx, "tcp", addr)
		},
	}
	for _, r := range c.Replicas {
		s.Servers = append(s.Servers, r.Agents())
	}
	return s
}

// play runs an agent's part until the test ends, or the function it gives is called; that returns when the part has ended.
func (c *cluster) play(part func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		part(ctx)
	}()
	stop = func() { cancel(); <-done }
	c.t.Cleanup(stop)
	return stop
}

func simulatedDomain(name string) *agentv1.Domain {
	return &agentv1.Domain{
		Uuid: uuid.NewString(), Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 1 << 30, Vcpus: 1, Persistent: true,
	}
}

// move asks for the move of a VM, of which nobody waits for the end.
func (c *cluster) move(a *api, vm, to string) string {
	c.t.Helper()
	ctx := c.within(15 * time.Second)
	asking := metadata.AppendToOutgoingContext(withRequestID(ctx, requestID()), "debvisor-wait", "none")
	var id string
	c.eventually(15*time.Second, "the move of "+vm+" is taken", func() error {
		r, err := a.migrations.MigrateVM(asking, &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: vm}, Target: node(to)})
		id = r.GetOperationId()
		return err
	})
	return id
}

// TestStaleLeader stops the leader, lets the next one work, and wakes the first: what it then says and writes has no effect,
// also on an agent that stayed with it and knows of no other leader.
func TestStaleLeader(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, old := c.follower()
	one, two := simulatedDomain("sim-one"), simulatedDomain("sim-two")
	host := c.simulated(a, "sim-host", one, two)
	loyal := c.simulated(a, "sim-loyal") // to the old leader
	c.play(func(ctx context.Context) { _ = host.Run(ctx) })
	ended := make(chan struct{})
	stopLoyal := c.play(func(ctx context.Context) {
		defer close(ended)
		loyal.Session(ctx, old.Agents())
	})
	c.eventually(20*time.Second, "the simulated agents have their sessions", func() error {
		if loyal.Heartbeats() < 1 || host.Heartbeats() < 1 {
			return errors.New("no heartbeat was answered")
		}
		return nil
	})
	first := c.move(a, one.GetUuid(), "sim-loyal")
	c.eventually(10*time.Second, "the old leader has sent a task", func() error {
		if got := loyal.Received(); len(got) != 1 || got[0].Message.GetTask().GetOperationId() != first {
			return fmt.Errorf("received %v", got)
		}
		return nil
	})

	log := c.mark(old.LogFile())
	c.must(old.Stop(c.within(10 * time.Second)))
	stopped := time.Now()
	leader, err := c.Leader(c.within(30*time.Second), old)
	c.must(err)
	now := c.api(leader)
	// Work for the agent that the new leader does not reach, but the old one would: an end to what it does, and something new.
	second := c.move(now, two.GetUuid(), "sim-loyal")
	_, err = now.operations.CancelOperation(metadata.AppendToOutgoingContext(c.within(10*time.Second), "debvisor-wait", "none"),
		&debvisorv1.OperationRef{Id: first})
	c.must(err)
	// And for agents that have met it.
	c.must(lab.Eventually(c.within(time.Minute), "the new leader hears the nodes", func() error {
		conn, err := c.Dial(leader)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return c.online(c.within(10*time.Second), conn)
	}))
	c.succeeded(time.Minute, now, g.begin(now))
	c.must(g.runsOnly(g.to))
	asleep := c.atRest(leader)
	if since := time.Since(stopped); since < 2*leaderTTL {
		t.Fatalf("the old leader slept for %v only", since)
	}
	heard := len(loyal.Received())

	c.must(old.Cont())
	log.says("leads no more")
	select {
	case <-ended: // the old leader ended the session
	case <-c.within(30 * time.Second).Done():
		t.Error("the old leader keeps the session")
	}
	found, err := c.Leader(c.within(30 * time.Second))
	c.must(err)
	if found != leader {
		t.Errorf("%s leads after the old leader woke, not %s", found.Name, leader.Name)
	}
	if got := loyal.Received()[heard:]; len(got) > 0 {
		t.Errorf("woken, the old leader sent %v", got)
	}
	for key, revision := range c.records(leader) {
		// What the nodes say of their VMs the new leader writes down at any time.
		if asleep[key] != revision && !strings.HasPrefix(key, "/debvisor/rpc/vms/") {
			t.Errorf("%s was written after the old leader woke", key)
		}
	}
	if vm, err := now.vms.GetVM(c.within(10*time.Second), &debvisorv1.VMRef{VmId: g.UUID}); err != nil || vm.GetNode().GetNodeId().GetId() != g.to.Name {
		t.Errorf("after the old leader woke the VM is placed so: %v, %v", vm, err)
	}

	// As soon as the agent meets the new leader, all goes on.
	stopLoyal()
	loyal.Outcome = func(*agentv1.Task) *agentv1.TaskOutcome {
		return &agentv1.TaskOutcome{
			ErrorCode: "SIMULATED", ErrorMessage: "there is no hypervisor",
			Side: &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT, Ended: true},
		}
	}
	c.play(func(ctx context.Context) { _ = loyal.Run(ctx) })
	if op := c.ended(30*time.Second, now, first); op.GetState() != debvisorv1.OperationState_OPERATION_STATE_CANCELLED {
		t.Errorf("the operation that was cancelled is %v: %v", op.GetState(), op.GetError())
	}
	if op := c.ended(30*time.Second, now, second); op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED {
		t.Errorf("the operation of which nothing can come is %v", op)
	}
	term := c.term(leader)
	for _, r := range loyal.Received()[heard:] {
		if got := task.TermOf(r.Message.GetTerm()); got != term {
			t.Errorf("a message of term %v came, the leader's is %v: %v", got, term, r)
		}
	}
	g.arrived()
}

// term is the term of the leader as etcd has it.
func (c *cluster) term(r *lab.Replica) task.Term {
	c.t.Helper()
	says, err := c.api(r).cluster.GetCluster(c.within(10*time.Second), &debvisorv1.Empty{})
	c.must(err)
	return task.Term{Epoch: says.GetEpoch(), Revision: says.GetTerm()}
}

// records are the keys that a leader writes, but for what heartbeats of living agents change. A replica that campaigns writes
// its own election key besides.
func (c *cluster) records(r *lab.Replica) map[string]int64 {
	all := c.revisions(r, "operations/", "tasks/", "vms/", "inuse/", "nodes/", "nodestatus/sim-loyal", "epoch")
	for _, g := range c.shared.guests { // a real one dirties its memory all the time, which is recorded
		delete(all, keyPrefix+"vms/"+g.UUID)
	}
	return all
}

// atRest waits until the leader has nothing left to write, and gives the records as they then are.
func (c *cluster) atRest(leader *lab.Replica) map[string]int64 {
	c.t.Helper()
	last, since := c.records(leader), time.Now()
	c.eventually(45*time.Second, "the new leader has nothing left to do", func() error {
		status := &storev1.NodeStatus{}
		got, err := c.etcd(leader).Get(c.within(5*time.Second), keyPrefix+"nodestatus/sim-loyal")
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			if err := proto.Unmarshal(kv.Value, status); err != nil {
				return err
			}
		}
		if status.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE {
			return fmt.Errorf("the agent that it does not hear is %v", status.GetLiveness())
		}
		if now := c.records(leader); !maps.Equal(now, last) {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < leaderTTL {
			return fmt.Errorf("it was quiet for %v", quiet)
		}
		return nil
	})
	return last
}
