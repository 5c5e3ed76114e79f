package inventory

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// keepGone is how long what is ours of a VM that vanished is kept: an operator
// who undefines a VM to define it anew does not mean to change its tenant or
// whom it is kept apart from. It is longer than agents remember placements, so
// that generations of a VM that they know never begin anew.
const keepGone = 90 * 24 * time.Hour

// forgottenAtOnce is how many are forgotten in one transaction.
const forgottenAtOnce = 400

// leftOf is what is kept of a VM that no node has any more.
func leftOf(vm *storev1.VM, now time.Time) *storev1.VM {
	return &storev1.VM{
		Uuid: vm.GetUuid(), Name: vm.GetName(), Node: vm.GetNode(), Generation: vm.GetGeneration(),
		Policy: vm.GetPolicy(), Autostart: vm.GetAutostart(), GoneAt: timestamppb.New(now),
	}
}

// forgetGone forgets VMs that have been gone for long enough.
func (i *Inventory) forgetGone(ctx context.Context, l election.Leadership, now time.Time) error {
	change := store.Change{Fence: l.Fence}
	for uuid, gone := range i.cfg.View.Current().GoneVMs {
		if now.Sub(gone.Value.GetGoneAt().AsTime()) > keepGone && len(change.Deletes) < forgottenAtOnce {
			change.Require = append(change.Require, store.Unchanged(store.GoneVMKey(uuid), gone.ModRevision))
			change.Deletes = append(change.Deletes, store.GoneVMKey(uuid))
		}
	}
	if len(change.Deletes) == 0 {
		return nil
	}
	_, err := i.cfg.Store.Commit(ctx, change)
	return err // what was not forgotten is forgotten later
}
