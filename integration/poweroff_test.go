package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// An outage is a node whose power goes in a phase of a move, and how that ends: an operator gives his word that it is off, or it
// is back, booted anew, with its agent's journal.
type outage struct {
	side, phase, end string
}

const (
	confirmed = "confirmed"
	back      = "back"
)

// outages says which end go test takes for each side and phase; make chaos takes both.
const outages = `
        accepted   copying    switched-over  before-outcome
source  confirmed  back       back           confirmed
target  back       confirmed  confirmed      back
`

func allOutages(whole bool) []outage {
	lines := strings.Split(strings.TrimSpace(outages), "\n")
	var all []outage
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		for i, end := range fields[1:] {
			phase := strings.Fields(lines[0])[i]
			if !whole {
				all = append(all, outage{fields[0], phase, end})
				continue
			}
			all = append(all, outage{fields[0], phase, confirmed}, outage{fields[0], phase, back})
		}
	}
	return all
}

// String names the case.
func (o outage) String() string { return strings.Join([]string{o.side, o.phase, o.end}, ",") }

// want is what must come of it.
type wanted struct {
	succeeds bool
	code     *regexp.Regexp // of an operation that fails
	onTarget bool           // where the VM is in the end
	state    lab.DomainState
}

// want tells what must come of an outage. A source that loses its power takes its guest along, unless that has moved. A target does
// once it has the only copy. A copy whose source is not known to have let go waits, and where nobody can ever tell, it is left
// paused for people to decide.
func (o outage) want() wanted {
	failed := func(onTarget bool, state lab.DomainState) wanted {
		code := regexp.MustCompile(`^(MIGRATION_FAILED|GUEST_STOPPED)$`)
		if o.end == confirmed {
			code = regexp.MustCompile(`^NODE_OFF$`)
		}
		return wanted{code: code, onTarget: onTarget, state: state}
	}
	moved := wanted{succeeds: true, onTarget: true, state: lab.DomainRunning}
	switch o.side + " " + o.phase + " " + o.end {
	case "source switched-over back", "source before-outcome back", "source before-outcome confirmed",
		"target accepted back", "target copying back":
		return moved
	case "source switched-over confirmed":
		return failed(true, lab.DomainPaused)
	case "target accepted confirmed", "target copying confirmed":
		return failed(false, lab.DomainRunning)
	case "target switched-over back", "target switched-over confirmed", "target before-outcome back", "target before-outcome confirmed":
		return failed(true, lab.DomainShutOff)
	default: // the source, before the copy is whole
		return failed(false, lab.DomainShutOff)
	}
}

// TestPowerOff takes the power from a whole node in every phase of a move.
func TestPowerOff(t *testing.T) {
	todo := campaignOf(t)
	cases := left(todo, allOutages(os.Getenv("DEBVISOR_MATRIX") == "full"))
	inTwoLabs(t, cases, todo.until, func(c *cluster, o outage) { o.run(c) })
}

func (o outage) run(c *cluster) {
	c.t.Helper()
	g := c.guest("web")
	a, _ := c.follower()
	said := len(g.Console())
	off, other, point := g.from, g.to, fault{sourceAgent, killed, o.phase, sharedDisk}.failpoint(victim{at: g.from.Place})
	if o.side == "target" {
		off, other = g.to, g.from
		point = fault{targetAgent, killed, o.phase, sharedDisk}.failpoint(victim{at: g.to.Place})
	}
	if o.phase == copying {
		c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	}
	points := off.Failpoints()
	c.must(points.Arm(c.within(10*time.Second), point, hold))
	id := g.begin(a)
	if err := points.AwaitHit(c.within(45*time.Second), point); err != nil {
		c.t.Fatal(err)
	}
	c.eventually(10*time.Second, "the other side knows what the phase says", func() error { return o.told(g) })
	before, err := other.Domain(g.UUID)
	c.must(err)
	c.must(off.PowerOff(c.within(10 * time.Second)))
	guesses := c.watchGuess(g, other, before.State == lab.DomainRunning)
	c.eventually(30*time.Second, "the operation says for whom it waits", func() error { return c.waitsFor(a, id, off) })
	if o.phase == copying && o.side == "target" {
		g.unbrake() // for the next attempt
	}
	// What one agent does not know, the next start of it does not either.
	log := c.mark(other.Agent.LogFile())
	c.must(errors.Join(other.Agent.Kill(), other.Agent.Start()))
	log.says("session open")
	c.eventually(30*time.Second, "the operation still says it", func() error { return c.waitsFor(a, id, off) })
	c.must(guesses())
	o.settle(c, a, off)
	op := c.ended(2*time.Minute, a, id)
	o.check(g, op, off, said)
}

// told tells whether what makes the phase has come to the other side, too: it is a moment behind the one that is held.
func (o outage) told(g *mover) error {
	n, want := g.from, lab.DomainAbsent
	switch o.side + " " + o.phase {
	case "target switched-over": // the source has let go
	case "source before-outcome": // the target has heard so
		n, want = g.to, lab.DomainRunning
	default:
		return nil
	}
	d, err := n.Domain(g.UUID)
	if err == nil && d.State != want {
		err = fmt.Errorf("%s has it %v, not %v", n.Name, d.State, want)
	}
	return err
}

// watchGuess watches a node until what it gives is called, which says whether the node let a guest run that it did not before.
func (c *cluster) watchGuess(g *mover, n *lab.Node, ran bool) (stop func() error) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			d, err := n.Domain(g.UUID)
			if err == nil && d.State == lab.DomainRunning && !ran {
				done <- fmt.Errorf("%s lets the guest run though nobody can know that the other has let go", n.Name)
				return
			}
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-tick.C:
			}
		}
	}()
	return func() error { cancel(); return <-done }
}

// settle ends an outage as it says.
func (o outage) settle(c *cluster, a *api, off *lab.Node) {
	c.t.Helper()
	if o.end == back {
		c.must(off.PowerOn(c.within(time.Minute)))
		c.must(off.Agent.Start())
		return
	}
	c.eventually(30*time.Second, "the operator's word is taken", func() error {
		_, err := a.nodes.ConfirmNodeOff(c.within(10*time.Second), &debvisorv1.NodeOffRequest{Node: node(off.Name), Reason: "I pulled the plug"})
		return err
	})
}

// check holds an operation's end against the truth, once both nodes are on again.
func (o outage) check(g *mover, op *debvisorv1.Operation, off *lab.Node, said int) {
	c, want := g.c, o.want()
	c.t.Helper()
	c.t.Logf("outcome: %v %s, attempt %d: %s", op.GetState(), op.GetError().GetCode(), op.GetMigration().GetAttempt(), op.GetError().GetMessage())
	switch succeeded := op.GetState() == debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED; {
	case succeeded != want.succeeds:
		c.t.Errorf("the operation is %v: %v", op.GetState(), op.GetError())
	case !succeeded && !want.code.MatchString(op.GetError().GetCode()):
		c.t.Errorf("the operation failed with %v, want %v", op.GetError(), want.code)
	}
	if !off.On() {
		c.must(off.PowerOn(c.within(time.Minute)))
		c.must(off.Agent.Start())
	}
	at := g.from
	if want.onTarget {
		at = g.to
	}
	c.must(c.whole(c.within(time.Minute)))
	c.eventually(30*time.Second, fmt.Sprintf("%s alone has the guest, %s", at.Name, want.state), func() error {
		here, err := at.Domain(g.UUID)
		there, err2 := g.other(at).Domain(g.UUID)
		if here.State != want.state || there.State != lab.DomainAbsent {
			return fmt.Errorf("it is %+v, and %+v on %s: %w", here, there, g.other(at).Name, errors.Join(err, err2))
		}
		return errors.Join(err, err2)
	})
	c.must(g.saidOnce(said))
	h, err := g.History()
	c.must(err)
	if err := h.Check(g.before); err != nil {
		c.t.Fatalf("the guest's disk: %v", err)
	}
	switch want.state {
	case lab.DomainPaused: // an operator's decision, and the right one
		c.must(at.Resume(g.UUID))
	case lab.DomainShutOff:
		c.must(errors.Join(at.Boot(g.UUID), g.Ticks(c.within(time.Minute))))
	}
	g.goesOn()
	c.eventually(20*time.Second, "nothing is left of the move", func() error { return errors.Join(c.clean(), g.tasksEnded(op.GetId())) })
	c.must(g.known(c.within(45*time.Second), at))
	c.must(g.runsOnly(at))
	if want.succeeds || want.state != lab.DomainShutOff {
		h, err := g.History()
		c.must(err)
		if err := h.Check(g.before); err != nil {
			c.t.Fatalf("the guest's disk: %v", err)
		}
	}
}
