package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
)

// failoverFault is the death of the leader, or of the agent that brings the VM back, at a failpoint of a failover, or of what follows once
// the lost node is back.
type failoverFault struct {
	point  string
	leader bool
}

// String names the case.
func (f failoverFault) String() string {
	if f.leader {
		return f.point + ",leader-killed"
	}
	return f.point + ",agent-killed"
}

// failoverFaults are all of make chaos's; go test takes one.
func failoverFaults(whole bool) []failoverFault {
	if !whole {
		return []failoverFault{{"startAfterCreate", false}}
	}
	var all []failoverFault
	for _, point := range []string{"leaderBeforeFence", "leaderBeforeBringBack", "leaderBeforeFailoverEnd", "leaderBeforeDiscard", "leaderBeforeUnfence"} {
		all = append(all, failoverFault{point, true})
	}
	for _, point := range []string{
		"imageFenceFound", "imageFenced", "failoverBeforeDefine", "failoverAfterDefine", "failoverBeforeStart", "startBeforeCreate", "startAfterCreate", "startAfterResume",
		"imageUnfenceBefore", "imageUnfenced",
	} {
		all = append(all, failoverFault{point, false})
	}
	return all
}

// late tells of what is passed only once the lost node is back.
func (f failoverFault) late() bool {
	return strings.HasPrefix(f.point, "imageUnfence") || f.point == "leaderBeforeDiscard" || f.point == "leaderBeforeUnfence"
}

// TestFailoverFaults takes a guest on RBD to and fro by failovers, its node without power each time, and has somebody die in each.
func TestFailoverFaults(t *testing.T) {
	todo := campaignOf(t)
	c := cephed.use(t)
	l := c.begins(lab.GuestSpec{Name: "raft", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}}})
	t.Run("lab", func(t *testing.T) {
		for _, f := range left(todo, failoverFaults(os.Getenv("DEBVISOR_MATRIX") == "full")) {
			if !todo.until.IsZero() && time.Now().After(todo.until) {
				t.Skip("no time is left")
			}
			t.Run(f.String(), func(t *testing.T) {
				one := *l
				one.c = cephed.use(t) // made whole after the case before
				f.run(&one)
			})
		}
	})
}

func (f failoverFault) run(l *lost) {
	c, begun := l.c, time.Now()
	for i, n := range c.Nodes {
		d, err := n.Domain(l.UUID)
		c.must(err)
		if d.State == lab.DomainRunning {
			l.from, l.to = n, c.Nodes[1-i]
		}
	}
	var leader *lab.Replica
	l.ask, leader = c.follower()
	c.must((&mover{Guest: l.Guest, c: c}).known(c.within(time.Minute), l.from))
	former, err := c.HistoryIn(c.within(30*time.Second), l.Disks[0].Path)
	c.must(err)
	c.must(l.from.PowerOff(c.within(30 * time.Second)))
	c.missed(l.ask, l.from)
	said := len(l.Console())
	if !f.late() {
		c.must(f.place(l, leader).Arm(c.within(10*time.Second), f.point, hold))
	}
	ctx := metadata.AppendToOutgoingContext(withRequestID(c.within(time.Minute), requestID()), "debvisor-wait", "none")
	var id string
	c.eventually(time.Minute, "the failover is taken", func() error {
		answer, err := l.ask.migrations.FailoverVM(ctx, vmRef(l.UUID))
		id = answer.GetOperationId()
		return err
	})
	if !f.late() {
		f.strike(l, leader)
	}
	op := c.succeeded(2*time.Minute, l.ask, id)
	// Not by the node's address alone: children of its agent that were killed in another test are kept out for some minutes, too.
	list, err := l.copies(c.within(10 * time.Second))
	c.must(err)
	if len(list) != 1 || len(list[0].GetBlocklisted()) == 0 {
		c.t.Fatalf("told of its copy is %v", list)
	}
	c.eventually(time.Minute, "the guest goes on", func() error {
		if n := len(l.Console()); n < said+20 {
			return fmt.Errorf("%d new values on its console", n-said)
		}
		return nil
	})
	if f.late() {
		c.must(f.place(l, leader).Arm(c.within(10*time.Second), f.point, hold))
	}
	c.must(l.from.PowerOn(c.within(time.Minute)))
	c.must(l.from.Agent.Start())
	if f.late() {
		f.strike(l, leader)
	}
	l.forgotten()
	l.onlyOn(l.to)
	h, err := c.HistoryIn(c.within(30*time.Second), l.Disks[0].Path)
	c.must(err)
	if err := h.CheckRestarted(former); err != nil {
		c.t.Errorf("the guest's disk: %v", err)
	}
	entries := c.blocklist()
	for _, address := range list[0].GetBlocklisted() {
		if !strings.HasPrefix(address, l.from.Addr+":") || strings.Contains(entries, address) {
			c.t.Errorf("%s is still on the blocklist, or another's: %s", address, entries)
		}
	}
	c.t.Logf("outcome: %v %s; %.1f s", op.GetState(), op.GetError().GetCode(), time.Since(begun).Seconds())
}

// place is where the one is that dies.
func (f failoverFault) place(l *lost, leader *lab.Replica) *lab.Failpoints {
	if f.leader {
		return leader.Failpoints()
	}
	return l.to.Failpoints()
}

// strike kills the one once it stands at the failpoint, and starts it again.
func (f failoverFault) strike(l *lost, leader *lab.Replica) {
	c := l.c
	c.t.Helper()
	c.must(f.place(l, leader).AwaitHit(c.within(time.Minute), f.point))
	if f.leader {
		c.must(errors.Join(leader.Process.Kill(), leader.Start()))
		return
	}
	c.must(errors.Join(l.to.Agent.Kill(), l.to.Agent.Start()))
}
