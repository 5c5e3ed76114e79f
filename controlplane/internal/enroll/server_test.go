package enroll_test

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Over both listeners, as an agent sees them: enrolment without an identity,
// renewal with the certificate, also long after its end, and by nobody else.
func TestServers(t *testing.T) {
	o := open(t)
	server := o.reloader(t, certs.ServerLeaf(clusterName, "r1", nil, 0), time.Now(), 0)
	callers := serve(t, server.CallersServer(), &enroll.CallersServer{Enrolment: o.Enrolment})
	agents := serve(t, server.AgentsServer(clusterName), &enroll.AgentsServer{Enrolment: o.Enrolment})

	fingerprint := certs.Fingerprint(o.ca.Certificate())
	resp, err := dial(t, callers, certs.BootstrapClient("127.0.0.1", fingerprint)).Enroll(t.Context(), &agentv1.EnrollRequest{
		Token: o.nodeToken(t), NodeId: "node-1", Csr: csr(t, newKey(t)),
	})
	if err != nil {
		t.Fatal(err)
	}
	agentOf(t, resp.GetCertificate())
	n := o.node(t, "node-1")
	o.commit(t, store.Change{Puts: []store.Put{store.PutProto(store.NodeKey("node-2"), &storev1.Node{
		Id: "node-2", EnrolledAt: timestamppb.New(time.Now().Add(-180 * 24 * time.Hour)),
	})}})

	request := &agentv1.RenewRequest{Csr: csr(t, newKey(t))}
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		node   string
		issued time.Duration
		code   string
	}{
		"valid":                 {"node-1", 0, ""},
		"of before enrolment":   {"node-1", -day, "NODE_REPLACED"},
		"one second before":     {"node-1", time.Until(n.GetEnrolledAt().AsTime()) - time.Second, "NODE_REPLACED"},
		"expired since 89 days": {"node-2", -119 * day, ""},
		"expired since 91 days": {"node-2", -121 * day, "Unavailable"},
		"of no node":            {"node-3", 0, "NODE_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			agent := o.reloader(t, certs.AgentLeaf(clusterName, c.node, 0), time.Now().Add(c.issued), 1000*day)
			_, err := dial(t, agents, agent.ReplicaClient("127.0.0.1")).Renew(t.Context(), request)
			if c.code == "" && err != nil {
				t.Error(err)
			} else if c.code != "" {
				refused(t, err, c.code)
			}
		})
	}
	operator := o.reloader(t, certs.ClientLeaf("operator", 0), time.Now(), 0)
	if _, err := dial(t, agents, operator.ReplicaClient("127.0.0.1")).Renew(t.Context(), request); err == nil {
		t.Error("a principal renewed an agent's certificate")
	}
	if _, err := dial(t, callers, operator.ReplicaClient("127.0.0.1")).Renew(t.Context(), request); err == nil {
		t.Error("the callers' listener renews")
	}
}

func (o *office) reloader(t *testing.T, leaf certs.Leaf, at time.Time, grace time.Duration) *certs.Reloader {
	t.Helper()
	dir := t.TempDir()
	files := certs.Files{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem"), Grace: grace,
	}
	pair := certs.Pair{Cert: files.Cert, Key: files.Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := o.ca.Issue(key.Public(), leaf, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Install(certPEM); err != nil {
		t.Fatal(err)
	}
	if err := certs.WriteFile(files.CA, o.ca.PEM(), certs.PublicMode); err != nil {
		t.Fatal(err)
	}
	r, err := certs.NewReloader(files, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func serve(t *testing.T, cfg *tls.Config, service agentv1.EnrollServiceServer) string {
	t.Helper()
	s, err := rpc.NewServer(rpc.ServerConfig{TLS: cfg, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterEnrollServiceServer(s, service)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return listener.Addr().String()
}

func dial(t *testing.T, address string, cfg *tls.Config) agentv1.EnrollServiceClient {
	t.Helper()
	conn, err := rpc.Dial(address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return agentv1.NewEnrollServiceClient(conn)
}
