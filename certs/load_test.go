package certs_test

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

func TestLoadingRefusesInOneLine(t *testing.T) {
	long := certs.ServerLeaf(cluster, "r1", nil, 0)
	for name, c := range map[string]struct {
		issued time.Duration
		spoil  func(*testing.T, *certs.Authority, *certs.Files)
		want   []string
	}{
		"expired": {-31 * 24 * time.Hour, func(_ *testing.T, _ *certs.Authority, f *certs.Files) {
			f.Remedy = "do this"
		}, []string{"leaf.pem", "expired on", ": do this"}},
		"not valid yet": {48 * time.Hour, nil, []string{"leaf.pem", "valid from", "set the clock"}},
		"another key": {0, func(t *testing.T, ca *certs.Authority, f *certs.Files) {
			other := issue(t, ca, long, time.Now())
			f.Key = other.Key
		}, []string{"leaf-key.pem", "does not match certificate", "leaf.pem"}},
		"missing certificate": {0, func(t *testing.T, _ *certs.Authority, f *certs.Files) {
			remove(t, f.Cert)
		}, []string{"leaf.pem is missing"}},
		"missing key": {0, func(t *testing.T, _ *certs.Authority, f *certs.Files) {
			remove(t, f.Key)
		}, []string{"leaf-key.pem is missing"}},
		"unreadable key": {0, func(t *testing.T, _ *certs.Authority, f *certs.Files) {
			remove(t, f.Key)
			if err := os.Mkdir(f.Key, 0o700); err != nil { // root reads everything but this
				t.Fatal(err)
			}
		}, []string{"private key cannot be read", "leaf-key.pem"}},
		"damaged CA": {0, func(t *testing.T, _ *certs.Authority, f *certs.Files) {
			write(t, f.CA, []byte("nonsense"))
		}, []string{"ca.pem is damaged"}},
		"foreign CA": {0, func(t *testing.T, _ *certs.Authority, f *certs.Files) {
			write(t, f.CA, newCA(t).PEM())
		}, []string{"leaf.pem does not come from the CA in", "ca.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t)
			files := issue(t, ca, long, time.Now().Add(c.issued))
			if c.spoil != nil {
				c.spoil(t, ca, &files)
			}
			_, err := certs.NewReloader(files, hclog.NewNullLogger())
			if err == nil {
				t.Fatal("loaded")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestExpiredLoadsWithinGraceOnly(t *testing.T) {
	ca := newCA(t)
	for age, ok := range map[time.Duration]bool{
		(30 + 89) * 24 * time.Hour: true,
		(30 + 91) * 24 * time.Hour: false,
	} {
		files := issue(t, ca, certs.AgentLeaf(cluster, "node-1", 0), time.Now().Add(-age))
		files.Grace = certs.RenewalGrace
		if _, err := certs.NewReloader(files, hclog.NewNullLogger()); (err == nil) != ok {
			t.Errorf("issued %v ago: %v", age, err)
		}
	}
}

// A crash between the replacement of the certificate and that of its key
// leaves a pair that loads, and that the next exchange does not destroy.
func TestPairSurvivesACrashInTheExchange(t *testing.T) {
	ca := newCA(t)
	files := issue(t, ca, certs.AgentLeaf(cluster, "node-1", 0), time.Now())
	pair := certs.Pair{Cert: files.Cert, Key: files.Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(key.Public(), again.Public()) {
		t.Error("a repeated request has another key")
	}
	certPEM, err := ca.Issue(key.Public(), certs.AgentLeaf(cluster, "node-1", 0), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	write(t, files.Cert, certPEM) // and here the crash
	if got := reloader(t, files).Leaf(); !got.Equal(leafOf(t, certPEM)) {
		t.Error("not the new certificate")
	}
	if _, err := pair.NextKey(); err != nil {
		t.Fatal(err)
	}
	if got := reloader(t, files).Leaf(); !got.Equal(leafOf(t, certPEM)) {
		t.Error("the next exchange lost the key in use")
	}
	if err := pair.Install(certPEM); err == nil {
		t.Error("a certificate for another key was installed")
	}
	reloader(t, files)
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
