package integration

import (
	"fmt"
	"testing"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// health is a node as the operator sees it.
func (c *cluster) health(a *api, node string) (*debvisorv1.NodeSummary, error) {
	nodes, err := a.nodes.ListNodes(c.within(5*time.Second), &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	return find(nodes, node), nil
}

// libvirtFails waits until a node's health tells that libvirt does not answer, while its session stays.
func (c *cluster) libvirtFails(a *api, node string) {
	c.t.Helper()
	c.eventually(30*time.Second, "the health of "+node+" tells of libvirt", func() error {
		s, err := c.health(a, node)
		if err != nil {
			return err
		}
		if s.GetState() != debvisorv1.NodeState_NODE_STATE_ONLINE {
			c.t.Errorf("%s is %v", node, s.GetState())
		}
		if s.GetHealth().GetOverall() < debvisorv1.StatusCode_STATUS_WARN || !holds(fmt.Sprint(s.GetHealth().GetProblems()), "libvirt") {
			return fmt.Errorf("it is %v", s.GetHealth())
		}
		return nil
	})
}

// TestLibvirtHangs stops a node's libvirtd, lets it go on, then kills it and starts it again.
func TestLibvirtHangs(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	for _, r := range c.others(leader) { // of those that do not lead, one is enough
		a = c.api(r)
	}
	lead := c.api(leader)
	n := g.from
	session := c.mark(n.Agent.LogFile())
	c.must(n.Libvirt.Stop(c.within(10 * time.Second)))
	c.libvirtFails(lead, n.Name)
	c.libvirtFails(a, n.Name)
	plan, err := a.migrations.PrepareMigration(c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(g.UUID), Target: node(g.to.Name)})
	c.must(err)
	if plan.GetAllowed() || !holds(plan.GetMessage(), "libvirt") {
		t.Errorf("a plan without libvirt: %v", plan)
	}
	// Heartbeats go on all the while.
	for range 3 {
		s, err := c.health(lead, n.Name)
		c.must(err)
		last := s.GetAgeMs()
		c.eventually(5*time.Second, "another heartbeat", func() error {
			s, err := c.health(lead, n.Name)
			if err != nil {
				return err
			}
			if s.GetAgeMs() >= last {
				last = s.GetAgeMs()
				return fmt.Errorf("heard %d ms ago", last)
			}
			return nil
		})
	}
	c.must(n.Libvirt.Cont())
	c.must(c.whole(c.within(30 * time.Second)))

	c.must(n.Libvirt.Kill())
	c.libvirtFails(lead, n.Name)
	c.must(n.StartLibvirt(c.within(30 * time.Second)))
	c.must(c.whole(c.within(30 * time.Second)))
	if lost := session.lines("no session"); len(lost) > 0 {
		t.Errorf("the session did not stay: %v", lost)
	}
	// And it works as before.
	c.must(g.known(c.within(30*time.Second), n))
	c.succeeded(time.Minute, a, g.begin(a))
	g.arrived()
}
