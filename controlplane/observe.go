package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/health"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	// observers is how many connections may observe a replica at once.
	observers = 64
	// leaderless is how long nobody may lead before a replica is not ready: a
	// change of leaders is no reason to send callers elsewhere, since elsewhere
	// it is the same.
	leaderless = 5 * time.Second
)

// observed is the listener of those who watch over the replica: /healthz,
// /readyz and what else mux is given, over TLS. A client's certificate is
// verified if it gives one; who may see what is for the handlers.
type observed struct {
	mux  *http.ServeMux
	http *http.Server
	lis  net.Listener
}

// openObserved makes the listener and binds its socket, where there is to be one.
func (r *replica) openObserved(ctx context.Context) error {
	if r.cfg.MetricsListen == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", health.AliveHandler(r.pulse.Alive))
	mux.Handle("GET /readyz", r.health.ReadyHandler())
	mux.Handle("GET /metrics", r.scraped(r.measured.registry.Handler(r.cfg.Log.Named("metrics"))))
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("--metrics-listen %s: %w", r.cfg.MetricsListen, err)
	}
	r.observed = &observed{mux: mux, lis: netutil.LimitListener(lis, observers), http: &http.Server{
		Handler: mux, TLSConfig: rpc.WithHTTP1(r.member.Server().CallersServer()),
		ReadHeaderTimeout: rpc.HandshakeTimeout, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: rpc.MaxHeaderBytes,
		ErrorLog: r.cfg.Log.Named("metrics").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}}
	return nil
}

// run serves until ctx ends.
func (o *observed) run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- o.http.ServeTLS(o.lis, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", o.lis.Addr(), err)
	case <-ctx.Done():
	}
	_ = o.http.Close() // whoever looks finds out
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("stopping %s: %w", o.lis.Addr(), err)
	}
	return nil
}

// readiness are the checks that a replica is ready by; the disk is nil where etcd
// is elsewhere.
func readiness(view *store.View, log *audit.Log, disk *store.Disk) []health.Check {
	checks := []health.Check{
		{Name: "snapshot", Why: view.Fresh},
		{Name: "restore", Why: func() error {
			if view.Current().Unconfirmed() {
				return errors.New("the cluster was restored from a backup and no operator has confirmed it: hvctl cluster restore confirm")
			}
			return nil
		}},
		{Name: "leader", Why: leaderKnown(view), Spares: leaderlessServices},
		{Name: "audit", Why: func() error {
			if log.Healthy() == nil {
				return nil
			}
			return errors.New("the audit log cannot be written, so that changes are refused: see the log")
		}, Spares: readingServices},
	}
	if disk != nil {
		checks = append(checks, health.Check{Name: "disk", Why: disk.Look, Spares: readingServices})
	}
	return checks
}

var (
	// leaderlessServices do all that they do without a leader.
	leaderlessServices = []string{"debvisor.v1.AccessService", "debvisor.v1.AuditService", "debvisor.v1.EventService"}
	// readingServices change nothing.
	readingServices = []string{"debvisor.v1.AuditService", "debvisor.v1.EventService"}
)

// leaderKnown tells whether anybody leads, or did a moment ago.
func leaderKnown(view interface{ Current() *cluster.Snapshot }) func() error {
	var mu sync.Mutex
	var known time.Time
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if view.Current().Leader != nil {
			known = time.Now()
		}
		if known.IsZero() || time.Since(known) > leaderless {
			return errors.New("no replica is known to lead")
		}
		return nil
	}
}

// works tells whether this replica does its work: its own front door answers,
// as it would to anybody, and what follows the cluster's state goes round,
// whether etcd answers or not. It is what the watchdog is fed by.
func (r *replica) works(ctx context.Context) error {
	if err := r.view.Alive(); err != nil {
		return err
	}
	conn, err := rpc.Dial(reachable(r.callers.lis.Addr()), r.own.SelfClient())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("the callers' listener does not answer itself: %w", err)
	}
	return nil
}

// reachable is how this host itself reaches one of its listeners.
func reachable(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err == nil && unspecified(host) {
		return net.JoinHostPort("localhost", port)
	}
	return addr.String()
}

// watchOver keeps the pulse, and tells the service manager of it and of what
// callers find: last of all that is started, first of all that stops.
func (r *replica) watchOver(ctx context.Context) error {
	pulse := make(chan error, 1)
	go func() { pulse <- r.pulse.Run(ctx, nil) }()
	for {
		report, changed := r.health.Last()
		r.cfg.Notify.Status(report.String())
		select {
		case <-changed:
		case <-ctx.Done():
			r.cfg.Notify.Stopping("stopping")
			r.health.Stop()
			return <-pulse
		}
	}
}

// newPulse makes what looks after this replica.
func (r *replica) newPulse() *obs.Pulse {
	log := r.cfg.Log.Named("watchdog")
	return &obs.Pulse{Check: r.works, Notify: r.cfg.Notify, Failed: func(err error) {
		log.Error("this replica does not do its work", "error", err)
	}}
}
