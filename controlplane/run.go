package controlplane

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/events"
	"github.com/debvisor/debvisor/controlplane/internal/gateway"
	"github.com/debvisor/debvisor/controlplane/internal/health"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/relay"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/run"
)

// replica is one running replica.
type replica struct {
	cfg    Config
	member *members.Member
	// own is what this replica uses towards callers: its own or the configured.
	own    *certs.Reloader
	client *clientv3.Client
	// embedded is the etcd in this process; nil with an outside one.
	embedded *store.Embedded
	store    *store.Store
	view     *store.View
	ops      *operations.Operations
	events   *events.Feed
	audit    *audit.Log
	access   *accessfile.File
	authz    *authz.Authorizer
	// tokens are nil where there is no issuer of JWTs.
	tokens *authn.Tokens
	uses   *access.Uses
	// chains are those of both listeners.
	chains  []*api.Chain
	callers *listener
	agents  *listener
	// gateway is nil where there is none.
	gateway *gateway.Gateway
	// observed is nil where there is none.
	observed *observed
	health   *health.Source
	// disk is etcd's; nil with an outside one.
	disk  *store.Disk
	pulse *obs.Pulse
	led   *led
	// lines lead to the leader, for questions.
	lines *relay.Lines
	// reloads counts SIGHUPs.
	reloads  reloads
	hearing  *members.Hearing
	measured *measured
	// tracing is nil where there is no collector.
	tracing *obs.Tracing
}

// Run runs a replica until ctx ends. How it then stops is told in stop.go.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	r := &replica{cfg: cfg, measured: newMeasured()}
	var group run.Group
	defer func() { r.closeTracing(ctx) }()
	if err := r.open(ctx, &group); err != nil {
		r.abandon(ctx)
		if ctx.Err() != nil {
			cfg.Log.Info("stopped before it served", "was_at", err)
			return nil
		}
		return err
	}
	if r.observed != nil {
		group.Add("metrics listener", r.observed.run)
	}
	group.Add("etcd's state", r.askEtcd)
	group.Add("view", r.view.Run)
	group.Add("who is heard", r.hearing.Run)
	group.Add("events", r.events.Run)
	recorder := audit.Recorder{
		Log: r.audit, Replica: r.member.Record().Name, View: r.view, Store: r.store, Logger: cfg.Log.Named("audit"),
	}
	group.Add("audit log's end", recorder.Run)
	group.Add("audit log", r.audit.Run)
	group.Add("certificates", r.member.Run)
	if r.own != r.member.Server() {
		group.Add("configured certificates", func(ctx context.Context) error { return r.own.Run(ctx, certificateLook) })
	}
	// What listeners' calls need stops after the listeners; what would hold up
	// their stop, before: sessions, which end with leadership, and watches.
	group.Add("health", r.health.Run)
	group.Add("replica's record", r.announce)
	group.Add("replica's state", r.report)
	group.Add("certificates' records", func(ctx context.Context) error { return r.member.Follow(ctx, r.view, r.store) })
	group.Add("access file", r.access.Run)
	r.runBearers(&group)
	group.Add("SIGHUP", r.hangUps)
	for _, chain := range r.chains {
		group.Add("chain", chain.Run)
	}
	group.Add("lines to the leader", r.lines.Run)
	group.Add("api", r.callers.api.Run)
	group.Add("agents' listener", r.agents.Run)
	group.Add("callers' listener", r.serveCallers)
	if r.gateway != nil {
		group.Add("gateway", r.serveGateway)
	}
	group.Add("waits", r.callers.api.Leave)
	group.Add("drain", r.drain)
	group.Add("streams", r.callers.api.Move)
	group.Add("election", r.elect)
	group.Add("etcd's leadership", r.yieldEtcd)
	group.Add("service manager", r.watchOver)
	cfg.Log.Info("serving", "replica", r.member.Record().Name, "cluster", r.member.Record().Cluster, "version", obs.Version,
		"callers", cfg.Listen, "agents", cfg.AgentsListen, "gateway", cfg.GatewayListen, "metrics", cfg.MetricsListen)
	return group.Run(ctx)
}

// open opens all that the replica needs, in the order in which it can go wrong.
func (r *replica) open(ctx context.Context, group *run.Group) error {
	if err := r.openFiles(); err != nil {
		return err
	}
	if err := r.openTracing(ctx); err != nil {
		return err
	}
	if err := r.openEtcd(ctx, group); err != nil {
		return err
	}
	r.store = store.New(r.client)
	if err := r.store.Prepare(ctx); err != nil {
		return fmt.Errorf("preparing etcd: %w", err)
	}
	if err := r.member.CatchUp(ctx, r.store); err != nil {
		return fmt.Errorf("taking over the cluster's CAs: %w", err)
	}
	r.view = store.NewView(r.client, r.cfg.Log.Named("view"))
	r.hearing = &members.Hearing{View: r.view}
	r.view.OnEnd(r.measured.endings.Take)
	r.ops = operations.New(r.view, r.store)
	r.events = events.New(store.NewHistory(r.client), r.cfg.Log.Named("events"))
	if r.embedded != nil {
		r.disk = store.NewDisk(r.cfg.DataDir, r.cfg.room)
	}
	r.health = health.New(r.cfg.Log.Named("health"), readiness(r.view, r.audit, r.disk)...)
	r.pulse = r.newPulse()
	if err := r.openListeners(ctx); err != nil {
		return err
	}
	return r.openObserved(ctx)
}

// abandon closes what open has opened before it failed.
func (r *replica) abandon(ctx context.Context) {
	for _, l := range []*listener{r.callers, r.agents} {
		if l != nil {
			l.server.Stop()
			_ = l.lis.Close() // nothing was served on it
		}
	}
	if r.gateway != nil {
		_ = r.gateway.Close() // nothing was served on it
	}
	if r.observed != nil {
		_ = r.observed.lis.Close() // nothing was served on it
	}
	switch {
	case r.embedded != nil:
		r.embedded.Close()
	case r.client != nil:
		_ = r.client.Close() // nothing is asked of it any more
	}
	if r.audit != nil {
		ended, end := context.WithCancel(ctx)
		end()
		_ = r.audit.Run(ended) // writes what is left and closes
	}
}

// certificateLook is how often configured certificate files are looked at.
const certificateLook = 5 * time.Second

// openFiles opens what can be wrong on this host, before anything is started.
func (r *replica) openFiles() error {
	var err error
	home := members.Home{Dir: r.cfg.DataDir, WrapKey: r.cfg.WrapKey}
	if r.member, err = members.Open(home, r.cfg.ServerLife, r.cfg.Log.Named("members")); err != nil {
		return err
	}
	r.own = r.member.Server()
	if r.cfg.TLSCert != "" {
		files := certs.Files{Cert: r.cfg.TLSCert, Key: r.cfg.TLSKey, CA: r.cfg.TLSCA}
		if r.own, err = certs.NewReloader(files, r.cfg.Log.Named("certificates")); err != nil {
			return err
		}
	}
	if r.audit, err = audit.Open(audit.Config{
		Path: r.cfg.AuditLog, Replica: r.member.Record().Name, Syslog: r.cfg.AuditSyslog, Log: r.cfg.Log.Named("audit"),
	}); err != nil {
		return err
	}
	if err = r.openTokens(); err != nil {
		return err
	}
	return r.openAccess()
}

// openEtcd starts the embedded etcd or connects to the outside one, and waits
// until it answers.
func (r *replica) openEtcd(ctx context.Context, group *run.Group) error {
	log := r.cfg.Log.Named("etcd")
	if len(r.cfg.EtcdEndpoints) > 0 {
		client, err := store.Connect(ctx, store.ExternalConfig{
			Endpoints: r.cfg.EtcdEndpoints, CAFile: r.cfg.EtcdCA, CertFile: r.cfg.EtcdCert, KeyFile: r.cfg.EtcdKey, Meter: r.measured.etcd, Log: log,
		})
		if err != nil {
			return err
		}
		r.client = client
		group.Add("etcd client", func(ctx context.Context) error {
			<-ctx.Done()
			return client.Close()
		})
		return nil
	}
	record := r.member.Record()
	listen := record.PeerListen
	if r.cfg.EtcdPeerListen != "" {
		listen = r.cfg.EtcdPeerListen
	}
	log.Info("starting etcd; it answers once a majority of the replicas runs", "members", record.InitialCluster)
	embedded, err := store.StartEmbedded(ctx, store.EmbeddedConfig{
		Name: record.Name, DataDir: r.cfg.DataDir, PeerListen: listen, Peers: record.Peers(),
		Existing: record.State == members.StateExisting, Meter: r.measured.etcd, Log: log,
	})
	if err != nil {
		return err
	}
	r.client, r.embedded = embedded.Client(), embedded
	group.Add("etcd", embedded.Run)
	return nil
}

// elect campaigns, and does the leader's work while this replica leads.
func (r *replica) elect(ctx context.Context) error {
	e := election.New(election.Config{
		Client: r.client, TTL: r.cfg.LeaderTTL, Log: r.cfg.Log.Named("election"),
		Self: &storev1.Leader{Name: r.member.Record().Name, CallersAddress: r.cfg.Advertise, AgentsAddress: r.cfg.AgentsAdvertise},
	})
	return e.Run(ctx, r.led.Lead)
}

// announce writes how this replica is reached, as often as etcd needs to be
// asked, and then waits.
func (r *replica) announce(ctx context.Context) error {
	record := &storev1.Replica{
		Name: r.member.Record().Name, CallersAddress: r.cfg.Advertise, AgentsAddress: r.cfg.AgentsAdvertise, Version: obs.Version,
		SealKey: r.member.SealKey(), Schema: store.SchemaVersion,
	}
	for {
		_, err := r.store.Commit(ctx, store.Change{Puts: []store.Put{store.PutProto(store.ReplicaKey(record.GetName()), record)}})
		if err == nil {
			break
		}
		r.cfg.Log.Warn("telling the others how to reach this replica is tried again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
	<-ctx.Done()
	return nil
}
