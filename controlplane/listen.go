package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/advisor"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	"github.com/debvisor/debvisor/controlplane/internal/drain"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/failover"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/migrate"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/power"
	"github.com/debvisor/debvisor/controlplane/internal/recovery"
	"github.com/debvisor/debvisor/controlplane/internal/relay"
	"github.com/debvisor/debvisor/controlplane/internal/schedule"
	"github.com/debvisor/debvisor/controlplane/internal/storage"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// graceful is how long calls may go on once the replica stops.
const graceful = 5 * time.Second

// founder is the principal of the certificate that init makes.
const founder = "operator"

// listener is one gRPC server on one socket.
type listener struct {
	lis    net.Listener
	server *grpc.Server
	api    *api.Server
}

// Run serves until ctx ends; calls at work get a grace.
func (l *listener) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- l.server.Serve(l.lis) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", l.lis.Addr(), err)
	case <-ctx.Done():
	}
	hard := time.AfterFunc(graceful, l.server.Stop)
	defer hard.Stop()
	l.server.GracefulStop()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("stopping %s: %w", l.lis.Addr(), err)
	}
	return nil
}

// openListeners makes both servers with their chains, and binds their sockets
// so that an address in use stops the start.
func (r *replica) openListeners(ctx context.Context) error {
	log, record := r.cfg.Log, r.member.Record()
	inv := inventory.New(inventory.Config{View: r.view, Store: r.store, Interval: r.cfg.HeartbeatInterval, Tracing: r.tracing, Log: log.Named("inventory")})
	sessions := dispatch.New(dispatch.Config{
		Replica: record.Name, Cluster: record.Cluster, View: r.view, Store: r.store, Inventory: inv,
		Interval: r.cfg.HeartbeatInterval, Trust: trust{r.member}, Log: log.Named("dispatch"),
	})
	r.lines = relay.NewLines(r.member.Server().ReplicaClient, r.tracing.Dial()...)
	questions := relay.New(relay.Config{Replica: record.Name, View: r.view, Sessions: sessions, Leader: r.lines})
	advice := advisor.New(sessions, inv, log.Named("advisor"))
	r.led = &led{
		schedule: schedule.New(r.view, r.store, r.ownerOf, nil, log.Named("schedule")).Traced(r.tracing),
		plans:    plans.New(r.view, r.store, advice, log.Named("plans")),
		drain:    drain.New(r.view, r.store, advice, log.Named("drain")),
		dispatch: sessions, migrate: migrate.New(r.view, r.store, advice, r.audit, log.Named("migrate")),
		recovery: recovery.New(r.view, r.store, log.Named("recovery")),
		power:    power.New(r.view, r.store, log.Named("power")),
		failover: failover.New(r.view, r.store, log.Named("failover")),
		storage:  storage.New(r.view, r.store, sessions.AskParts, r.audit, log.Named("storage")), ops: r.ops, view: r.view, store: r.store, etcd: r.embedded, audit: r.audit, ring: r.member.Ring, tracing: r.tracing, log: log.Named("leader"),
	}
	enrolment := enroll.New(enroll.Config{
		Cluster: record.Cluster, Ring: r.member.Ring, AgentLife: r.cfg.AgentLife,
		AgentsAddress: r.cfg.AgentsAdvertise, View: r.view, Store: r.store, Log: log.Named("enroll"),
	})
	door := &members.Door{
		Member: r.member, Log: log.Named("members"),
		Tokens: &enroll.Ledger{View: r.view, Store: r.store, Log: log.Named("enroll")},
	}
	if r.embedded != nil {
		door.Etcd = r.client
	}
	check, err := api.NewValidator()
	if err != nil {
		return fmt.Errorf("preparing validation: %w", err)
	}
	chain := api.ChainConfig{
		View: r.view, Authz: r.authz, Audit: r.audit, Check: check, Disk: r.disk, Meter: r.measured.calls, Log: log.Named("rpc"),
	}
	codec := rpc.NewCodec()
	public := api.New(api.Config{
		Cluster: record.Cluster, Replica: record.Name, Ring: r.member.Ring,
		View: r.view, Store: r.store, Operations: r.ops, Events: r.events, Authz: chain.Authz, AccessFile: r.access, Health: r.health, Audit: r.audit, Codec: codec, Heard: heard{inv}, Asker: questions, Members: r.members(log.Named("members")), Log: log.Named("api"),
	})
	chain.Strangers = api.NewStrangers()
	chain.Authn = authn.New(authn.Config{Cluster: record.Cluster, Replicas: true})
	agentsChain := api.NewChain(chain)
	chain.Strangers = api.NewStrangers() // of its own: what agents do harms no caller
	chain.Limit = limit.New()
	chain.Authn = authn.New(authn.Config{Cluster: record.Cluster, Bearers: r.openBearers()})
	callersChain := api.NewChain(chain)
	r.chains = []*api.Chain{agentsChain, callersChain}
	r.measure(looked{inv, sessions, chain.Limit, agentsChain.Strangers, callersChain.Strangers})

	r.callers, err = bind(ctx, "--listen", r.cfg.Listen, rpc.ServerConfig{
		TLS: r.own.CallersServer(), Unary: callersChain.Unary, Stream: callersChain.Stream, Tap: callersChain.Tap, Age: true, Codec: codec, Spans: r.tracing.Server(untraced), Log: log,
	})
	if err != nil {
		return err
	}
	r.callers.api = public
	services := rpc.Registrar{Server: r.callers.server, Undelivered: callersChain.Undelivered}
	public.Register(services)
	agentv1.RegisterEnrollServiceServer(services, &enroll.CallersServer{Enrolment: enrolment, Joiner: door})
	if err := chain.Authz.Covers(r.callers.server.GetServiceInfo()); err != nil {
		return err
	}
	public.TellOf(r.callers.server.GetServiceInfo())
	r.agents, err = bind(ctx, "--agents-listen", r.cfg.AgentsListen, rpc.ServerConfig{
		TLS: r.member.Server().AgentsServer(record.Cluster), Unary: agentsChain.Unary, Stream: agentsChain.Stream, Spans: r.tracing.Server(untraced), Log: log,
	})
	if err != nil {
		return err
	}
	public.RegisterAgents(r.agents.server)
	agentv1.RegisterSessionServiceServer(r.agents.server, sessions)
	agentv1.RegisterRelayServiceServer(r.agents.server, questions)
	agentv1.RegisterEnrollServiceServer(r.agents.server, &enroll.AgentsServer{Enrolment: enrolment})
	if err := chain.Authz.Covers(r.agents.server.GetServiceInfo()); err != nil {
		return err
	}
	return r.openGateway(ctx)
}

// heard tells the API what only the leader's memory knows.
type heard struct{ *inventory.Inventory }

// LastHeard is when a node's agent was last heard by this leader.
func (h heard) LastHeard(node string) (at time.Time, ok bool) {
	at, _, ok = h.Heard(node)
	return at, ok
}

func bind(ctx context.Context, flag, address string, cfg rpc.ServerConfig) (*listener, error) {
	server, err := rpc.NewServer(cfg) //nolint:contextcheck // each call brings its own context
	if err != nil {
		return nil, err
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return &listener{lis: lis, server: server}, nil
}
