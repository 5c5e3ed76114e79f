package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// comeback measures how long a VM on RBD, whose node has lost its power, takes to
// run on another, from the command on.
func (b *bench) comeback(ctx context.Context) error {
	_, _, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	guest, err := b.lab.Nodes[0].StartGuest(ctx, lab.GuestSpec{Name: "comeback", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}}})
	if err != nil {
		return fmt.Errorf("the guest: %w", err)
	}
	c := &comeback{b: b, guest: guest, conn: conn, ask: debvisorv1.NewMigrationServiceClient(conn)}
	for round := range b.rounds {
		if err := c.round(ctx, b.lab.Nodes[round%2]); err != nil {
			return fmt.Errorf("round %d of a VM's failover: %w", round+1, err)
		}
		b.say("failover of a VM, round %d of %d: %.2f s, its guest counts after %.2f s", round+1, b.rounds, c.took[round], c.ticked[round])
	}
	b.add(Figure{
		Name: "failover_manual_s", Value: median(c.took), Better: "lower", Unit: "s",
		Detail: fmt.Sprintf("FailoverVM of a VM on RBD whose node lost its power and is known to be unreachable → its guest runs on another: writers fenced, placement moved, defined, started; its userland counts after %.2f s, booted under TCG; medians of %d",
			median(c.ticked), len(c.took)),
	})
	return nil
}

// comeback is the measurement at work.
type comeback struct {
	b            *bench
	guest        *lab.Guest
	conn         *grpc.ClientConn
	ask          debvisorv1.MigrationServiceClient
	took, ticked []float64 // seconds
}

// round takes the power from the node that the guest is on, and gives it back once
// the guest runs on another.
func (c *comeback) round(ctx context.Context, from *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := c.b.knows(ctx, c.conn, c.guest, from); err != nil {
		return err
	}
	ref := &debvisorv1.VMRef{VmId: c.guest.UUID}
	if err := from.PowerOff(ctx); err != nil {
		return err
	}
	err := lab.Eventually(ctx, "the dry run allows it", func() error {
		plan, err := c.ask.PlanFailover(ctx, &debvisorv1.FailoverRequest{Vm: ref})
		if err == nil && !plan.GetAllowed() {
			err = fmt.Errorf("it says: %s", plan.GetMessage())
		}
		return err
	})
	if err != nil {
		return err
	}
	said, begin := len(c.guest.Console()), time.Now()
	if _, err := c.ask.FailoverVM(ctx, ref); err != nil {
		return fmt.Errorf("FailoverVM: %w", err)
	}
	c.took = append(c.took, time.Since(begin).Seconds())
	err = lab.Eventually(ctx, "the guest counts", func() error {
		if len(c.guest.Console()) == said {
			return fmt.Errorf("its console is silent")
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.ticked = append(c.ticked, c.guest.Console()[said].At.Sub(begin).Seconds())
	return c.back(ctx, from)
}

// back has the node return, and waits until what it had is gone.
func (c *comeback) back(ctx context.Context, from *lab.Node) error {
	if err := from.PowerOn(ctx); err != nil {
		return err
	}
	if err := from.Agent.Start(); err != nil {
		return err
	}
	return lab.Eventually(ctx, "the former copy is gone", func() error {
		list, err := c.ask.ListLostCopies(ctx, &debvisorv1.Empty{})
		for _, lost := range list.GetCopies() {
			if err == nil && lost.GetState() != "gone" {
				err = fmt.Errorf("of %s on %s it is told that it is %s: %s", lost.GetVmName(), lost.GetNode().GetNodeId().GetId(), lost.GetState(), lost.GetLastError())
			}
		}
		return err
	})
}
