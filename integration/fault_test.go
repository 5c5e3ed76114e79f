package integration

import (
	"errors"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// hold keeps a process at a failpoint until it is killed; milliseconds, longer than any case takes.
const hold = "sleep(120000)"

// faultCase is a moment at which a process dies.
type faultCase struct {
	when string
	at   string // the failpoint
	slow bool   // memory takes longer than it takes the process, or another one, to take over
	back bool   // the process is started again at once, not after the operation's end
}

// victim is a process that is killed.
type victim struct {
	at          *lab.Place
	kill, start func() error
	replaced    func() // waits until what it did is in the hands of its successor
}

// run arms the failpoint in the victim, moves the guest, kills the victim when it is there, and checks that the operation
// succeeds all the same and leaves nothing behind.
func (f faultCase) run(g *mover, ask *api, v victim) {
	c := g.c
	c.t.Helper()
	begin := time.Now()
	if f.slow {
		c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	}
	starts := g.starts(g.to)
	points := v.at.Failpoints()
	c.must(points.Arm(c.within(10*time.Second), f.at, hold))
	id := g.begin(ask)
	if err := points.AwaitHit(c.within(45*time.Second), f.at); err != nil {
		c.t.Fatal(err)
	}
	if f.slow {
		if active, err := g.from.Migrating(g.UUID); err != nil || !active {
			c.t.Errorf("no memory is copied at %s: %v", f.at, err)
		}
	}
	c.must(v.kill())
	killed := time.Now()
	if f.back {
		c.must(v.start())
	}
	c.must(g.atMostOne())
	if f.slow {
		v.replaced()
		if active, err := g.from.Migrating(g.UUID); err != nil || !active {
			c.t.Errorf("the move was over before %s was replaced: %v", v.at.Name, err)
		}
		c.must(g.from.SetMigrateSpeed(g.UUID, full))
	}
	op := c.succeeded(90*time.Second, ask, id)
	ended := time.Now()
	c.must(g.runsOnly(g.to))
	if !f.back {
		c.must(v.start())
	}
	g.arrived()
	if n := g.starts(g.to) - starts; n != int(op.GetMigration().GetAttempt()) {
		c.t.Errorf("QEMU was started %d times on %s in %d attempts", n, g.to.Name, op.GetMigration().GetAttempt())
	}
	c.t.Logf("hit after %.1f s, succeeded %.1f s after the kill, attempt %d, downtime %d ms, silence %.1f s, all %.1f s", killed.Sub(begin).Seconds(),
		ended.Sub(killed).Seconds(), op.GetMigration().GetAttempt(), op.GetMigration().GetDowntimeMs(), g.LongestSilence(begin).Seconds(),
		time.Since(begin).Seconds())
}

func TestFaultLeaderKilled(t *testing.T) {
	for _, f := range []faultCase{
		{when: "after accepted", at: "leaderAfterAccepted"},
		{when: "while memory is copied", at: "leaderWhileCopying", slow: true, back: true},
		{when: "after the switch-over", at: "leaderAfterSwitchover"},
		{when: "before the outcome", at: "leaderBeforeFinish", back: true},
	} {
		t.Run(f.when, func(t *testing.T) {
			c := faulty.use(t)
			g := c.guest("web")
			ask, leader := c.follower()
			f.run(g, ask, c.victim(leader, g.from))
		})
	}
}

func TestFaultSourceAgentKilled(t *testing.T) {
	for _, f := range []faultCase{
		{when: "after accepted", at: "sendAfterAccepted", back: true},
		{when: "while memory is copied", at: "sendWhileCopying", slow: true, back: true},
		{when: "after the switch-over", at: "sendAfterSwitchover", back: true},
		{when: "before the outcome", at: "sendBeforeOutcome", back: true},
	} {
		t.Run(f.when, func(t *testing.T) {
			c := faulty.use(t)
			g := c.guest("web")
			ask, _ := c.follower()
			f.run(g, ask, agentOf(g, g.from))
		})
	}
}

func TestFaultTargetAgentKilled(t *testing.T) {
	for _, f := range []faultCase{
		{when: "after accepted", at: "receiveAfterAccepted", back: true},
		{when: "while memory is copied", at: "receiveWhileCopying", slow: true, back: true},
		{when: "after the switch-over", at: "receiveAfterSwitchover", back: true},
		{when: "before the outcome", at: "receiveBeforeOutcome", back: true},
	} {
		t.Run(f.when, func(t *testing.T) {
			c := faulty.use(t)
			g := c.guest("web")
			ask, _ := c.follower()
			f.run(g, ask, agentOf(g, g.to))
		})
	}
}

// victim is the leader, replaced when another term's has the session of the node.
func (c *cluster) victim(leader *lab.Replica, n *lab.Node) victim {
	logs := map[*lab.Replica]logMark{}
	for _, r := range c.Replicas {
		logs[r] = c.mark(r.LogFile())
	}
	term := c.term(leader)
	return victim{leader.Place, leader.Kill, leader.Start, func() {
		c.eventually(45*time.Second, "another leader has the session of "+n.Name, func() error {
			for _, log := range logs {
				for _, line := range log.lines("session open", "node="+n.Name) {
					if !holds(line, "term="+term.String()) {
						return nil
					}
				}
			}
			return errors.New("none has")
		})
	}}
}

// agentOf is the agent of a node, replaced when it is at its task again.
func agentOf(g *mover, n *lab.Node) victim {
	log := g.c.mark(n.Agent.LogFile())
	return victim{n.Place, n.Agent.Kill, n.Agent.Start, func() { log.says("task runs", "resumed=true") }}
}
