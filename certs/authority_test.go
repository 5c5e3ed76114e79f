package certs_test

import (
	"bytes"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
)

func TestAuthorityIsSealedAtRest(t *testing.T) {
	dir := t.TempDir()
	files := certs.AuthorityFiles{Cert: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "ca-key.pem")}
	wrapFile := filepath.Join(dir, "wrap.key")
	wrap, err := certs.NewWrapKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := wrap.WriteNew(wrapFile); err != nil {
		t.Fatal(err)
	}
	ca := newCA(t)
	if err := ca.Save(files, wrap, nil); err != nil {
		t.Fatal(err)
	}

	again, err := certs.ReadWrapKey(wrapFile)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := certs.LoadAuthority(files, again, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Certificate().Equal(ca.Certificate()) {
		t.Error("another CA was loaded")
	}
	keyPEM, err := loaded.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(stored, []byte("BEGIN PRIVATE KEY")) || bytes.Contains(stored, keyPEM[40:80]) {
		t.Error("the CA's key is readable on disk")
	}
	for _, path := range []string{files.Key, wrapFile} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
	}
	if err := wrap.WriteNew(wrapFile); err == nil {
		t.Error("an existing wrap key was overwritten")
	}
}

func TestLoadAuthorityRefuses(t *testing.T) {
	setup := func(t *testing.T) (certs.AuthorityFiles, certs.WrapKey) {
		dir := t.TempDir()
		files := certs.AuthorityFiles{Cert: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "ca-key.pem")}
		wrap, err := certs.NewWrapKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := newCA(t).Save(files, wrap, nil); err != nil {
			t.Fatal(err)
		}
		return files, wrap
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, certs.AuthorityFiles, *certs.WrapKey)
		now   time.Time
		want  string
	}{
		"another wrap key": {func(t *testing.T, _ certs.AuthorityFiles, w *certs.WrapKey) {
			other, err := certs.NewWrapKey()
			if err != nil {
				t.Fatal(err)
			}
			*w = other
		}, time.Now(), "wrap key does not open it"},
		"another CA's certificate": {func(t *testing.T, f certs.AuthorityFiles, _ *certs.WrapKey) {
			write(t, f.Cert, newCA(t).PEM())
		}, time.Now(), "belongs to none"},
		"no key": {func(t *testing.T, f certs.AuthorityFiles, _ *certs.WrapKey) {
			if err := os.Remove(f.Key); err != nil {
				t.Fatal(err)
			}
		}, time.Now(), "ca-key.pem is missing"},
		"expired": {func(*testing.T, certs.AuthorityFiles, *certs.WrapKey) {}, time.Now().Add(2 * certs.AuthorityLife), "expired on"},
	} {
		t.Run(name, func(t *testing.T) {
			files, wrap := setup(t)
			c.spoil(t, files, &wrap)
			_, err := certs.LoadAuthority(files, wrap, c.now)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, c.want)
			}
		})
	}
}

func TestAuthorityDecidesNames(t *testing.T) {
	ca := newCA(t)
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewRequest(key, "operator")
	if err != nil {
		t.Fatal(err)
	}
	pub, err := certs.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Issue(pub, certs.AgentLeaf(cluster, "node-1", 1000*time.Hour), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, certPEM)
	if leaf.Subject.CommonName != "agent:node-1" || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 {
		t.Errorf("the request decided a name: %v %v %v", leaf.Subject, leaf.DNSNames, leaf.IPAddresses)
	}
	if got := leaf.URIs[0].String(); got != "spiffe://testing/agent/node-1" {
		t.Errorf("URI SAN is %s", got)
	}
	if leaf.NotAfter.After(time.Now().Add(certs.AgentLife)) {
		t.Errorf("an agent's certificate lives until %v", leaf.NotAfter)
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("the leaf may do more than a leaf: %v %v", leaf.IsCA, leaf.KeyUsage)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewRequest(key, "x")
	if err != nil {
		t.Fatal(err)
	}
	csr[len(csr)-1] ^= 1
	if _, err := certs.ParseRequest(csr); err == nil {
		t.Error("a request with a wrong signature was read")
	}
	if _, err := certs.ParseRequest([]byte("x")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestIssuedAt(t *testing.T) {
	ca := newCA(t)
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, life := range []time.Duration{
		time.Second, 9 * time.Second, 10 * time.Second, 19 * time.Second, 95 * time.Second,
		49 * time.Minute, 50 * time.Minute, 51 * time.Minute, 55 * time.Minute, time.Hour, 30 * 24 * time.Hour,
	} {
		certPEM, err := ca.Issue(key.Public(), certs.ClientLeaf("x", life), now)
		if err != nil {
			t.Fatal(err)
		}
		if got := certs.IssuedAt(leafOf(t, certPEM)); !got.Equal(now.Truncate(time.Second)) {
			t.Errorf("life %v: issued at %v, want %v", life, got, now.Truncate(time.Second))
		}
	}
}

func TestWriteNewFileNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := certs.WriteNewFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := certs.WriteNewFile(path, []byte("b"), 0o600); err == nil {
		t.Error("overwritten")
	}
	if err := certs.WriteFile(path, []byte("c"), 0o640); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != fs.FileMode(0o640) {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("temporary files left: %v %v", entries, err)
	}
}
