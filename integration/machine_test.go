package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// TestMachineAgents: agents in machines are nodes like others, and lose all at once what a power cut takes.
func TestMachineAgents(t *testing.T) {
	c := pooled.use(t)
	m := c.Machines[0]
	if _, err := m.Failpoints().Hits(t.Context(), "no-such"); err == nil || !strings.Contains(err.Error(), "should have one failpoint") {
		t.Errorf("the agent's failpoints cannot be asked for: %v", err)
	}
	c.must(m.LinkDown(t.Context()))
	if _, err := m.Failpoints().Hits(t.Context(), "no-such"); err == nil || !strings.Contains(err.Error(), "should have one failpoint") {
		t.Errorf("the agent's failpoints cannot be asked for without a link: %v", err)
	}
	c.must(m.LinkUp(t.Context()))

	c.must(m.Agent.Kill())
	c.must(m.Agent.Start())
	c.must(c.whole(c.within(time.Minute)))

	agent := m.Agent.Process
	c.must(m.PowerOff(t.Context()))
	if agent.Alive() {
		t.Error("the agent has outlived its machine")
	}
	c.eventually(time.Minute, "m1 is missed", func() error {
		conn, err := c.Dial(c.Replicas[0])
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if c.online(t.Context(), conn) == nil {
			return fmt.Errorf("all nodes are online")
		}
		return nil
	})
	c.must(m.PowerOn(t.Context()))
	c.must(m.Agent.Start())
	c.must(c.whole(c.within(time.Minute)))
	if out, err := m.Run(t.Context(), "zpool", "list", "-H", "-o", "health", lab.PoolName); err != nil || strings.TrimSpace(out) != "ONLINE" {
		t.Errorf("the pool is %s: %v", out, err)
	}
}
