package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// leaderTTL is the lease of the leader, the unit of the figure; it is what
// debvisor-rpcd serve uses unless told otherwise.
const leaderTTL = 3 * time.Second

// failover kills the leader and measures the time until the next one has
// pushed a new operation's first task to an agent, which has accepted it.
func (b *bench) failover(ctx context.Context) error {
	guest, err := b.lab.Nodes[0].StartGuest(ctx, lab.GuestSpec{Name: "failover"})
	if err != nil {
		return fmt.Errorf("the guest: %w", err)
	}
	var took []float64
	at := 0
	for range b.rounds {
		ttls, err := b.killLeader(ctx, guest, b.lab.Nodes[at], b.lab.Nodes[1-at])
		if err != nil {
			return err
		}
		at = 1 - at
		took = append(took, ttls)
		b.say("the next leader pushed after %.2f TTL", ttls)
	}
	b.add(Figure{
		Name: "leader_failover_ttl", Value: median(took), Goal: 2, Better: "lower", Unit: "TTL",
		Detail: fmt.Sprintf("kill -9 of the leader → the next leader has pushed a task, and the agent has begun and reported it; TTL %v, median of %d", leaderTTL, len(took)),
	})
	return nil
}

func (b *bench) killLeader(ctx context.Context, guest *lab.Guest, from, to *lab.Node) (ttls float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	leader, _, conn, err := b.follower(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if err := b.knows(ctx, conn, guest, from); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := leader.Kill(); err != nil {
		return 0, fmt.Errorf("killing the leader: %w", err)
	}
	// One request id: however often it has to be asked, it is one operation.
	asking := metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none", "debvisor-request-id", fmt.Sprintf("failover-%d", begin.UnixNano()))
	var id string
	err = lab.Eventually(ctx, "the operation is taken", func() error {
		res, err := debvisorv1.NewMigrationServiceClient(conn).MigrateVM(asking, &debvisorv1.VMMigrateSpec{
			Vm: &debvisorv1.VMRef{VmId: guest.UUID}, Target: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: to.Name}},
		})
		id = res.GetOperationId()
		return err
	})
	if err != nil {
		return 0, err
	}
	ops := debvisorv1.NewOperationServiceClient(conn)
	var end time.Duration
	err = lab.Eventually(ctx, "an agent has the task", func() error {
		op, err := ops.GetOperation(ctx, &debvisorv1.OperationRef{Id: id})
		if err != nil {
			return fmt.Errorf("asking for the operation: %w", err)
		}
		// The source's task is written once the target's agent has accepted
		// and begun the first: somewhat after the leader began to push.
		if end == 0 && op.GetMigration().GetAttempt() > 0 && !strings.HasPrefix(op.GetStep(), "preparing") {
			end = time.Since(begin)
		}
		switch op.GetState() {
		case debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED:
			return nil
		case debvisorv1.OperationState_OPERATION_STATE_FAILED, debvisorv1.OperationState_OPERATION_STATE_CANCELLED:
			cancel()
			return fmt.Errorf("the operation did not succeed: %v", op.GetError())
		}
		return fmt.Errorf("it is %v, step %q", op.GetState(), op.GetStep())
	})
	if err != nil {
		return 0, err
	}
	if err := leader.Start(); err != nil {
		return 0, fmt.Errorf("starting the killed replica: %w", err)
	}
	return end.Seconds() / leaderTTL.Seconds(), leader.Serving(ctx)
}
