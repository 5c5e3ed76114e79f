package controlplane

import (
	"context"
	"crypto/x509"
	"net/http"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/controlplane/internal/metrics"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/obs"
)

// measured is what counts while the replica runs.
type measured struct {
	registry obs.Registry
	calls    *metrics.Calls
	etcd     *metrics.Etcd
	endings  *metrics.Endings
}

func newMeasured() *measured {
	var methods []string
	for method := range authz.Methods() {
		methods = append(methods, method)
	}
	m := &measured{
		registry: obs.NewRegistry("debvisor-rpcd"), calls: metrics.NewCalls(methods), etcd: metrics.NewEtcd(), endings: metrics.NewEndings(),
	}
	m.registry.MustRegister(m.calls, m.etcd, m.endings)
	return m
}

// looked is what metrics look at in both listeners' parts.
type looked struct {
	inventory       *inventory.Inventory
	sessions        *dispatch.Dispatch
	principals      *limit.Limiter
	agents, callers *api.Strangers
}

// measure has all that can be looked at looked at when somebody scrapes.
func (r *replica) measure(at looked) {
	r.measured.registry.MustRegister(&metrics.Cluster{View: r.view}, &metrics.Replica{
		View: r.view, Audit: r.audit, Sessions: at.sessions, Silences: at.inventory,
		Counted: map[string]func() int{
			"principals": at.principals.Names, "addresses": at.callers.Addresses, "agents_addresses": at.agents.Addresses,
		},
		Certificates: map[string]func() *x509.Certificate{
			"ca":      func() *x509.Certificate { return r.member.Ring().Signing().Certificate() },
			"callers": r.own.Leaf, "replica": r.member.Server().Leaf, "etcd_peer": r.member.EtcdPeer().Leaf,
		},
		Unready: r.unready,
		Reloads: func() (taken, refused int64, broken bool) {
			return r.reloads.taken.Load(), r.reloads.refused.Load(), r.reloads.broken.Load()
		},
	})
}

// unready gives the words of the checks by which the replica is not ready.
func (r *replica) unready() []string {
	var checks []string
	for _, reason := range r.health.Ready().Reasons {
		checks = append(checks, reason.Check)
	}
	return checks
}

// scraped lets in who may scrape: as on the callers' listener, whose rates it
// counts against.
func (r *replica) scraped(page http.Handler) http.Handler {
	return r.chains[len(r.chains)-1].Scrape(authz.ReadMetrics, page)
}

// askEtcd asks etcd how it is, until ctx ends.
func (r *replica) askEtcd(ctx context.Context) error {
	ask := func(ctx context.Context) (store.MemberState, error) { return store.Member(ctx, r.client) }
	return r.measured.etcd.Run(ctx, ask, r.cfg.Log.Named("metrics"))
}
