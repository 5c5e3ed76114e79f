package enroll_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// An agent follows the leader through an exchange of the CA.
func TestTrustFollowsTheLeader(t *testing.T) {
	r, next := newReplica(t), newReplica(t)
	home := r.enrolled(t, "node-1")
	w := renewer(t, home, r.agents)
	trust := enroll.NewTrust(w, hclog.NewNullLogger())
	old, young := r.ca, next.ca
	if told := trust.Tell(); told.GetIssuer() != certs.Fingerprint(old.Certificate()) || len(told.GetCas()) != 1 {
		t.Errorf("at first it tells %v", told)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- trust.Run(ctx) }()
	both := bytes.Join([][]byte{young.PEM(), old.PEM()}, nil)

	trust.Take(&agentv1.TrustBundle{Ca: both, SigningCa: certs.Fingerprint(old.Certificate())})
	tells(t, trust, old, 2)
	r.mu.Lock()
	r.ca, r.bundle = young, both
	r.mu.Unlock()
	trust.Take(&agentv1.TrustBundle{Ca: both, SigningCa: certs.Fingerprint(young.Certificate())})
	tells(t, trust, young, 2)
	trust.Take(&agentv1.TrustBundle{Ca: young.PEM(), SigningCa: certs.Fingerprint(young.Certificate())})
	tells(t, trust, young, 1)
	asked := len(r.asked())
	trust.Take(&agentv1.TrustBundle{Ca: []byte("nonsense"), SigningCa: "x"})
	stop()
	if err := <-done; err != nil || len(r.asked()) != asked {
		t.Errorf("it ended with %v, after %d renewals", err, len(r.asked()))
	}
	if _, again, err := home.Open(hclog.NewNullLogger()); err != nil || len(again.CAs()) != 1 {
		t.Errorf("the directory after the exchange: %v", err)
	}
}

// tells waits until the agent tells that it trusts so many CAs and shows a certificate of one.
func tells(t *testing.T, trust *enroll.Trust, ca *certs.Authority, trusts int) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		told := trust.Tell()
		if told.GetIssuer() == certs.Fingerprint(ca.Certificate()) && len(told.GetCas()) == trusts {
			return
		}
		select {
		case <-trust.Changed():
		case <-deadline:
			t.Fatalf("it tells %v", told)
		}
	}
}

// An agent that was left behind keeps the CA of the certificate that it has: its files stay of one piece.
func TestLeftBehind(t *testing.T) {
	r, next := newReplica(t), newReplica(t)
	home := r.enrolled(t, "node-1")
	trust := enroll.NewTrust(renewer(t, home, "127.0.0.1:1"), hclog.NewNullLogger())
	trust.Take(&agentv1.TrustBundle{Ca: next.ca.PEM()})
	want := certs.Fingerprints(append(parse(t, r.ca.PEM()), parse(t, next.ca.PEM())...))
	if got := trust.Tell().GetCas(); !slices.Equal(got, want) {
		t.Errorf("it trusts %v, want %v", got, want)
	}
	if _, _, err := home.Open(hclog.NewNullLogger()); err != nil {
		t.Errorf("it does not start: %v", err)
	}
}

func parse(t *testing.T, data []byte) []*x509.Certificate {
	t.Helper()
	list, err := certs.ParseCertificates(data)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// What the disk does not take is tried again: the leader tells it once.
func TestTrustThatCannotBeWrittenIsTakenLater(t *testing.T) {
	r, next := newReplica(t), newReplica(t)
	home := r.enrolled(t, "node-1")
	trust := enroll.NewTrust(renewer(t, home, "127.0.0.1:1"), hclog.NewNullLogger())
	path := home.Files().CA
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // nothing is read from, or put in the place of, a directory
		t.Fatal(err)
	}
	trust.Take(&agentv1.TrustBundle{Ca: bytes.Join([][]byte{r.ca.PEM(), next.ca.PEM()}, nil)})
	if told := trust.Tell(); len(told.GetCas()) != 1 {
		t.Fatalf("it tells %v", told)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".kept", path); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- trust.Run(ctx) }()
	tells(t, trust, r.ca, 2)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
