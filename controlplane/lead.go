package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	"github.com/debvisor/debvisor/controlplane/internal/drain"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/failover"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/migrate"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/power"
	"github.com/debvisor/debvisor/controlplane/internal/recovery"
	"github.com/debvisor/debvisor/controlplane/internal/schedule"
	"github.com/debvisor/debvisor/controlplane/internal/storage"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/traces"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/run"
)

// led is what only the leader does.
type led struct {
	dispatch *dispatch.Dispatch
	migrate  *migrate.Controller
	drain    *drain.Controller
	power    *power.Controller
	recovery *recovery.Controller
	failover *failover.Controller
	storage  *storage.Controller
	schedule *schedule.Controller
	plans    *plans.Controller
	ops      *operations.Operations
	view     *store.View
	store    *store.Store
	audit    *audit.Log
	ring     func() *certs.Ring
	// etcd is the embedded one; nil with an outside one.
	etcd *store.Embedded
	// tracing is nil where there is no collector.
	tracing *obs.Tracing
	log     hclog.Logger
}

// purgeEvery is how often ended operations are thinned out.
const purgeEvery = 10 * time.Minute

// Lead does the leader's work until ctx ends or another leads.
func (d *led) Lead(ctx context.Context, l election.Leadership) error {
	d.log.Info("this replica leads", "term", l.Term)
	var group run.Group
	if d.etcd != nil {
		group.Add("etcd's own leader", d.etcd.StayRaftFollower)
		group.Add("promotion of joiners", members.Promoter{Etcd: d.etcd.Client(), Log: d.log.Named("members")}.Run)
	}
	if d.tracing != nil {
		group.Add("traces", func(ctx context.Context) error {
			return (&traces.Recorder{View: d.view, Tracing: d.tracing}).Lead(ctx, l)
		})
	}
	sweeper := enroll.Sweeper{View: d.view, Store: d.store, Fence: l.Fence, Log: d.log.Named("enroll")}
	group.Add("tokens", sweeper.Run)
	noted := pki.Sweeper{View: d.view, Store: d.store, Fence: l.Fence, Log: d.log.Named("pki")}
	group.Add("records of certificates", noted.Run)
	seals := pki.Keeper{View: d.view, Store: d.store, Fence: l.Fence, Ring: d.ring, Log: d.log.Named("pki")}
	group.Add("sealed keys of the CAs", seals.Run)
	watchman := pki.Watchman{View: d.view, Ring: d.ring, Log: d.log.Named("pki")}
	group.Add("ends of certificates", watchman.Run)
	keeper := access.Keeper{View: d.view, Store: d.store, Fence: l.Fence, Audit: d.audit, Log: d.log.Named("access")}
	group.Add("plain keys", keeper.Run)
	witness := audit.Witness{Log: d.audit, Current: d.view.Current, Term: fmt.Sprint("term ", l.Term)}
	group.Add("witness", witness.Run)
	group.Add("purge", func(ctx context.Context) error { return d.purge(ctx, l) })
	group.Add("dispatch", func(ctx context.Context) error { return d.dispatch.Lead(ctx, l) })
	group.Add("migrations", func(ctx context.Context) error { return d.migrate.Lead(ctx, l) })
	group.Add("return from a backup", func(ctx context.Context) error { return d.recovery.Lead(ctx, l) })
	group.Add("starts and stops", func(ctx context.Context) error { return d.power.Lead(ctx, l) })
	group.Add("snapshots and replication", func(ctx context.Context) error { return d.storage.Lead(ctx, l) })
	group.Add("failovers", func(ctx context.Context) error { return d.failover.Lead(ctx, l) })
	group.Add("evacuations", func(ctx context.Context) error { return d.drain.Lead(ctx, l) })
	group.Add("storage policies", func(ctx context.Context) error { return d.schedule.Lead(ctx, l) })
	group.Add("plans", func(ctx context.Context) error { return d.plans.Lead(ctx, l) })
	err := group.Run(ctx)
	d.log.Info("this replica no longer leads", "term", l.Term, "error", err)
	if errors.Is(err, store.ErrFenced) {
		return nil // another leads; this replica campaigns anew
	}
	return err
}

func (d *led) purge(ctx context.Context, l election.Leadership) error {
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := d.ops.Purge(ctx, l.Fence, now); err != nil && ctx.Err() == nil {
				if errors.Is(err, store.ErrFenced) {
					return err
				}
				d.log.Warn("ended operations are thinned out later", "error", err)
			}
		}
	}
}
