package enroll_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

const clusterName = "testing"

// office is an Enrolment above a real etcd.
type office struct {
	*enroll.Enrolment
	view  *store.View
	store *store.Store
	ca    *certs.Authority
	log   *lines
}

func open(t *testing.T) *office {
	t.Helper()
	client := storetest.Client(t)
	ca, err := certs.NewAuthority("CA", time.Now().Add(-200*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	o := &office{view: store.NewView(client, hclog.NewNullLogger()), store: store.New(client), ca: ca, log: &lines{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = o.view.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	<-o.view.Ready()
	o.Enrolment = enroll.New(enroll.Config{
		Cluster: clusterName, Ring: func() *certs.Ring { return certs.NewRing(ca, nil) },
		AgentsAddress: "127.0.0.1:7444",
		View:          o.view, Store: o.store,
		Log: hclog.New(&hclog.LoggerOptions{Output: o.log}),
	})
	return o
}

// token makes a join token and commits it.
func (o *office) token(t *testing.T, req enroll.TokenRequest, made time.Time) enroll.MadeToken {
	t.Helper()
	token, err := enroll.NewToken(req, certs.Fingerprint(o.ca.Certificate()), made)
	if err != nil {
		t.Fatal(err)
	}
	o.commit(t, token.Change)
	return token
}

func (o *office) nodeToken(t *testing.T) string {
	t.Helper()
	return o.token(t, enroll.TokenRequest{Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, By: "operator"}, time.Now()).Text
}

func (o *office) replaceToken(t *testing.T, node string) string {
	t.Helper()
	return o.token(t, enroll.TokenRequest{
		Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, Node: node, Replace: true,
	}, time.Now()).Text
}

// commit applies a change and waits until the view shows it.
func (o *office) commit(t *testing.T, c store.Change) {
	t.Helper()
	revision, err := o.store.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.view.Await(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
}

func (o *office) enrol(t *testing.T, token, node string, key *ecdsa.PrivateKey) (*agentv1.EnrollResponse, error) {
	t.Helper()
	return o.Enrol(t.Context(), &agentv1.EnrollRequest{
		Token: token, NodeId: node, Csr: csr(t, key), Hostname: node + ".example.org", Ip: "10.0.0.1", AgentVersion: "1",
	}, "192.0.2.1")
}

// node waits until the view has the node as it was last written.
func (o *office) node(t *testing.T, id string) *storev1.Node {
	t.Helper()
	deadline, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		changed := o.view.Changed()
		if e, ok := o.view.Current().Nodes[id]; ok {
			return e.Value
		}
		select {
		case <-changed:
		case <-deadline.Done():
			t.Fatalf("there is no node %s", id)
		}
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csr(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := certs.NewRequest(key, "whatever it likes")
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// agentOf reads the identity in a certificate.
func agentOf(t *testing.T, certPEM []byte) identity.AgentIdentity {
	t.Helper()
	list, err := certs.ParseCertificates(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromCertificate(list[0], clusterName)
	if err != nil || id.Agent == nil {
		t.Fatalf("not an agent: %v, %v", id, err)
	}
	return *id.Agent
}

// refused checks that an error has the code.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	if e := errdefs.FromStatus(err); e == nil || e.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) want(t *testing.T, words ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return
		}
	}
	t.Errorf("no line of the log says %q:\n%s", words, l.buf.String())
}
