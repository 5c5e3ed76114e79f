package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// page serves a page that only those who may read metrics get, over the rig's
// records; ask asks for it as whom the files say, and audited has its audit log.
func (r *replica) page() (ask func(files *certs.Files) (status int, body string), audited *replica) {
	t := r.t
	t.Helper()
	audited = &replica{t: t, dir: t.TempDir()}
	trail, err := audit.Open(audit.Config{Path: filepath.Join(audited.dir, "audit.log"), Replica: "r1", Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	background(t, trail.Run)
	chain := api.NewChain(api.ChainConfig{
		View: r.view, Authn: authn.New(authn.Config{Cluster: clusterName}), Authz: r.authz, Limit: limit.New(),
		Strangers: api.NewStrangers(), Audit: trail, Log: hclog.NewNullLogger(),
	})
	background(t, chain.Run)
	own, err := certs.NewReloader(r.issue("page", certs.ServerLeaf(clusterName, "r1", []string{"127.0.0.1"}, 0)), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(chain.Scrape(authz.ReadMetrics, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "the page")
	})))
	server.TLS = own.CallersServer()
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Certificate())
	return func(files *certs.Files) (int, string) {
		t.Helper()
		config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
		if files != nil {
			pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: (&net.Dialer{}).DialContext}}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}, audited
}

func TestWhoMayScrape(t *testing.T) {
	r := start(t, 0)
	r.put(store.PutJSON(store.PrincipalKey("scraper"), &storev1.Principal{Permissions: []string{authz.ReadMetrics}}))
	r.put(store.PutJSON(store.PrincipalKey("viewer"), &storev1.Principal{Roles: []string{"viewer"}}))
	r.put(store.PutJSON(store.PrincipalKey("other"), &storev1.Principal{Permissions: []string{"vm:list"}}))
	r.put(store.PutJSON(store.TenantKey("acme"), &storev1.Tenant{}))
	r.put(store.PutJSON(store.PrincipalKey("confined"), &storev1.Principal{Roles: []string{"viewer"}, Tenant: "acme"}))
	r.put(store.PutJSON(store.PrincipalKey("greedy"), limited(1, "viewer")))
	ask, audited := r.page()
	issued := 0
	as := func(name string) *certs.Files {
		issued++
		files := r.issue(fmt.Sprint(name, issued), certs.ClientLeaf(name, 0))
		return &files
	}
	revoked := as("viewer")
	pair, err := tls.LoadX509KeyPair(revoked.Cert, revoked.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.put(store.PutString(store.RevokedKey(certs.Serial(pair.Leaf)), "lost"))
	agent := r.issue("agent-scrapes", certs.AgentLeaf(clusterName, "hv1", time.Hour))
	for _, c := range []struct {
		who    string
		files  *certs.Files
		status int
		body   string
	}{
		{"one with the permission", as("scraper"), http.StatusOK, "the page"},
		{"a viewer", as("viewer"), http.StatusOK, "the page"},
		{"the founder", as("operator"), http.StatusOK, "the page"},
		{"nobody", nil, http.StatusUnauthorized, "NO_IDENTITY"},
		{"one with a revoked certificate", revoked, http.StatusUnauthorized, "CERTIFICATE_REVOKED"},
		{"one without the permission", as("other"), http.StatusForbidden, "PERMISSION_DENIED"},
		{"one of a tenant", as("confined"), http.StatusForbidden, "CONFINED"},
		{"an agent", &agent, http.StatusForbidden, "PERMISSION_DENIED"},
		{"one who has a call a minute, first", as("greedy"), http.StatusOK, "the page"},
		{"one who has a call a minute, then", as("greedy"), http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED"},
	} {
		status, body := ask(c.files)
		if status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("%s gets %d %q, want %d %s", c.who, status, body, c.status, c.body)
		}
	}
	// Refusals are audited, and nothing else.
	for kind, n := range map[string]int{"authentication_failure": 2, "permission_denied": 3, "rate_limit_exceeded": 1, "rpc_result": 0} {
		if got := len(audited.events(kind, n)); got != n {
			t.Errorf("%d events %s, want %d", got, kind, n)
		}
	}
}
