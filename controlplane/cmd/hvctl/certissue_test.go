package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// A pair that is being replaced can be used wherever hvctl is stopped.
func TestAPairThatIsBeingReplacedCanBeUsed(t *testing.T) {
	ca, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair := func() (certPEM, keyPEM []byte) {
		t.Helper()
		key, err := certs.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		if certPEM, err = ca.Issue(key.Public(), certs.ClientLeaf("ci", 0), time.Now()); err != nil {
			t.Fatal(err)
		}
		if keyPEM, err = certs.EncodeKey(key); err != nil {
			t.Fatal(err)
		}
		return certPEM, keyPEM
	}
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "ci.pem"), filepath.Join(dir, "ci-key.pem"), filepath.Join(dir, "ca.pem")
	usable := func(when string) {
		t.Helper()
		if _, err := (endpoint{CA: caFile, Cert: certFile, Key: keyFile}).tls(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(caFile, ca.PEM())
	firstCert, firstKey := pair()
	if err := writePair(certFile, keyFile, firstCert, firstKey); err != nil {
		t.Fatal(err)
	}
	usable("the first")
	nextCert, nextKey := pair()
	write(stagedKey(keyFile), nextKey)
	usable("with the next key beside it")
	write(certFile, nextCert)
	usable("with the next certificate and the former key")
	if err := writePair(certFile, keyFile, nextCert, nextKey); err != nil {
		t.Fatal(err)
	}
	usable("the next")
	if _, err := os.Stat(stagedKey(keyFile)); !os.IsNotExist(err) {
		t.Errorf("the staged key is left: %v", err)
	}
}
