package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/controlplane/internal/metrics"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

const clusterName = "rungs"

// plenty is a limit that is counted and never reached, calls a minute.
const plenty = 1 << 30

// The principals. Each has a certificate, <name>.pem and <name>-key.pem.
const (
	// caller may call as often as it likes.
	caller = "caller"
	// greedy has one call a minute.
	greedy = "greedy"
)

// Offer is what the process serves.
type Offer struct {
	// Rungs are the servers, in the order of the ladder.
	Rungs []Rung `json:"rungs"`
	// Dir holds ca.pem, caller.pem, caller-key.pem and those of greedy.
	Dir string `json:"dir"`
	// APIKey and JWT are caller's.
	APIKey string `json:"api_key"`
	JWT    string `json:"jwt"`
	// AnswerBytes is the size of the answer.
	AnswerBytes int `json:"answer_bytes"`
}

// Rung is one server.
type Rung struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	Plaintext bool   `json:"plaintext"`
}

// house is the process: the parts of the front door over a view that stays as
// it is.
type house struct {
	dir    string
	offer  Offer
	answer *debvisorv1.VMList
	ca     *certs.Authority
	tls    *tls.Config
	view   view
	authn  *authn.Authenticator
	authz  *authz.Authorizer
	limit  *limit.Limiter
	check  *api.Validator
	trail  *audit.Log
	chain  *api.Chain
}

// view is a snapshot that nothing changes.
type view struct {
	*cluster.Snapshot
	born time.Time
}

func (v view) Current() *cluster.Snapshot { return v.Snapshot }
func (v view) Changed() <-chan struct{}   { return nil }

// Fresh costs what the store's does, which looks at a clock.
func (v view) Fresh() error {
	if time.Since(v.born) < 0 {
		return fmt.Errorf("the clock was set back beyond %s", v.born)
	}
	return nil
}

// answers answers every call alike.
type answers struct {
	debvisorv1.UnimplementedVMServiceServer
	list *debvisorv1.VMList
}

func (a answers) ListVMs(context.Context, *debvisorv1.VMFilter) (*debvisorv1.VMList, error) {
	return a.list, nil
}

func newHouse(dir string, vms int) (*house, error) {
	ca, err := certs.NewAuthority(clusterName, time.Now())
	if err != nil {
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	h := &house{dir: dir, ca: ca, offer: Offer{Dir: dir}, answer: list(vms), limit: limit.New()}
	h.offer.AnswerBytes = proto.Size(h.answer)
	if err := h.certify(); err != nil {
		return nil, err
	}
	d := cluster.Empty().Draft()
	for name, perMinute := range map[string]uint32{caller: plenty, greedy: 1} {
		d.Principals.Put(name, &storev1.Principal{Roles: []string{"viewer"}, Limit: &storev1.RateLimit{PerMinute: perMinute}}, 1)
	}
	if err := h.issueKey(d); err != nil {
		return nil, err
	}
	tokens, err := h.issueToken()
	if err != nil {
		return nil, err
	}
	if h.check, err = api.NewValidator(); err != nil {
		return nil, err
	}
	if h.trail, err = audit.Open(audit.Config{Path: filepath.Join(dir, "audit.log"), Replica: "r1", Log: hclog.NewNullLogger()}); err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	h.authz = authz.New(authz.Config{})
	h.authn = authn.New(authn.Config{Cluster: clusterName, Bearers: authn.NewBearers(authn.BearersConfig{Tokens: tokens})})
	h.view = view{d.Snapshot(1), time.Now()}
	h.chain = api.NewChain(api.ChainConfig{
		View: h.view, Authn: h.authn, Authz: h.authz, Limit: h.limit, Strangers: api.NewStrangers(),
		Audit: h.trail, Check: h.check, Meter: metrics.NewCalls(slices.Collect(maps.Keys(authz.Methods()))), Log: hclog.NewNullLogger(),
	})
	return h, nil
}

// list is an answer such as a small cluster gives.
func list(vms int) *debvisorv1.VMList {
	l := &debvisorv1.VMList{}
	for i := range vms {
		name := fmt.Sprintf("vm-%03d", i)
		l.Vms = append(l.Vms, &debvisorv1.VM{
			Id: fmt.Sprintf("3f5c2c6e-0000-4000-8000-%012d", i), Name: name, Node: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: "node-001"}},
			State: debvisorv1.VMState_VM_STATE_RUNNING,
		})
	}
	return l
}

// certify makes the certificates of the server and of the principals.
func (h *house) certify() error {
	if err := os.WriteFile(filepath.Join(h.dir, "ca.pem"), h.ca.PEM(), 0o600); err != nil {
		return fmt.Errorf("writing the CA: %w", err)
	}
	for name, leaf := range map[string]certs.Leaf{
		"server": certs.ServerLeaf(clusterName, "rungs", nil, 0), caller: certs.ClientLeaf(caller, 0), greedy: certs.ClientLeaf(greedy, 0),
	} {
		if err := h.issue(name, leaf); err != nil {
			return fmt.Errorf("a certificate for %s: %w", name, err)
		}
	}
	own, err := certs.NewReloader(certs.Files{
		CA: filepath.Join(h.dir, "ca.pem"), Cert: filepath.Join(h.dir, "server.pem"), Key: filepath.Join(h.dir, "server-key.pem"),
	}, hclog.NewNullLogger())
	if err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	h.tls = own.CallersServer()
	return nil
}

func (h *house) issue(name string, leaf certs.Leaf) error {
	key, err := certs.NewKey()
	if err != nil {
		return err
	}
	certPEM, err := h.ca.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		return err
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(h.dir, name+".pem"), certPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir, name+"-key.pem"), keyPEM, 0o600)
}

// serve opens a port for every rung.
func (h *house) serve(ctx context.Context) error {
	ladder, err := h.ladder() //nolint:contextcheck // each call brings its own context
	if err != nil {
		return err
	}
	for _, r := range ladder {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("listening for %s: %w", r.name, err)
		}
		var services grpc.ServiceRegistrar = r.server
		if r.name == whole {
			services = rpc.Registrar{Server: r.server, Undelivered: h.chain.Undelivered}
		}
		debvisorv1.RegisterVMServiceServer(services, answers{list: h.answer})
		go func() { _ = r.server.Serve(lis) }() // for as long as the process lives
		h.offer.Rungs = append(h.offer.Rungs, Rung{Name: r.name, Address: lis.Addr().String(), Plaintext: r.name == plaintext})
	}
	return nil
}

// bareTLS is mutual TLS as grpc-go's users set it up.
func (h *house) bareTLS() (credentials.TransportCredentials, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(h.dir, "server.pem"), filepath.Join(h.dir, "server-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("loading the server's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(h.ca.Certificate())
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}), nil
}
