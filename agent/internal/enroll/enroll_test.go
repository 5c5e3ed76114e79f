package enroll_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

const cluster = "testing"

// replica stands for the other process: it issues real certificates over real
// listeners, and remembers the keys it was asked for. The cases that need its
// records are those of the control plane's package enroll.
type replica struct {
	agentv1.UnimplementedEnrollServiceServer
	ca              *certs.Authority
	life            time.Duration
	callers, agents string

	mu     sync.Mutex
	keys   [][]byte
	lose   bool  // the answer of the next Enroll
	refuse error // what Renew answers
	// bundle is what members are told to trust.
	bundle []byte
}

func newReplica(t *testing.T) *replica {
	t.Helper()
	ca, err := certs.NewAuthority("CA", time.Now().Add(-200*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{ca: ca, bundle: ca.PEM(), life: time.Hour}
	server := r.reloader(t, certs.ServerLeaf(cluster, "r1", nil, 0))
	r.callers = serve(t, server.CallersServer(), r)
	r.agents = serve(t, server.AgentsServer(cluster), r)
	return r
}

func (r *replica) Enroll(_ context.Context, req *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	certPEM, err := r.issue(req.GetNodeId(), req.GetCsr())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lose {
		r.lose = false
		return nil, errors.New("lost")
	}
	return &agentv1.EnrollResponse{Certificate: certPEM, Ca: r.bundle, Cluster: cluster, Servers: []string{r.agents}}, nil
}

func (r *replica) Renew(ctx context.Context, req *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	id, err := identity.FromCertificate(rpc.Certificate(ctx), cluster)
	if err != nil {
		return nil, err
	}
	certPEM, err := r.issue(id.Agent.Node, req.GetCsr())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &agentv1.RenewResponse{Certificate: certPEM, Ca: r.bundle}, r.refuse
}

func (r *replica) issue(node string, csr []byte) ([]byte, error) {
	pub, err := certs.ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	hash, err := certs.KeyHash(pub)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = append(r.keys, hash)
	return r.ca.Issue(pub, certs.AgentLeaf(cluster, node, r.life), time.Now())
}

func (r *replica) asked() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.keys)
}

func (r *replica) request(t *testing.T, node string) enroll.Request {
	t.Helper()
	token, err := identity.NewJoinToken(certs.Fingerprint(r.ca.Certificate()))
	if err != nil {
		t.Fatal(err)
	}
	return enroll.Request{Server: r.callers, Token: token.Text(), Node: node}
}

func (r *replica) enrolled(t *testing.T, node string) enroll.Home {
	t.Helper()
	home := enroll.Home{Dir: t.TempDir()}
	if _, err := enroll.Enroll(t.Context(), home, r.request(t, node)); err != nil {
		t.Fatal(err)
	}
	return home
}

func TestEnroll(t *testing.T) {
	r := newReplica(t)
	home := r.enrolled(t, "node-1")
	record, reloader, err := home.Open(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if record.Node != "node-1" || record.Cluster != cluster || len(record.Servers) != 1 || record.Servers[0] != r.agents {
		t.Errorf("record: %+v", record)
	}
	id, err := identity.FromCertificate(reloader.Leaf(), cluster)
	if err != nil || id.Agent == nil || id.Agent.Node != "node-1" {
		t.Errorf("identity %v, %v", id, err)
	}
	st, err := os.Stat(home.Files().Key)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v, %v", st, err)
	}
	if _, err := enroll.Enroll(t.Context(), home, r.request(t, "node-1")); err == nil || !strings.Contains(err.Error(), "enrolled already") {
		t.Errorf("enrolled twice: %v", err)
	}
}

func TestRetryUsesTheSameKey(t *testing.T) {
	r := newReplica(t)
	r.lose = true
	home, req := enroll.Home{Dir: t.TempDir()}, r.request(t, "node-1")
	if _, err := enroll.Enroll(t.Context(), home, req); err == nil {
		t.Fatal("the answer was not lost")
	}
	if _, err := enroll.Enroll(t.Context(), home, req); err != nil {
		t.Fatal(err)
	}
	if keys := r.asked(); len(keys) != 2 || !bytes.Equal(keys[0], keys[1]) {
		t.Errorf("asked for %d keys, not one twice", len(keys))
	}
}

func TestEnrollTrustsOnlyTheTokensCluster(t *testing.T) {
	r, other := newReplica(t), newReplica(t)
	req := r.request(t, "node-1")
	req.Server = other.callers
	home := enroll.Home{Dir: t.TempDir()}
	_, err := enroll.Enroll(t.Context(), home, req)
	if err == nil || !strings.Contains(err.Error(), "not of the cluster that made the join token") {
		t.Errorf("got %v", err)
	}
	if len(other.asked()) != 0 {
		t.Error("the token was shown to a stranger")
	}
	r.mu.Lock()
	r.bundle = other.ca.PEM()
	r.mu.Unlock()
	if _, err := enroll.Enroll(t.Context(), home, r.request(t, "node-1")); err == nil {
		t.Error("another CA than the token's was accepted from the answer")
	}
}

func TestEnrollRefuses(t *testing.T) {
	r := newReplica(t)
	for name, spoil := range map[string]func(*enroll.Request){
		"a typing error": func(q *enroll.Request) { q.Token = strings.Replace(q.Token, "dvj_", "dvj_0", 1) },
		"no node":        func(q *enroll.Request) { q.Node = "" },
		"no port":        func(q *enroll.Request) { q.Server = "127.0.0.1" },
	} {
		req := r.request(t, "node-1")
		spoil(&req)
		if _, err := enroll.Enroll(t.Context(), enroll.Home{Dir: t.TempDir()}, req); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(r.asked()) != 0 {
		t.Error("a bad request was sent")
	}
}

func TestOpenRefusesInOneLine(t *testing.T) {
	r := newReplica(t)
	for want, spoil := range map[string]func(enroll.Home) error{
		"no agent's data directory": func(h enroll.Home) error { return os.Remove(h.RecordFile()) },
		"agent.json is damaged":     func(h enroll.Home) error { return os.WriteFile(h.RecordFile(), []byte("{"), 0o600) },
		"does not match": func(h enroll.Home) error {
			key, err := certs.NewKey()
			if err != nil {
				return err
			}
			keyPEM, err := certs.EncodeKey(key)
			if err != nil {
				return err
			}
			return os.WriteFile(h.Files().Key, keyPEM, 0o600)
		},
		"is not that of the agent of node": func(h enroll.Home) error {
			return os.WriteFile(h.RecordFile(), []byte(`{"node":"node-2","cluster":"testing"}`), 0o600)
		},
	} {
		home := r.enrolled(t, "node-1")
		if err := spoil(home); err != nil {
			t.Fatal(err)
		}
		_, _, err := home.Open(hclog.NewNullLogger())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one line with %q, got %v", want, err)
		}
	}
}

// reloader gives a certificate of the replica's CA.
func (r *replica) reloader(t *testing.T, leaf certs.Leaf) *certs.Reloader {
	t.Helper()
	dir := t.TempDir()
	files := certs.Files{CA: dir + "/ca.pem", Cert: dir + "/c.pem", Key: dir + "/k.pem"}
	pair := certs.Pair{Cert: files.Cert, Key: files.Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := r.ca.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pair.Install(certPEM), certs.WriteFile(files.CA, r.ca.PEM(), certs.PublicMode)); err != nil {
		t.Fatal(err)
	}
	reloader, err := certs.NewReloader(files, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return reloader
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

// wantKind checks an error's kind.
func wantKind(t *testing.T, err error, kind errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, kind) {
		t.Errorf("got %v, want kind %d", err, kind)
	}
}
