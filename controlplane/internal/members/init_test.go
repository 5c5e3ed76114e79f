package members_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/shared/identity"
)

func TestInit(t *testing.T) {
	home := newHome(t)
	record, err := members.Init(home, members.Options{Name: "r1", Cluster: "testing", Hosts: []string{"10.0.0.1", "rpc-1.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	read, err := members.ReadRecord(home)
	if err != nil {
		t.Fatal(err)
	}
	if read.PeerURL != "https://10.0.0.1:7442" || read.PeerListen != "10.0.0.1:7442" || read.State != members.StateNew ||
		read.Peers()["r1"] != read.PeerURL || record.Cluster != "testing" {
		t.Errorf("record: %+v", read)
	}
	for _, name := range []string{
		"pki/ca.pem", "pki/ca-key.pem", "pki/wrap.key", "pki/server.pem", "pki/server-key.pem",
		"pki/operator.pem", "pki/operator-key.pem", "etcd/pki/ca.pem", "etcd/pki/ca-key.pem", "etcd/pki/peer.pem", "etcd/pki/peer-key.pem",
	} {
		st, err := os.Stat(filepath.Join(home.Dir, name))
		if err != nil {
			t.Error(err)
		} else if strings.Contains(name, "key") && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	leaf := openHome(t, home).Server().Leaf()
	for _, host := range []string{"10.0.0.1", "rpc-1.example.org", "127.0.0.1", "localhost"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if _, err := members.Init(home, members.Options{Name: "r1", Cluster: "testing"}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second init: %v", err)
	}
}

// A certificate of the cluster's CA opens nothing at etcd.
func TestEtcdHasACAOfItsOwn(t *testing.T) {
	home := newHome(t)
	if _, err := members.Init(home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	files := home.Server()
	files.CA = home.EtcdPeer().CA
	if _, err := certs.NewReloader(files, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "does not come from the CA") {
		t.Errorf("etcd's CA accepts the server's certificate: %v", err)
	}
}

func TestInitRefuses(t *testing.T) {
	for want, o := range map[string]members.Options{
		"replica":   {Name: "a/b", Cluster: "testing"},
		"cluster":   {Name: "r1", Cluster: "Not A Name"},
		"host":      {Name: "r1", Cluster: "testing", Hosts: []string{"10.0.0.1:7443"}},
		"etcd peer": {Name: "r1", Cluster: "testing", PeerListen: "somewhere"},
	} {
		home := newHome(t)
		if _, err := members.Init(home, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := os.Stat(home.Dir); err == nil {
			t.Errorf("%s: something was written", want)
		}
	}
}

func TestPeerAddressOfAName(t *testing.T) {
	home := newHome(t)
	record, err := members.Init(home, members.Options{Name: "r1", Cluster: "testing", Hosts: []string{"rpc-1.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if record.PeerListen != "0.0.0.0:7442" || record.PeerURL != "https://rpc-1.example.org:7442" {
		t.Errorf("%+v", record)
	}
}

func TestIssueClient(t *testing.T) {
	home := newHome(t)
	if _, err := members.Init(home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "ci")
	pair, err := members.IssueClient(home, "ci", out, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r, err := certs.NewReloader(certs.Files{CA: filepath.Join(out, "ca.pem"), Cert: pair.Cert, Key: pair.Key}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromCertificate(r.Leaf(), "testing")
	if err != nil || id.Principal == nil || id.Principal.Name != "ci" {
		t.Errorf("identity %v, %v", id, err)
	}
	if _, err := members.IssueClient(home, "ci", out, 0); err == nil {
		t.Error("an existing certificate was overwritten")
	}
	for _, name := range []string{"agent:node-1", "../x", ""} {
		if _, err := members.IssueClient(home, name, out, 0); err == nil {
			t.Errorf("a certificate for %q", name)
		}
	}
}

func TestOpenReissuesAndRefuses(t *testing.T) {
	home := newHome(t)
	if _, err := members.Init(home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	first := openHome(t, home).Server().Leaf()
	if openHome(t, home).Server().Leaf().Equal(first) {
		t.Error("a start does not reissue the server's certificate")
	}
	for want, spoil := range map[string]func() string{
		"server-key.pem does not match": func() string { return replace(t, home.Server().Key, home.Operator().Key) },
		"server.pem does not come from the CA": func() string {
			other := newHome(t)
			if _, err := members.Init(other, options(t, "r1")); err != nil {
				t.Fatal(err)
			}
			replace(t, home.Server().Key, other.Server().Key)
			return replace(t, home.Server().Cert, other.Server().Cert)
		},
		"server.pem is missing": func() string {
			if err := os.Remove(home.Server().Cert); err != nil {
				t.Fatal(err)
			}
			return home.Server().Cert
		},
		"wrap.key does not hold": func() string {
			path := filepath.Join(home.Dir, "pki", "wrap.key")
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		},
	} {
		home = newHome(t)
		if _, err := members.Init(home, options(t, "r1")); err != nil {
			t.Fatal(err)
		}
		spoil()
		_, err := members.Open(home, 0, hclog.NewNullLogger())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one line with %q, got %v", want, err)
		}
	}
	if _, err := members.Open(newHome(t), 0, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "init or join") {
		t.Errorf("an empty directory: %v", err)
	}
}

// A replica that was off for longer than its certificate lives starts.
func TestOpenHealsAnExpiredLeaf(t *testing.T) {
	home := newHome(t)
	if _, err := members.Init(home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	m := openHome(t, home)
	pair := certs.Pair{Cert: home.Server().Cert, Key: home.Server().Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := m.Ring().Signing().Issue(key.Public(), certs.ServerLeaf("testing", "r1", nil, time.Millisecond), time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Install(certPEM); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.NewReloader(home.Server(), hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("not expired: %v", err)
	}
	if leaf := openHome(t, home).Server().Leaf(); certs.Expired(leaf, time.Now()) {
		t.Error("the expired certificate is served")
	}
}

func replace(t *testing.T, path, by string) string {
	t.Helper()
	data, err := os.ReadFile(by)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
