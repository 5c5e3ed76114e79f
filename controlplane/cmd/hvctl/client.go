package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// client is a connection to the first replica that can be reached.
type client struct {
	nodes        debvisorv1.NodeServiceClient
	vms          debvisorv1.VMServiceClient
	migrations   debvisorv1.MigrationServiceClient
	operations   debvisorv1.OperationServiceClient
	cluster      debvisorv1.ClusterServiceClient
	audits       debvisorv1.AuditServiceClient
	access       debvisorv1.AccessServiceClient
	certificates debvisorv1.CertificateServiceClient
	storage      debvisorv1.StorageServiceClient
	events       debvisorv1.EventServiceClient
	servers      []string
	conn         *grpc.ClientConn
	reach        *reach
	trace        string
}

// dial makes the client of this run. It connects with the first call.
func (a *app) dial() (*client, error) { return a.dialTo(nil) }

// dialTo makes a client of these replicas, with the identity of this run; none:
// of those that this run was told.
func (a *app) dialTo(servers []string) (*client, error) {
	where, err := a.endpoint()
	if err != nil {
		return nil, err
	}
	if len(servers) == 0 {
		if servers, err = where.servers(); err != nil {
			return nil, err
		}
	}
	who, err := where.bearer()
	if err != nil {
		return nil, err
	}
	cfg, err := where.tls()
	if err != nil {
		return nil, err
	}
	reach := newReach(servers)
	c := &client{servers: servers, reach: reach, trace: cmp.Or(a.tracing.root.TraceID(), newTraceID())}
	again := &retry{reach: reach, patience: a.flags.timeout, tell: a.hint}
	target, replicas := replicaResolver(servers)
	options := []grpc.DialOption{
		grpc.WithResolvers(replicas),
		grpc.WithContextDialer(reach.dial),
		grpc.WithTransportCredentials(reach.credentials(cfg)),
		grpc.WithStatsHandler(reach),
		grpc.WithChainUnaryInterceptor(again.unary),
		grpc.WithUserAgent("hvctl"),
	}
	if who != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(who)))
	}
	c.conn, err = rpc.Dial(target, cfg, append(options, a.tracing.to.Dial()...)...)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	c.nodes = debvisorv1.NewNodeServiceClient(c.conn)
	c.vms = debvisorv1.NewVMServiceClient(c.conn)
	c.migrations = debvisorv1.NewMigrationServiceClient(c.conn)
	c.operations = debvisorv1.NewOperationServiceClient(c.conn)
	c.cluster = debvisorv1.NewClusterServiceClient(c.conn)
	c.audits = debvisorv1.NewAuditServiceClient(c.conn)
	c.access = debvisorv1.NewAccessServiceClient(c.conn)
	c.certificates = debvisorv1.NewCertificateServiceClient(c.conn)
	c.storage = debvisorv1.NewStorageServiceClient(c.conn)
	c.events = debvisorv1.NewEventServiceClient(c.conn)
	return c, nil
}

// close ends the connection.
func (c *client) close() { _ = c.conn.Close() }

// told turns a status into an error of a kind and gives it what only the
// client knows: the trace id of the calls, and why each replica could not be
// reached. Other errors pass.
func (c *client) told(err error) error {
	if _, isStatus := status.FromError(err); err == nil || !isStatus {
		return err
	}
	e := errdefs.FromStatus(err)
	switch {
	case answered(e):
	case e.Kind == errdefs.Cancelled:
		return errdefs.New(errdefs.Cancelled, codeInterrupted, "interrupted")
	case c.reach.sent() && e.Kind == errdefs.DeadlineExceeded:
		e = errdefs.New(errdefs.DeadlineExceeded, codeTimeout, "no answer within --timeout")
	}
	if !c.reach.sent() && !answered(e) {
		return c.reach.failure(e)
	}
	if !answered(e) {
		e = errdefs.New(errdefs.Unavailable, codeLost, "the connection was lost before the answer: %s", e.Message)
	}
	if e.Context["trace_id"] == "" {
		e = e.With("trace_id", c.trace)
	}
	return e
}

// replicaResolver gives grpc the replicas as addresses, each with the host that
// its certificate must name. grpc's pick-first tries them in order.
func replicaResolver(servers []string) (target string, r resolver.Builder) {
	m := manual.NewBuilderWithScheme("hvctl")
	var state resolver.State
	for _, server := range servers {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: server, ServerName: hostOf(server)})
	}
	m.InitialState(state)
	return "hvctl:///" + servers[0], m
}

// newTraceID makes 128 random bits in hex.
func newTraceID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
