// Package api is the front door of a replica: the chain that every call passes,
// and thin handlers behind it that call one thing, translate and return. Any
// replica answers any call; what changes the cluster is written to etcd, and
// the leader does it.
package api

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/events"
	"github.com/debvisor/debvisor/controlplane/internal/health"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Heard tells when a node's agent was last heard, where this replica knows it
// better than the records: the leader, which holds the sessions.
type Heard interface {
	LastHeard(node string) (at time.Time, ok bool)
}

// Config is what the handlers call.
type Config struct {
	// Cluster is the cluster's name, Replica this replica's.
	Cluster, Replica string
	// Ring gives the CAs: join tokens carry the fingerprint of the one that signs.
	Ring       func() *certs.Ring
	View       *store.View
	Store      *store.Store
	Operations *operations.Operations
	Authz      *authz.Authorizer
	// AccessFile is the one that Authz reads; nil: there is none.
	AccessFile *accessfile.File
	// Health says whether the replica can do what callers want of it.
	Health *health.Source
	// Audit is asked what it has.
	Audit *audit.Log
	// Codec is the callers' server's; nil: answers are never kept encoded.
	Codec *rpc.Codec
	// Heard may be nil.
	Heard Heard
	// Events is what watches of events read.
	Events *events.Feed
	// Members takes backups and removes replicas; nil: this replica does not.
	Members Members
	// Asker asks agents; nil: none answers.
	Asker Asker
	Log   hclog.Logger
}

// Server is the public API of one replica.
type Server struct {
	nodes  *nodeService
	health *watchedHealth
	audit  *auditService
	cfg    Config
}

// New makes a Server; Run must run for as long as it serves.
func New(cfg Config) *Server {
	return &Server{
		cfg:    cfg,
		health: newWatchedHealth(),
		audit:  newAuditService(cfg.View, cfg.Audit, cfg.Replica),
		nodes: &nodeService{
			view: cfg.View, operations: cfg.Operations, authz: cfg.Authz, ring: cfg.Ring,
			list:  &nodeList{view: cfg.View, codec: cfg.Codec, heard: cfg.Heard},
			beats: newHeartbeats(cfg.Store),
		},
	}
}

// Register registers every service of the callers' listener but enrolment.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	debvisorv1.RegisterNodeServiceServer(to, s.nodes)
	debvisorv1.RegisterVMServiceServer(to, &vmService{view: s.cfg.View, operations: s.cfg.Operations, authz: s.cfg.Authz})
	debvisorv1.RegisterOperationServiceServer(to, &operationService{view: s.cfg.View, operations: s.cfg.Operations})
	debvisorv1.RegisterMigrationServiceServer(to, &migrationService{
		view: s.cfg.View, operations: s.cfg.Operations, desk: plans.NewDesk(s.cfg.View, s.cfg.Store), authz: s.cfg.Authz,
		asker: s.cfg.Asker,
	})
	debvisorv1.RegisterStorageServiceServer(to, &storageService{
		view: s.cfg.View, operations: s.cfg.Operations, authz: s.cfg.Authz, asker: s.cfg.Asker,
		seen: &inventories{seen: map[string]inventoryOf{}},
	})
	debvisorv1.RegisterClusterServiceServer(to, &clusterService{
		view: s.cfg.View, store: s.cfg.Store, members: s.cfg.Members, cluster: s.cfg.Cluster, replica: s.cfg.Replica,
	})
	debvisorv1.RegisterEventServiceServer(to, &eventService{feed: s.cfg.Events})
	debvisorv1.RegisterAuditServiceServer(to, s.audit)
	access := newAccessService(s.cfg)
	debvisorv1.RegisterAccessServiceServer(to, access)
	debvisorv1.RegisterCertificateServiceServer(to, &certificateService{access: access, store: s.cfg.Store, cluster: s.cfg.Cluster, ring: s.cfg.Ring})
	healthv1.RegisterHealthServer(to, s.health)
	if server, ok := to.(reflection.GRPCServer); ok {
		reflection.Register(server)
	}
}

// TellOf has the health service tell of a server's services besides the replica
// as a whole. Before Run.
func (s *Server) TellOf(services map[string]grpc.ServiceInfo) { s.health.covers(services) }

// RegisterAgents registers what agents may call besides their session and
// renewal: RegisterNode and Heartbeat for themselves. The chain refuses them
// everything else.
func (s *Server) RegisterAgents(to grpc.ServiceRegistrar) {
	debvisorv1.RegisterNodeServiceServer(to, s.nodes)
	healthv1.RegisterHealthServer(to, s.health)
}

// Run keeps the health service true and writes heartbeats, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	beatsCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.nodes.beats.run(beatsCtx)
	}()
	for {
		report, changed := s.cfg.Health.Last()
		s.health.tell(report)
		select {
		case <-changed:
		case <-ctx.Done():
			s.health.leave()
			<-done
			return nil
		}
	}
}

// Move waits until ctx ends and then ends streams, which go on at other
// replicas: this one is about to stop. It is to be stopped before Leave.
func (s *Server) Move(ctx context.Context) error {
	<-ctx.Done()
	s.audit.leave()
	s.cfg.Events.Leave()
	s.cfg.Operations.Move()
	return nil
}

// Leave waits until ctx ends and then ends what would hold up the end of the
// server: watches of its health, and calls that wait for operations, which go
// on. It is to be stopped before the listeners, as Run after them.
func (s *Server) Leave(ctx context.Context) error {
	<-ctx.Done()
	s.health.leave()
	s.cfg.Operations.Leave()
	return nil
}
