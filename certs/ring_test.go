package certs_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// ringFiles are those of a ring in a new directory.
func ringFiles(t *testing.T) certs.RingFiles {
	t.Helper()
	dir := t.TempDir()
	return certs.RingFiles{
		AuthorityFiles: certs.AuthorityFiles{Cert: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "ca-key.pem")},
		Cross:          filepath.Join(dir, "ca-cross.pem"),
	}
}

func must[V any](t *testing.T) func(V, error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A ring that was being saved when the machine stopped can be loaded, and signs with a CA that was there before or is now.
func TestASaveThatWasCutShort(t *testing.T) {
	wrap := must[certs.WrapKey](t)(certs.NewWrapKey())
	old, young := newCA(t), must[*certs.Authority](t)(certs.NewAuthority("young", time.Now()))
	cross := must[*x509.Certificate](t)(old.Certify(young.Certificate(), time.Now(), time.Hour))
	for name, step := range map[string]struct{ from, to *certs.Ring }{
		"begin":  {certs.NewRing(old, nil), certs.NewRing(old, young, cross)},
		"switch": {certs.NewRing(old, young, cross), certs.NewRing(young, old, cross)},
		"finish": {certs.NewRing(young, old, cross), certs.NewRing(young, nil, cross)},
		"back":   {certs.NewRing(old, young, cross), certs.NewRing(old, nil)},
		"leap":   {certs.NewRing(old, nil), certs.NewRing(young, nil, cross)},
	} {
		before, after := ringFiles(t), ringFiles(t)
		for _, err := range []error{step.from.Save(before, wrap), step.from.Save(after, wrap), step.to.Save(after, wrap)} {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		loaded := must[*certs.Ring](t)(certs.LoadRing(after, wrap, time.Now()))
		if !loaded.Equal(step.to) {
			t.Errorf("%s: loaded %v, want %v", name, loaded.Fingerprints(), step.to.Fingerprints())
		}
		// The certificates are replaced between the keys that are more and those that are left.
		more := ringFiles(t)
		union := certs.NewRing(step.from.Signing(), other(step.from, step.to))
		for _, err := range []error{union.Save(more, wrap)} {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, certFile := range []string{before.Cert, after.Cert} {
			copyFile(t, certFile, more.Cert)
			r, err := certs.LoadRing(more, wrap, time.Now())
			if err != nil {
				t.Errorf("%s, cut short: %v", name, err)
				continue
			}
			if s := r.Signing().Certificate(); !s.Equal(step.from.Signing().Certificate()) && !s.Equal(step.to.Signing().Certificate()) {
				t.Errorf("%s, cut short: it signs with %s", name, s.Subject)
			}
		}
	}
}

// other is a CA of two rings besides the one that the first signs with.
func other(a, b *certs.Ring) *certs.Authority {
	for _, o := range []*certs.Authority{a.Other(), b.Signing(), b.Other()} {
		if o != nil && !o.Certificate().Equal(a.Signing().Certificate()) {
			return o
		}
	}
	return nil
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	write(t, to, must[[]byte](t)(os.ReadFile(from)))
}

// Who trusts one CA alone verifies servers of the other that it vouches for, and lets no client of the other in.
func TestOneCAVouchesForTheOther(t *testing.T) {
	old, young := newCA(t), must[*certs.Authority](t)(certs.NewAuthority("young", time.Now()))
	cross := must[*x509.Certificate](t)(old.Certify(young.Certificate(), time.Now(), time.Hour))
	ring := certs.NewRing(young, old, cross)

	server := ringMember(t, ring, ring.Bundle(), certs.ServerLeaf(cluster, "r1", nil, 0))
	trustsOld := member(t, old, certs.ClientLeaf("operator", 0))
	if _, serverErr, clientErr := handshake(t, server.CallersServer(), trustsOld.ReplicaClient("127.0.0.1")); serverErr != nil || clientErr != nil {
		t.Errorf("who trusts the old CA alone: %v, %v", serverErr, clientErr)
	}
	for _, ca := range []*certs.Authority{old, young} {
		if _, _, err := handshake(t, server.CallersServer(), certs.BootstrapClient("127.0.0.1", certs.Fingerprint(ca.Certificate()))); err != nil {
			t.Errorf("with a token of %q: %v", ca.Name(), err)
		}
	}
	// The other way round: a client of the young CA that shows all that vouches for it.
	client := ringMember(t, ring, ring.Bundle(), certs.ClientLeaf("operator", 0))
	oldServer := member(t, old, certs.ServerLeaf(cluster, "r1", nil, 0))
	if _, err, _ := handshake(t, oldServer.CallersServer(), client.ReplicaClient("127.0.0.1")); err == nil {
		t.Error("a client gets in by a certificate that is for servers only")
	}
	if issuer := client.Issuer(); issuer == nil || !issuer.Equal(young.Certificate()) || len(client.CAs()) != 2 {
		t.Errorf("the client's certificate is said to be of %v, of %d CAs", issuer, len(client.CAs()))
	}
}

// ringMember is a Reloader with a certificate of a ring.
func ringMember(t *testing.T, ring *certs.Ring, bundle []byte, leaf certs.Leaf) *certs.Reloader {
	t.Helper()
	dir := t.TempDir()
	files := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "leaf.pem"), Key: filepath.Join(dir, "leaf-key.pem")}
	write(t, files.CA, bundle)
	pair := certs.Pair{Cert: files.Cert, Key: files.Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ring.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Install(certPEM); err != nil {
		t.Fatal(err)
	}
	return reloader(t, files)
}
