package pki_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// bench is replicas with rings and seal keys of their own, on a real etcd.
type bench struct {
	t     *testing.T
	view  *store.View
	store *store.Store
	rings map[string]*certs.Ring
	seals map[string]*ecdh.PrivateKey
}

func newBench(t *testing.T, replicas ...string) *bench {
	t.Helper()
	client := storetest.Client(t)
	b := &bench{t: t, view: store.NewView(client, hclog.NewNullLogger()), store: store.New(client), rings: map[string]*certs.Ring{}, seals: map[string]*ecdh.PrivateKey{}}
	ca, err := certs.NewAuthority("old", time.Now())
	must(t, err)
	run(t, b.view.Run)
	<-b.view.Ready()
	for _, name := range replicas {
		b.rings[name] = certs.NewRing(ca, nil)
		b.replica(name)
	}
	return b
}

// replica gives a replica a seal key, and says so in its record.
func (b *bench) replica(name string) {
	b.t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(b.t, err)
	b.seals[name] = key
	b.put(store.PutProto(store.ReplicaKey(name), &storev1.Replica{Name: name, SealKey: key.PublicKey().Bytes()}))
}

func (b *bench) put(puts ...store.Put) {
	b.t.Helper()
	revision, err := b.store.Commit(b.t.Context(), store.Change{Puts: puts})
	must(b.t, err)
	must(b.t, b.view.Await(b.t.Context(), revision))
}

// node is an enrolled node whose agent trusts some CAs and shows a certificate of one.
func (b *bench) node(id string, shows string, trusts ...string) {
	b.t.Helper()
	slices.Sort(trusts)
	b.put(
		store.PutProto(store.NodeKey(id), &storev1.Node{Id: id, EnrolledAt: timestamppb.Now()}),
		store.PutProto(store.StatusKey(id), &storev1.NodeStatus{Id: id, TrustedCas: trusts, CertificateCa: shows, CertificateSerial: "5e"}),
	)
}

// step asks one replica for a step.
func (b *bench) step(at string, action debvisorv1.CAAction, leave ...string) error {
	b.t.Helper()
	c, err := pki.Exchange{
		Cluster: "test", Ring: b.rings[at], Action: action, LeaveBehind: leave, By: "operator", Now: time.Now(),
	}.Change(b.view.Current())
	if err != nil {
		return err
	}
	revision, err := b.store.Commit(b.t.Context(), c)
	must(b.t, err)
	must(b.t, b.view.Await(b.t.Context(), revision))
	return nil
}

// take has replicas take over the record, and say so.
func (b *bench) take(names ...string) {
	b.t.Helper()
	for _, name := range names {
		ring := b.rings[name]
		if b.record() != nil {
			var err error
			ring, err = pki.RingOf(b.record(), ring, name, b.seals[name], time.Now())
			must(b.t, err)
		}
		b.rings[name] = ring
		b.put(store.PutProto(store.ReplicaStatusKey(name), &storev1.ReplicaStatus{
			Name: name, At: timestamppb.Now(), TrustedCas: ring.Fingerprints(), SigningCa: certs.Fingerprint(ring.Signing().Certificate()),
		}))
	}
}

func (b *bench) record() *storev1.CARotation { return b.view.Current().CA.Value }

// prints are the fingerprints of the record's CAs.
func (b *bench) prints() (current, next string) {
	m := pki.Status(b.view.Current(), b.rings["r1"], time.Now())
	return m.GetCurrent(), m.GetNext()
}

// issue notes a certificate of a holder that a replica's CA signs.
func (b *bench) issue(at string, h pki.Holder, life time.Duration, ago time.Duration) string {
	b.t.Helper()
	key, err := certs.NewKey()
	must(b.t, err)
	certPEM, err := b.rings[at].Issue(key.Public(), certs.ClientLeaf(h.Name, life), time.Now().Add(-ago))
	must(b.t, err)
	put, record, err := pki.Issued(certPEM, h, "")
	must(b.t, err)
	b.put(put)
	return record.GetSerial()
}

// refused wants an error of a code whose text has the words.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%v; want %s", err, code)
	}
}

// waits are those whom the exchange waits for.
func waits(s *cluster.Snapshot, ring *certs.Ring) (list []string) {
	for _, l := range pki.Status(s, ring, time.Now()).GetWaitingFor() {
		list = append(list, l.GetWho())
	}
	return list
}

// verifies tells whether a server's chain is accepted by who trusts one CA alone.
func verifies(chain []byte, trusted *x509.Certificate) error {
	list, err := certs.ParseCertificates(chain)
	if err != nil {
		return err
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(trusted)
	for _, c := range list[1:] {
		others.AddCert(c)
	}
	_, err = list[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

// run runs a component until the test ends.
func run(t *testing.T, component func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- component(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
