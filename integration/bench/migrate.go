package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// migrate measures MigrateVM, asked of a replica that does not lead, against
// virsh over plain TCP, moving one idle guest to and fro.
func (b *bench) migrate(ctx context.Context) error {
	guest, err := b.lab.Nodes[0].StartGuest(ctx, lab.GuestSpec{Name: "bench"})
	if err != nil {
		return fmt.Errorf("the guest: %w", err)
	}
	_, _, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	at := 0
	var ours, virsh, downtimes []float64
	for round := range b.rounds {
		for _, mine := range []bool{true, false, false, true} {
			from, to := b.lab.Nodes[at], b.lab.Nodes[1-at]
			if err := b.knows(ctx, conn, guest, from); err != nil {
				return err
			}
			begin := time.Now()
			if mine {
				var res *debvisorv1.MigrationResult
				res, err = debvisorv1.NewMigrationServiceClient(conn).MigrateVM(ctx, &debvisorv1.VMMigrateSpec{
					Vm:     &debvisorv1.VMRef{VmId: guest.UUID},
					Target: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: to.Name}},
				})
				ours = append(ours, time.Since(begin).Seconds())
				downtimes = append(downtimes, float64(res.GetDowntimeMs()))
			} else {
				_, err = from.Run(ctx, "virsh", "-c", "qemu:///system", "migrate", "--live", "--persistent", "--undefinesource", "--p2p",
					guest.UUID, fmt.Sprintf("qemu+tcp://%s/system", to.Addr))
				virsh = append(virsh, time.Since(begin).Seconds())
			}
			if err != nil {
				return fmt.Errorf("moving the guest from %s to %s: %w", from.Name, to.Name, err)
			}
			b.say("round %d: debvisor=%v %.2f s", round+1, mine, time.Since(begin).Seconds())
			at = 1 - at
		}
	}
	b.add(Figure{
		Name: "migrate_vs_virsh_idle", Value: median(ours) / median(virsh), Goal: 1.05, Better: "lower", Unit: "ratio",
		Detail: fmt.Sprintf("MigrateVM %.2f s ÷ virsh --p2p over plain TCP %.2f s, medians of %d each, 128 MiB guest under TCG; downtime %.0f ms",
			median(ours), median(virsh), len(ours), median(downtimes)),
	})
	return nil
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
