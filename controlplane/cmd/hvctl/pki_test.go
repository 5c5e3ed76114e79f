package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// pki is the certificates of a cluster, made by its own CA, and those of
// another one.
type pki struct{ dir string }

func (p pki) path(name string) string { return filepath.Join(p.dir, name) }

func newPKI(t *testing.T) pki {
	t.Helper()
	p := pki{dir: t.TempDir()}
	for prefix, cluster := range map[string]string{"": "test", "other-": "other"} {
		ca, err := certs.NewAuthority(cluster, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		p.write(t, prefix+"ca.pem", ca.PEM())
		p.issue(t, ca, prefix+"server", certs.ServerLeaf(cluster, "r1", []string{"127.0.0.1"}, 0), time.Now())
		p.issue(t, ca, prefix+"operator", certs.ClientLeaf("operator", 0), time.Now())
		p.issue(t, ca, prefix+"expired", certs.ClientLeaf("operator", time.Hour), time.Now().Add(-48*time.Hour))
		p.issue(t, ca, prefix+"agent", certs.AgentLeaf(cluster, "n1", 0), time.Now())
	}
	return p
}

func (p pki) issue(t *testing.T, ca *certs.Authority, name string, leaf certs.Leaf, at time.Time) {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(key.Public(), leaf, at)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, name+"-key.pem", keyPEM)
	p.write(t, name+".pem", cert)
}

func (p pki) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(p.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}
