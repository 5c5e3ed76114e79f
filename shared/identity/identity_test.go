package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

func TestFromCertificate(t *testing.T) {
	for _, c := range []struct {
		cn   string
		uris []string
		want string // empty: refused
	}{
		{"operator", nil, "operator"},
		{"ada@example.org", nil, "ada@example.org"},
		{"agent:node-1", []string{"spiffe://testing/agent/node-1"}, "agent:node-1"},
		{"operator", []string{"spiffe://testing/agent/node-1"}, "agent:node-1"},
		{"", nil, ""},
		{"agent:node-1", nil, ""},
		{"system:migrate", nil, ""},
		{"a b", nil, ""},
		{"operator", []string{"spiffe://other/agent/node-1"}, ""},
		{"operator", []string{"spiffe://testing/replica/r1"}, ""},
		{"operator", []string{"spiffe://testing/agent/"}, ""},
		{"operator", []string{"spiffe://testing/agent/a/b"}, ""},
		{"operator", []string{"https://example.org"}, ""},
		{"operator", []string{"spiffe://testing/agent/node-1", "spiffe://testing/agent/node-2"}, ""},
	} {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: c.cn}, SerialNumber: big.NewInt(255)}
		for _, raw := range c.uris {
			uri, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, uri)
		}
		id, err := identity.FromCertificate(cert, "testing")
		switch {
		case c.want == "" && !errdefs.Is(err, errdefs.Unauthenticated):
			t.Errorf("%q %v: got %v, %v", c.cn, c.uris, id, err)
		case c.want != "" && (err != nil || id.String() != c.want):
			t.Errorf("%q %v: got %v, %v, want %s", c.cn, c.uris, id, err, c.want)
		case c.want != "" && (id.Agent != nil) != (len(c.uris) > 0):
			t.Errorf("%q %v: taken for the wrong sort", c.cn, c.uris)
		}
	}
}

func TestIssuedLeaves(t *testing.T) {
	now := time.Now()
	ca, err := certs.NewAuthority("ca", now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	read := func(leaf certs.Leaf) (identity.Identity, error) {
		certPEM, err := ca.Issue(key.Public(), leaf, now)
		if err != nil {
			t.Fatal(err)
		}
		list, err := certs.ParseCertificates(certPEM)
		if err != nil {
			t.Fatal(err)
		}
		return identity.FromCertificate(list[0], "testing")
	}
	id, err := read(certs.AgentLeaf("testing", "node-1", time.Hour))
	if err != nil || id.Agent == nil || id.Principal != nil || id.Agent.Node != "node-1" || id.Agent.Cluster != "testing" {
		t.Fatalf("agent: %+v, %v", id, err)
	}
	if id.Agent.Expired(now) || !id.Agent.Expired(now.Add(2*time.Hour)) {
		t.Error("expiry is told wrong")
	}
	if id.Agent.Replaced(now) || id.Agent.Replaced(now.Add(-time.Hour)) || !id.Agent.Replaced(now.Add(time.Second)) {
		t.Error("replacement is told wrong")
	}
	if id, err := read(certs.ClientLeaf("operator", 0)); err != nil || id.Principal == nil || id.Agent != nil {
		t.Errorf("principal: %+v, %v", id, err)
	}
	for name, leaf := range map[string]certs.Leaf{
		"replica":       certs.ServerLeaf("testing", "r1", nil, 0),
		"etcd":          certs.EtcdPeerLeaf("r1", nil, 0),
		"other cluster": certs.AgentLeaf("other", "node-1", 0),
	} {
		if id, err := read(leaf); err == nil {
			t.Errorf("%s: taken for %v", name, id)
		}
	}
}

func TestReplicaOf(t *testing.T) {
	for _, c := range []struct {
		uris []string
		want string // empty: no replica
	}{
		{[]string{"spiffe://testing/replica/r1"}, "r1"},
		{nil, ""},
		{[]string{"spiffe://testing/replica/"}, ""},
		{[]string{"spiffe://testing/replica/a/b"}, ""},
		{[]string{"spiffe://other/replica/r1"}, ""},
		{[]string{"spiffe://testing/agent/r1"}, ""},
		{[]string{"spiffe://testing/replica/r1", "spiffe://testing/replica/r2"}, ""},
		{[]string{"spiffe://testing/replica/r1", "spiffe://testing/agent/n1"}, ""},
	} {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: "replica:r1"}, SerialNumber: big.NewInt(255)}
		for _, raw := range c.uris {
			uri, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, uri)
		}
		if got, ok := identity.ReplicaOf(cert, "testing"); got != c.want || ok != (c.want != "") {
			t.Errorf("%v: replica %q, %v, want %q", c.uris, got, ok, c.want)
		}
	}
}
