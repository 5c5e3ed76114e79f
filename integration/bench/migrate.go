package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// race is one comparison of MigrateVM, asked of a replica that does not lead,
// with virsh over plain TCP: the same guests move to and fro, all at once.
type race struct {
	b      *bench
	conn   *grpc.ClientConn
	guests []*lab.Guest
	at     int // the node on which they are

	// ours and virsh are how long each time took, seconds; the silences how long
	// the first guest was not heard, milliseconds.
	ours, virsh               []float64
	oursSilence, virshSilence []float64
}

// migrate measures live migration.
func (b *bench) migrate(ctx context.Context) error {
	_, _, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := b.limits(ctx, conn, 4); err != nil {
		return err
	}
	idle, err := b.race(ctx, conn, 1, lab.GuestSpec{Name: "idle", Period: 10 * time.Millisecond})
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "migrate_vs_virsh_idle", Value: median(idle.ours) / median(idle.virsh), Goal: 1.05, Better: "lower", Unit: "ratio",
		Detail: "MigrateVM " + idle.times() + ", 128 MiB guest under TCG",
	})
	b.add(Figure{
		Name: "downtime_vs_virsh_ms", Value: median(idle.oursSilence) - median(idle.virshSilence), Better: "lower", Unit: "ms",
		Detail: fmt.Sprintf("the longest silence on the guest's console, which counts every 10 ms: %.0f ms − %.0f ms with virsh, medians of %d each",
			median(idle.oursSilence), median(idle.virshSilence), len(idle.ours)),
	})
	dirtying, err := b.race(ctx, conn, 1, lab.GuestSpec{Name: "dirtying", DirtyKiB: 512})
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "migrate_vs_virsh_dirtying", Value: median(dirtying.ours) / median(dirtying.virsh), Better: "lower", Unit: "ratio",
		Detail: "MigrateVM " + dirtying.times() + ", the guest writes 512 KiB of memory every 50 ms",
	})
	four, err := b.race(ctx, conn, 4, lab.GuestSpec{Name: "four"})
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "migrate_parallel4_vs_virsh", Value: median(four.ours) / median(four.virsh), Better: "lower", Unit: "ratio",
		Detail: "four MigrateVM at once " + four.times() + " for all",
	})
	return nil
}

// limits lets so many migrations leave and reach each node at once.
func (b *bench) limits(ctx context.Context, conn *grpc.ClientConn, parallel uint32) error {
	for _, n := range b.lab.Nodes {
		_, err := debvisorv1.NewNodeServiceClient(conn).SetNodeLimits(ctx, &debvisorv1.NodeLimitsRequest{
			Node: nodeRef(n), Limits: &debvisorv1.NodeLimits{ParallelMigrations: parallel},
		})
		if err != nil {
			return fmt.Errorf("the limits of %s: %w", n.Name, err)
		}
	}
	return nil
}

func nodeRef(n *lab.Node) *debvisorv1.NodeRef {
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: n.Name}}
}

// race starts n guests, moves them A B B A for the bench's rounds, and ends them.
func (b *bench) race(ctx context.Context, conn *grpc.ClientConn, n int, spec lab.GuestSpec) (*race, error) {
	r := &race{b: b, conn: conn}
	for i := range n {
		one := spec
		one.Name = fmt.Sprintf("%s%d", spec.Name, i+1)
		g, err := b.lab.Nodes[0].StartGuest(ctx, one)
		if err != nil {
			return nil, fmt.Errorf("the guest: %w", err)
		}
		r.guests = append(r.guests, g)
	}
	for round := range b.rounds {
		for _, mine := range []bool{true, false, false, true} {
			if err := r.move(ctx, mine); err != nil {
				return nil, fmt.Errorf("round %d of %s: %w", round+1, spec.Name, err)
			}
		}
		b.say("%s, round %d of %d: %.2f s, virsh %.2f s", spec.Name, round+1, b.rounds, r.ours[len(r.ours)-1], r.virsh[len(r.virsh)-1])
	}
	for _, g := range r.guests {
		if _, err := b.lab.Nodes[r.at].Run(ctx, "virsh", "-c", "qemu:///system", "destroy", g.UUID); err != nil {
			return nil, fmt.Errorf("ending %s: %w", g.Name, err)
		}
	}
	return r, nil
}

// move moves all guests to the other node and notes how long that took.
func (r *race) move(ctx context.Context, mine bool) error {
	from, to := r.b.lab.Nodes[r.at], r.b.lab.Nodes[1-r.at]
	for _, g := range r.guests {
		if err := r.b.knows(ctx, r.conn, g, from); err != nil {
			return err
		}
	}
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, g := range r.guests {
		group.Go(func() error { return r.moveOne(ctx, mine, g, from, to) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("moving the guests from %s to %s: %w", from.Name, to.Name, err)
	}
	took, silence := time.Since(begin).Seconds(), float64(r.guests[0].LongestSilence(begin).Milliseconds())
	if mine {
		r.ours, r.oursSilence = append(r.ours, took), append(r.oursSilence, silence)
	} else {
		r.virsh, r.virshSilence = append(r.virsh, took), append(r.virshSilence, silence)
	}
	r.at = 1 - r.at
	return nil
}

func (r *race) moveOne(ctx context.Context, mine bool, g *lab.Guest, from, to *lab.Node) error {
	if mine {
		_, err := debvisorv1.NewMigrationServiceClient(r.conn).MigrateVM(ctx, &debvisorv1.VMMigrateSpec{
			Vm: &debvisorv1.VMRef{VmId: g.UUID}, Target: nodeRef(to),
		})
		return err //nolint:wrapcheck // its caller says what was done
	}
	_, err := from.Run(ctx, "virsh", "-c", "qemu:///system", "migrate", "--live", "--persistent", "--undefinesource", "--p2p",
		g.UUID, fmt.Sprintf("qemu+tcp://%s/system", to.Addr))
	return err //nolint:wrapcheck // its caller says what was done
}

// times writes both sides of the ratio.
func (r *race) times() string {
	return fmt.Sprintf("%.2f s ÷ virsh --p2p over plain TCP %.2f s, medians of %d each", median(r.ours), median(r.virsh), len(r.ours))
}

// knows waits until the asked replica shows the guest running on the node and
// in nobody's hands.
func (b *bench) knows(ctx context.Context, conn *grpc.ClientConn, guest *lab.Guest, at *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Eventually(ctx, "the guest is known on "+at.Name, func() error {
		vm, err := debvisorv1.NewVMServiceClient(conn).GetVM(ctx, &debvisorv1.VMRef{VmId: guest.UUID})
		if err != nil {
			return fmt.Errorf("asking for the guest: %w", err)
		}
		if vm.GetNode().GetNodeId().GetId() != at.Name || vm.GetState() != debvisorv1.VMState_VM_STATE_RUNNING || vm.GetOperationId() != "" {
			return fmt.Errorf("it is %v", vm)
		}
		return nil
	})
}
