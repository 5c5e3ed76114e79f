package enroll_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	node    = storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE
	replica = storev1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA
)

func TestEnrolment(t *testing.T) {
	o := open(t)
	t.Run("once for one key", func(t *testing.T) {
		token, key := o.nodeToken(t), newKey(t)
		resp, err := o.enrol(t, token, "node-1", key)
		if err != nil {
			t.Fatal(err)
		}
		if agent := agentOf(t, resp.GetCertificate()); agent.Node != "node-1" {
			t.Errorf("a certificate for %v", agent)
		}
		if resp.GetCluster() != clusterName || len(resp.GetServers()) != 1 || resp.GetServers()[0] != "127.0.0.1:7444" {
			t.Errorf("answer: %v", resp)
		}
		if n := o.node(t, "node-1"); n.GetHostname() != "node-1.example.org" || n.GetEnrolledAt() == nil {
			t.Errorf("record: %v", n)
		}
		again, err := o.enrol(t, token, "node-1", key)
		if err != nil {
			t.Fatalf("the same key again: %v", err)
		}
		agentOf(t, again.GetCertificate())

		_, err = o.enrol(t, token, "node-1", newKey(t))
		refused(t, err, "JOIN_TOKEN_USED")
		o.log.want(t, "WARN", "enrolment refused", "192.0.2.1", "with another key")
		_, err = o.enrol(t, token, "node-2", key)
		refused(t, err, "JOIN_TOKEN_USED")
	})
	t.Run("tokens that are no good", func(t *testing.T) {
		other := o.nodeToken(t)
		unknown, err := enroll.NewToken(enroll.TokenRequest{Kind: node}, certs.Fingerprint(o.ca.Certificate()), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for code, token := range map[string]string{
			"JOIN_TOKEN_MALFORMED":  other[:len(other)-3],
			"JOIN_TOKEN_UNKNOWN":    unknown.Text,
			"JOIN_TOKEN_KIND":       o.token(t, enroll.TokenRequest{Kind: replica}, time.Now()).Text,
			"JOIN_TOKEN_EXPIRED":    o.token(t, enroll.TokenRequest{Kind: node}, time.Now().Add(-2*time.Hour)).Text,
			"JOIN_TOKEN_OTHER_NAME": o.token(t, enroll.TokenRequest{Kind: node, Node: "node-9"}, time.Now()).Text,
		} {
			_, err := o.enrol(t, token, "node-3", newKey(t))
			refused(t, err, code)
			if _, exists := o.view.Current().Nodes["node-3"]; exists {
				t.Errorf("%s: the node was made nevertheless", code)
			}
		}
		o.log.want(t, "enrolment refused", "node-3", "expired")
	})
	t.Run("bad requests", func(t *testing.T) {
		token := o.nodeToken(t)
		_, err := o.enrol(t, token, "no/de", newKey(t))
		refused(t, err, "INVALID_FIELD")
		_, err = o.Enrol(t.Context(), &agentv1.EnrollRequest{Token: token, NodeId: "node-4", Csr: []byte("x")}, "")
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("nonsense for a CSR: %v", err)
		}
		if _, err := o.enrol(t, token, "node-4", newKey(t)); err != nil {
			t.Errorf("the token was spent on a bad request: %v", err)
		}
	})
	t.Run("bound to the node", func(t *testing.T) {
		token := o.token(t, enroll.TokenRequest{Kind: node, Node: "node-5"}, time.Now())
		if _, err := o.enrol(t, token.Text, "node-5", newKey(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestNodeThatExists(t *testing.T) {
	o := open(t)
	first := newKey(t)
	resp, err := o.enrol(t, o.nodeToken(t), "node-1", first)
	if err != nil {
		t.Fatal(err)
	}
	old := agentOf(t, resp.GetCertificate())
	old.IssuedAt = old.IssuedAt.Add(-time.Minute) // as if some time had passed since

	plain := o.nodeToken(t)
	_, err = o.enrol(t, plain, "node-1", newKey(t))
	refused(t, err, "NODE_EXISTS")
	if !strings.Contains(err.Error(), "--replace") {
		t.Errorf("it does not say what to do: %v", err)
	}
	if _, err := o.enrol(t, plain, "node-2", newKey(t)); err != nil {
		t.Errorf("the refusal spent the token: %v", err)
	}

	replace, key := o.replaceToken(t, "node-1"), newKey(t)
	resp, err = o.enrol(t, replace, "node-1", key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Renew(t.Context(), agentOf(t, resp.GetCertificate()), csr(t, key), ""); err != nil {
		t.Errorf("the new agent: %v", err)
	}
	_, err = o.Renew(t.Context(), old, csr(t, first), "192.0.2.1")
	refused(t, err, "NODE_REPLACED")
	o.log.want(t, "WARN", "renewal refused", "node-1", "enrolled anew")

	// A retry of the first replacement, after a second one, must not bring
	// the first host back.
	entry := o.view.Current().Nodes["node-1"]
	later := &storev1.Node{Id: "node-1", EnrolledAt: timestamppb.New(time.Now().Add(time.Hour))}
	o.commit(t, store.Change{
		Require: []store.Condition{store.Unchanged(store.NodeKey("node-1"), entry.ModRevision)},
		Puts:    []store.Put{store.PutProto(store.NodeKey("node-1"), later)},
	})
	_, err = o.enrol(t, replace, "node-1", key)
	refused(t, err, "JOIN_TOKEN_USED")
}

func TestRegisteredNodeEnrolsWithItsOwnToken(t *testing.T) {
	o := open(t)
	key := store.NodeKey("node-1")
	o.commit(t, store.Change{Puts: []store.Put{store.PutProto(key, &storev1.Node{Id: "node-1", Rack: "r7", Cordoned: true})}})
	_, err := o.enrol(t, o.nodeToken(t), "node-1", newKey(t))
	refused(t, err, "NODE_EXISTS")
	bound := o.token(t, enroll.TokenRequest{Kind: node, Node: "node-1"}, time.Now())
	if _, err := o.enrol(t, bound.Text, "node-1", newKey(t)); err != nil {
		t.Fatal(err)
	}
	for changed := o.view.Changed(); o.node(t, "node-1").GetEnrolledAt() == nil; changed = o.view.Changed() {
		<-changed
	}
	if n := o.node(t, "node-1"); n.GetRack() != "r7" || !n.GetCordoned() {
		t.Errorf("enrolment lost what was registered: %v", n)
	}
}

// However many hosts use one token at once, one of them gets a certificate.
func TestOneTokenOneKey(t *testing.T) {
	o := open(t)
	token := o.nodeToken(t)
	const hosts = 8
	errs := make([]error, hosts)
	var all sync.WaitGroup
	for i := range hosts {
		key := newKey(t)
		all.Go(func() { _, errs[i] = o.enrol(t, token, "node-1", key) })
	}
	all.Wait()
	winners := 0
	for _, err := range errs {
		if err == nil {
			winners++
			continue
		}
		refused(t, err, "JOIN_TOKEN_USED")
	}
	if winners != 1 {
		t.Errorf("%d hosts were enrolled with one token", winners)
	}
}

func TestRenewal(t *testing.T) {
	o := open(t)
	key := newKey(t)
	resp, err := o.enrol(t, o.nodeToken(t), "node-1", key)
	if err != nil {
		t.Fatal(err)
	}
	o.node(t, "node-1")
	agent := agentOf(t, resp.GetCertificate())
	next := newKey(t)
	renewed, err := o.Renew(t.Context(), agent, csr(t, next), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := agentOf(t, renewed.GetCertificate()); got.Node != "node-1" || got.Serial == agent.Serial {
		t.Errorf("renewed: %v", got)
	}

	expired := agent
	expired.NotAfter = time.Now().Add(-89 * 24 * time.Hour)
	if _, err := o.Renew(t.Context(), expired, csr(t, next), ""); err != nil {
		t.Errorf("expired 89 days ago: %v", err)
	}
	expired.NotAfter = time.Now().Add(-91 * 24 * time.Hour)
	_, err = o.Renew(t.Context(), expired, csr(t, next), "")
	refused(t, err, "CERTIFICATE_EXPIRED")

	stranger := agent
	stranger.Node = "node-2"
	_, err = o.Renew(t.Context(), stranger, csr(t, next), "")
	refused(t, err, "NODE_NOT_FOUND")

	o.commit(t, store.Change{Puts: []store.Put{store.PutString(store.RevokedKey(agent.Serial), "stolen")}})
	_, err = o.Renew(t.Context(), agent, csr(t, next), "192.0.2.1")
	refused(t, err, "CERTIFICATE_REVOKED")
	o.log.want(t, "renewal refused", "node-1", agent.Serial, "revoked")
}

// frozen is the view of a replica whose snapshot lags behind.
type frozen struct{ snapshot *cluster.Snapshot }

func (f frozen) Current() *cluster.Snapshot { return f.snapshot }
func (f frozen) Changed() <-chan struct{}   { return nil }

// A replica that does not know yet that the node was enrolled anew must not
// give its former agent a certificate that counts as later.
func TestARenewalByALaggingReplica(t *testing.T) {
	o := open(t)
	key := newKey(t)
	resp, err := o.enrol(t, o.nodeToken(t), "node-1", key)
	if err != nil {
		t.Fatal(err)
	}
	o.node(t, "node-1")
	former := agentOf(t, resp.GetCertificate())
	lagging := enroll.New(enroll.Config{
		Cluster: clusterName, Ring: func() *certs.Ring { return certs.NewRing(o.ca, nil) },
		View: frozen{o.view.Current()}, Store: o.store, Log: hclog.NewNullLogger(),
	})
	if _, err := lagging.Renew(t.Context(), former, csr(t, key), ""); err != nil {
		t.Errorf("while it is still so: %v", err)
	}
	if _, err := o.enrol(t, o.replaceToken(t, "node-1"), "node-1", newKey(t)); err != nil {
		t.Fatal(err)
	}
	_, err = lagging.Renew(t.Context(), former, csr(t, key), "")
	refused(t, err, "CONFLICT")
}
