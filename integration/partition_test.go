package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// noticed is how soon a partition has to be noticed.
const noticed = 15 * time.Second

// cut is a way of parting a place from others.
type cut struct {
	name string
	// do parts them; heal undoes it.
	do, heal func(ctx context.Context, p *lab.Place, from ...*lab.Place) error
	// all says that it parts the place from everybody.
	all bool
}

func cuts() []cut {
	each := func(f func(context.Context, *lab.Place, *lab.Place) error) func(context.Context, *lab.Place, ...*lab.Place) error {
		return func(ctx context.Context, p *lab.Place, from ...*lab.Place) error {
			var failed []error
			for _, other := range from {
				failed = append(failed, f(ctx, p, other))
			}
			return errors.Join(failed...)
		}
	}
	down := func(ctx context.Context, p *lab.Place, _ ...*lab.Place) error { return p.LinkDown(ctx) }
	up := func(ctx context.Context, p *lab.Place, _ ...*lab.Place) error { return p.LinkUp(ctx) }
	return []cut{{"dropped", each(lab.Drop), each(lab.Heal), false}, {"unplugged", down, up, true}}
}

// part parts a place from others until heal is called, at the latest when the test ends.
func (c *cluster) part(k cut, p *lab.Place, from ...*lab.Place) (heal func()) {
	c.t.Helper()
	healed := false
	heal = func() {
		if !healed {
			healed = true
			if err := k.heal(context.Background(), p, from...); err != nil {
				c.t.Error(err)
			}
		}
	}
	c.t.Cleanup(heal)
	c.must(k.do(c.within(10*time.Second), p, from...))
	return heal
}

// sameProcesses gives a function that says which of our daemons is not what it was.
func (c *cluster) sameProcesses() func() error {
	running := map[string]*lab.Process{}
	for _, r := range c.Replicas {
		running[r.Name] = r.Process
	}
	for _, n := range c.Nodes {
		running[n.Name] = n.Agent.Process
	}
	return func() error {
		for name, p := range running {
			if !p.Alive() {
				return fmt.Errorf("%s has ended: %w", name, p.Err())
			}
		}
		return nil
	}
}

// partition is a case: who is parted, and how.
type partition struct {
	who string
	cut cut
	run func(*cluster, cut)
}

// String names the case.
func (p partition) String() string { return p.who + "," + p.cut.name }

// TestPartition parts those that need each other, in both ways, and joins them again.
func TestPartition(t *testing.T) {
	var all []partition
	for _, k := range cuts() {
		all = append(all, partition{"agent-leader", k, agentLeader}, partition{"leader-etcd", k, leaderEtcd}, partition{"agent-agent", k, agentAgent})
	}
	inTwoLabs(t, all, time.Time{}, func(c *cluster, p partition) { p.run(c, p.cut) })
}

// agentLeader parts the source's agent from the leader while memory is copied.
func agentLeader(c *cluster, k cut) {
	c.t.Helper()
	g := c.guest("web")
	a, leader := c.follower()
	same := c.sameProcesses()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	session := c.mark(g.from.Agent.LogFile())
	heal := c.part(k, g.from.Place, leader.Place)
	c.eventually(noticed, "the leader misses the agent", func() error {
		s, err := c.health(c.api(leader), g.from.Name)
		if err == nil && s.GetState() == debvisorv1.NodeState_NODE_STATE_ONLINE {
			err = fmt.Errorf("%s is online, heard %d ms ago", g.from.Name, s.GetAgeMs())
		}
		return err
	})
	c.eventually(noticed, "the operation says for whom it waits", func() error { return c.waitsFor(a, id, g.from) })
	c.eventually(noticed, "the agent misses the leader", func() error {
		if len(session.lines("no session")) == 0 {
			return errors.New("it does not say so")
		}
		return nil
	})
	heal()
	c.must(c.whole(c.within(30 * time.Second)))
	g.unbrake()
	c.succeeded(90*time.Second, a, id)
	g.arrived()
	c.must(same())
}

// waitsFor says what is wrong unless an operation that has not ended names the node that it waits for.
func (c *cluster) waitsFor(a *api, id string, n *lab.Node) error {
	op, err := a.operations.GetOperation(c.within(5*time.Second), &debvisorv1.OperationRef{Id: id})
	if err != nil {
		return err
	}
	if isEnded(op) {
		c.t.Fatalf("operation %s has ended %v: %v", id, op.GetState(), op.GetError())
	}
	if !holds(op.GetStep(), "waiting", n.Name, "not heard") {
		return fmt.Errorf("its step is %q", op.GetStep())
	}
	return nil
}

// leaderEtcd parts the leader, and with it its etcd, from the other replicas.
func leaderEtcd(c *cluster, k cut) {
	c.t.Helper()
	g := c.guest("web")
	_, leader := c.follower()
	same := c.sameProcesses()
	var others []*lab.Place
	for _, r := range c.others(leader) {
		others = append(others, r.Place)
	}
	heal := c.part(k, leader.Place, others...)
	begin := time.Now()
	next, err := c.Leader(c.within(noticed), leader)
	c.must(err)
	if !k.all { // it is reached still, and must not claim anything
		c.eventually(noticed-time.Since(begin), "the old leader knows that it is none", func() error {
			cluster, err := c.api(leader).cluster.GetCluster(c.within(3*time.Second), &debvisorv1.Empty{})
			if err == nil && cluster.GetLeader() == leader.Name {
				return errors.New("it claims to lead")
			}
			return nil
		})
	}
	// The others work without it.
	a := c.api(next)
	c.eventually(30*time.Second, "the agents are with the new leader", func() error {
		for _, n := range c.Nodes {
			if s, err := c.health(a, n.Name); err != nil || s.GetState() != debvisorv1.NodeState_NODE_STATE_ONLINE {
				return fmt.Errorf("%s is %v: %w", n.Name, s.GetState(), err)
			}
		}
		return nil
	})
	c.succeeded(time.Minute, a, g.begin(a))
	heal()
	c.must(c.whole(c.within(30 * time.Second)))
	c.must(same())
	g.arrived()
}

// agentAgent parts the target from the source while memory is copied.
func agentAgent(c *cluster, k cut) {
	c.t.Helper()
	g := c.guest("web")
	a, _ := c.follower()
	same := c.sameProcesses()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	heal := c.part(k, g.to.Place, g.from.Place)
	c.eventually(noticed, "the operation says that it does not get on", func() error {
		op, err := a.operations.GetOperation(c.within(5*time.Second), &debvisorv1.OperationRef{Id: id})
		if err != nil {
			return err
		}
		if isEnded(op) {
			c.t.Fatalf("operation %s has ended %v: %v", id, op.GetState(), op.GetError())
		}
		if !holds(op.GetStep(), "nothing copied") && !holds(op.GetStep(), "waiting") && op.GetMigration().GetAttempt() == 1 {
			return fmt.Errorf("its step is %q", op.GetStep())
		}
		c.t.Logf("noticed: attempt %d, %s", op.GetMigration().GetAttempt(), op.GetStep())
		return nil
	})
	heal()
	c.must(c.whole(c.within(30 * time.Second)))
	g.unbrake()
	c.succeeded(2*time.Minute, a, id)
	g.arrived()
	c.must(same())
}
