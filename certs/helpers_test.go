package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

const cluster = "testing"

func newCA(t *testing.T) *certs.Authority {
	t.Helper()
	ca, err := certs.NewAuthority("CA of "+t.Name(), time.Now().Add(-200*24*time.Hour)) // older than all that it issues
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue puts a certificate, issued at the given moment, into a new directory.
func issue(t *testing.T, ca *certs.Authority, leaf certs.Leaf, at time.Time) certs.Files {
	t.Helper()
	dir := t.TempDir()
	files := certs.Files{
		CA:   filepath.Join(dir, "ca.pem"),
		Cert: filepath.Join(dir, "leaf.pem"),
		Key:  filepath.Join(dir, "leaf-key.pem"),
	}
	write(t, files.CA, ca.PEM())
	reissue(t, ca, files, leaf, at)
	return files
}

func reissue(t *testing.T, ca *certs.Authority, files certs.Files, leaf certs.Leaf, at time.Time) {
	t.Helper()
	pair := certs.Pair{Cert: files.Cert, Key: files.Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Issue(key.Public(), leaf, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Install(certPEM); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func reloader(t *testing.T, files certs.Files) *certs.Reloader {
	t.Helper()
	r, err := certs.NewReloader(files, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// member is a Reloader with a fresh certificate.
func member(t *testing.T, ca *certs.Authority, leaf certs.Leaf) *certs.Reloader {
	t.Helper()
	return reloader(t, issue(t, ca, leaf, time.Now()))
}

// handshake runs a TLS handshake over loopback and says what each end made of
// it. A byte goes each way, since under TLS 1.3 a client learns only by
// reading that it was refused.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	done := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, server)
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := conn.Handshake(); err != nil {
			done <- err
			return
		}
		state = conn.ConnectionState()
		_, err = conn.Write([]byte{1})
		done <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	return state, <-done, err
}

func leafOf(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	list, err := certs.ParseCertificates(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}
