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

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
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
	// Fingerprint is the CA's, which join tokens carry.
	Fingerprint string
	View        *store.View
	Store       *store.Store
	Operations  *operations.Operations
	Authz       *authz.Authorizer
	// AccessFile is the one that Authz reads; nil: there is none.
	AccessFile *accessfile.File
	// Audit is asked for its health.
	Audit *audit.Log
	// Codec is the callers' server's; nil: answers are never kept encoded.
	Codec *rpc.Codec
	// Heard may be nil.
	Heard Heard
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
			view: cfg.View, operations: cfg.Operations, authz: cfg.Authz, fingerprint: cfg.Fingerprint,
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
	debvisorv1.RegisterClusterServiceServer(to, &clusterService{view: s.cfg.View, cluster: s.cfg.Cluster, replica: s.cfg.Replica})
	debvisorv1.RegisterAuditServiceServer(to, s.audit)
	debvisorv1.RegisterAccessServiceServer(to, newAccessService(s.cfg))
	healthv1.RegisterHealthServer(to, s.health)
	if server, ok := to.(reflection.GRPCServer); ok {
		reflection.Register(server)
	}
}

// RegisterAgents registers what agents may call besides their session and
// renewal: RegisterNode and Heartbeat for themselves. The chain refuses them
// everything else.
func (s *Server) RegisterAgents(to grpc.ServiceRegistrar) {
	debvisorv1.RegisterNodeServiceServer(to, s.nodes)
	healthv1.RegisterHealthServer(to, s.health)
}

// healthEvery is how often a replica's health is looked at.
const healthEvery = 500 * time.Millisecond

// Run keeps the health service true and writes heartbeats, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	beatsCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.nodes.beats.run(beatsCtx)
	}()
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		s.health.SetServingStatus("", s.serving())
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.health.leave()
			<-done
			return nil
		}
	}
}

// Leave waits until ctx ends and then ends what would hold up the end of the
// server: watches and waits, which go on elsewhere. It is to be stopped before
// the listeners, as Run after them.
func (s *Server) Leave(ctx context.Context) error {
	<-ctx.Done()
	s.health.leave()
	s.audit.leave()
	s.cfg.Operations.Leave()
	return nil
}

// serving tells whether this replica can do what callers want of it: it sees
// the cluster, and can say on disk what is changed.
func (s *Server) serving() healthv1.HealthCheckResponse_ServingStatus {
	if s.cfg.View.Fresh() != nil || s.cfg.Audit != nil && s.cfg.Audit.Healthy() != nil {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	return healthv1.HealthCheckResponse_SERVING
}
