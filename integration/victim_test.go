package integration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// victim is what a fault strikes.
type victim struct {
	// at is the place whose daemon stands at a failpoint when it is struck: the victim's own, or the one that tells the phase.
	at *lab.Place
	// own says that this daemon is the victim: it stands there until it is killed.
	own bool
	// ours says that it is a process of DebVisor: its death never fails an operation.
	ours bool

	kill func() error
	stop func(context.Context) error
	cont func() error
	// start starts it again; nil: nobody does.
	start func() error
	// replaced waits until what it did is in the hands of its successor; nil: that is not waited for.
	replaced func()
}

// victimOf finds what a fault strikes. The processes of a migration are looked for when they are struck.
func (f fault) victimOf(g *mover, leader *lab.Replica) victim {
	c := g.c
	side := g.from
	switch f.victim {
	case targetAgent, targetLibvirtd, targetTunnel, targetQEMU:
		side = g.to
	}
	switch f.victim {
	case theLeader:
		v := c.victim(leader, g.from)
		v.own, v.ours = true, true
		return v
	case sourceAgent, targetAgent:
		v := agentOf(g, side)
		v.own, v.ours = true, true
		return v
	}
	at := side.Place
	if f.phase == accepted {
		at = leader.Place
	}
	switch f.victim {
	case sourceLibvirtd, targetLibvirtd:
		return victim{
			at: at, kill: side.Libvirt.Kill, stop: side.Libvirt.Stop, cont: side.Libvirt.Cont,
			start: func() error { return side.StartLibvirt(c.within(30 * time.Second)) },
		}
	case sourceTunnel, targetTunnel:
		v := processes(func() ([]lab.Task, error) { return tunnels(side) })
		v.at, v.ours = at, true
		return v
	default:
		v := processes(func() ([]lab.Task, error) { return side.QEMUs(g.UUID) })
		v.at = at
		return v
	}
}

// processes are a victim that is found when it is struck.
func processes(find func() ([]lab.Task, error)) victim {
	var found []lab.Task
	each := func(do func(lab.Task) error) error {
		if found == nil {
			var err error
			if found, err = find(); err != nil {
				return err
			}
			if len(found) == 0 {
				return errors.New("there is nothing to strike")
			}
		}
		var failed []error
		for _, t := range found {
			failed = append(failed, do(t))
		}
		return errors.Join(failed...)
	}
	return victim{
		kill: func() error { return each(lab.Task.Kill) },
		stop: func(ctx context.Context) error { return each(func(t lab.Task) error { return t.Stop(ctx) }) },
		cont: func() error { return each(lab.Task.Cont) },
	}
}

// victim is the leader, replaced when another term's has the session of the node.
func (c *cluster) victim(leader *lab.Replica, n *lab.Node) victim {
	logs := map[*lab.Replica]logMark{}
	for _, r := range c.Replicas {
		logs[r] = c.mark(r.LogFile())
	}
	term := c.term(leader)
	return victim{
		at: leader.Place, kill: leader.Kill, stop: leader.Stop, cont: leader.Cont, start: leader.Start,
		replaced: func() {
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
		},
	}
}

// agentOf is the agent of a node, replaced when it is at its task again.
func agentOf(g *mover, n *lab.Node) victim {
	log := g.c.mark(n.Agent.LogFile())
	return victim{
		at: n.Place, kill: n.Agent.Kill, stop: n.Agent.Stop, cont: n.Agent.Cont, start: n.Agent.Start,
		replaced: func() { log.says("task runs", "resumed=true") },
	}
}

// failpoint is where the daemon at v.at stands in a phase.
func (f fault) failpoint(v victim) string {
	who := "leader"
	if v.at.Name[0] == 'n' { // a node's agent
		who = "send"
		switch f.victim {
		case targetAgent, targetLibvirtd, targetTunnel, targetQEMU:
			who = "receive"
		}
	}
	points := map[string]string{
		accepted: "AfterAccepted", copying: "WhileCopying", switched: "AfterSwitchover", concluding: "BeforeOutcome",
	}
	if who == "leader" && f.phase == concluding {
		return "leaderBeforeFinish"
	}
	return who + points[f.phase]
}

// watchers ask libvirt again and again, on each node by itself, whether it runs the guest.
type watchers struct {
	stop func() error
}

// alternately checks, from now until stop is called, that the guest's CPUs never run on two nodes: once the target was seen
// running it, the source must not be. A libvirtd that does not answer says nothing of the time.
func (m *mover) neverTwo() watchers {
	ctx, cancel := context.WithCancel(context.Background())
	type sighting struct{ first, last time.Time } // first answered, last asked
	seen := [2]sighting{}
	done := make(chan int, 2)
	for i, n := range []*lab.Node{m.from, m.to} {
		go func() {
			defer func() { done <- i }()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				asked := time.Now()
				if d, err := n.Domain(m.UUID); err == nil && d.State == lab.DomainRunning {
					seen[i].last = asked
					if seen[i].first.IsZero() {
						seen[i].first = time.Now()
					}
				}
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		}()
	}
	return watchers{func() error {
		cancel()
		for range 2 {
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				return errors.New("a libvirtd does not answer though it is not stopped")
			}
		}
		if source, target := seen[0], seen[1]; !target.first.IsZero() && source.last.After(target.first) {
			return fmt.Errorf("the target ran the guest %v before it still ran on the source", source.last.Sub(target.first))
		}
		return nil
	}}
}

// saidOnce checks that no value came twice on the console since it had that many lines: a second copy of the guest, however
// short, would say what the first says, or would go on from what that had said before.
func (m *mover) saidOnce(from int) error {
	lines := m.Console()
	for i := max(from, 1); i < len(lines); i++ {
		if lines[i].Counter <= lines[i-1].Counter {
			return fmt.Errorf("the console says %d after %d: two copies of the guest ran", lines[i].Counter, lines[i-1].Counter)
		}
	}
	return nil
}
