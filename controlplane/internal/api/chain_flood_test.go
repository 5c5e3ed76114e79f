package api_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Who takes turns with two keys on one connection is new with each call.
func TestTurnsOfKeysDoNotFillTheAuditLog(t *testing.T) {
	r := start(t, 1<<30)
	r.put(store.PutJSON(store.PrincipalKey("ci"), limited(5, "viewer")))
	var calls [2]context.Context
	for i := range calls {
		key, err := identity.NewAPIKey()
		if err != nil {
			t.Fatal(err)
		}
		r.put(store.PutJSON(store.APIKeyKey(key.ID), &storev1.APIKey{Sha256: key.Hash(), Principal: "ci", CreatedAt: timestamppb.Now()}))
		calls[i] = metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key.Text())
	}
	nodes := debvisorv1.NewNodeServiceClient(r.anonymous())
	var last *errdefs.Error
	for i := range 200 {
		_, err := nodes.ListNodes(calls[i%2], &debvisorv1.Empty{})
		last = errdefs.FromStatus(err)
	}
	if last == nil || last.Code != "RATE_LIMIT_EXCEEDED" {
		t.Fatalf("the last of 200 calls: %v", last)
	}
	if e := listOn(t, r.principal("operator")); e != nil {
		t.Fatal(e)
	}
	told := 0
	for _, event := range eventsOf(r, "authentication_success", "operator") {
		if event["principal"] == "ci" {
			told++
		}
	}
	if told == 0 || told > 10 {
		t.Errorf("200 calls, of which 5 were let in, made %d lines of success", told)
	}
}

// eventsOf gives the events of a kind once there is one of a principal: all
// before it are written, too.
func eventsOf(r *replica, kind, principal string) []map[string]any {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		events := r.events(kind, 1)
		if slices.ContainsFunc(events, func(event map[string]any) bool { return event["principal"] == principal }) {
			return events
		}
	}
	r.t.Fatalf("the audit log has no %s of %s", kind, principal)
	return nil
}

// An agent that is refused over and over, by its own fault or its node's new
// owner's, fills neither the log nor the audit log.
func TestRefusedAgentsFillNoLog(t *testing.T) {
	r := start(t, 0)
	r.node("n1", nil)
	for name, c := range map[string]struct {
		prepare func()
		call    func(context.Context, *grpc.ClientConn) error
		code    string
	}{
		"for what agents may not call": {func() {}, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
			return err
		}, "NOT_FOR_AGENTS"},
		"revoked": {
			func() { r.put(store.PutString(store.RevokedKey(serialOf(t, r.dir+"/agent-n1.pem")), "stolen")) },
			func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := debvisorv1.NewNodeServiceClient(conn).Heartbeat(ctx, &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "n1"}})
				return err
			}, "CERTIFICATE_REVOKED",
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := r.issue("agent-n1", certs.AgentLeaf(clusterName, "n1", 0))
			address, log, trail := r.agentsListener(t)
			own, err := certs.NewReloader(files, hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := rpc.Dial(address, own.ReplicaClient("127.0.0.1"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			c.prepare()
			for i := range 300 {
				e := errdefs.FromStatus(c.call(t.Context(), conn))
				if want := c.code; e == nil || i < 10 && e.Code != want || i > 100 && e.Code != "TOO_MANY_FAILURES" {
					t.Fatalf("call %d: %+v", i, e)
				}
			}
			if n := strings.Count(log.String(), "call refused"); n > 40 {
				t.Errorf("300 refused calls made %d lines in the log", n)
			}
			b, err := os.ReadFile(trail)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), "\n"); n > 60 {
				t.Errorf("300 refused calls made %d lines in the audit log", n)
			}
		})
	}
}

// agentsListener serves the agents' listener; it gives its address, its log and
// where its audit log is.
func (r *replica) agentsListener(t *testing.T) (address string, log *buffer, trail string) {
	t.Helper()
	log, trail = &buffer{}, filepath.Join(storetest.Dir(t), "agents-audit.log")
	logger := hclog.New(&hclog.LoggerOptions{Output: log})
	events, err := audit.Open(audit.Config{Path: trail, Replica: "r1", Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	background(t, events.Run)
	check, err := api.NewValidator()
	if err != nil {
		t.Fatal(err)
	}
	chain := api.NewChain(api.ChainConfig{
		View: r.view, Authn: authn.New(authn.Config{Cluster: clusterName}), Authz: r.authz, Strangers: api.NewStrangers(),
		Audit: events, Check: check, Log: logger,
	})
	background(t, chain.Run)
	own, err := certs.NewReloader(r.issue("agents-server", certs.ServerLeaf(clusterName, "r1", nil, 0)), logger)
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: own.AgentsServer(clusterName), Unary: chain.Unary, Stream: chain.Stream})
	if err != nil {
		t.Fatal(err)
	}
	r.front.RegisterAgents(server)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		return server.Serve(lis)
	})
	return lis.Addr().String(), log, trail
}
