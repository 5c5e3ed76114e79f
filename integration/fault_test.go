package integration

import (
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
	slow bool   // memory takes some seconds
	back bool   // the process is started again at once, not after the operation's end
}

// kill arms the failpoint in the process of the place, moves the guest, kills the process when it is there, and checks that the
// operation succeeds all the same and leaves nothing behind.
func (f faultCase) kill(g *mover, ask *api, at *lab.Place, kill, start func() error) {
	c := g.c
	c.t.Helper()
	begin := time.Now()
	if f.slow {
		c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	}
	starts := g.starts(g.to)
	points := at.Failpoints()
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
	c.must(kill())
	killed := time.Now()
	if f.back {
		c.must(start())
	}
	c.must(g.atMostOne())
	op := c.succeeded(90*time.Second, ask, id)
	ended := time.Now()
	c.must(g.runsOnly(g.to))
	if !f.back {
		c.must(start())
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
			f.kill(g, ask, leader.Place, leader.Kill, leader.Start)
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
			f.kill(g, ask, g.from.Place, g.from.Agent.Kill, g.from.Agent.Start)
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
			f.kill(g, ask, g.to.Place, g.to.Agent.Kill, g.to.Agent.Start)
		})
	}
}
