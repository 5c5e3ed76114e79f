package authn_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// BenchmarkAuthenticate is what a call pays to say who makes it, in a cluster of
// 10,000 keys: with a certificate, with a key, with a JWT, on a connection that
// has shown it before and, where "new", on one that has not.
func BenchmarkAuthenticate(b *testing.B) {
	r := newRecords()
	key := r.newKey(b, "ci", time.Time{})
	r.change(func(d *cluster.Draft) {
		for i := range 10_000 {
			d.APIKeys.Put(fmt.Sprintf("%016x", i), &storev1.APIKey{Sha256: hash(fmt.Sprint(i)), Principal: "ci"}, 1)
		}
		d.APIKeys.Put("by-hand", &storev1.APIKey{Sha256: hash("by hand")}, 1)
		d.Principals.Put("by-hand", &storev1.Principal{}, 1)
	})
	tok := tokens(b, authn.TokensConfig{})
	a := authenticator(authn.BearersConfig{Tokens: tok, Uses: &ignored{}})
	certificate := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{
		Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1},
		AuthInfo: &rpc.Peer{TLSInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{
			Subject: pkix.Name{CommonName: "operator"}, SerialNumber: big.NewInt(1), NotAfter: now.Add(time.Hour),
		}}}}},
	})
	token := sign(b, nil)
	one := connect()
	for name, ctx := range map[string]func() context.Context{
		"certificate": func() context.Context { return certificate },
		"key":         contextOf(one.call("Bearer " + key.Text())),
		"jwt":         contextOf(connect().call("Bearer " + token)),
		"key-new":     func() context.Context { return connect().call("Bearer " + key.Text()) },
		"by-hand-new": func() context.Context { return connect().call("Bearer by hand") },
		"jwt-new":     func() context.Context { return connect().call("Bearer " + token) },
		"refused-new": func() context.Context { return connect().call("Bearer nonsense") },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, _, err := a.Authenticate(ctx(), r.s, now)
				if err == nil {
					err = a.Check(c, r.s, now)
				}
				if (err == nil) != (name != "refused-new") {
					b.Fatal(err)
				}
			}
		})
	}
}

func contextOf(ctx context.Context) func() context.Context {
	return func() context.Context { return ctx }
}

type ignored struct{}

func (*ignored) Note(string, string, time.Time) {}

// BenchmarkVerify is what a JWT costs that is not known yet.
func BenchmarkVerify(b *testing.B) {
	tok := tokens(b, authn.TokensConfig{})
	text, r := sign(b, nil), newRecords()
	later := now
	a := authenticator(authn.BearersConfig{Tokens: tok})
	b.ReportAllocs()
	for b.Loop() {
		// Twice the time that a token is known, back and forth within its life.
		if later = later.Add(2 * time.Minute); later.After(now.Add(9 * time.Minute)) {
			later = now
			b.StopTimer()
			a = authenticator(authn.BearersConfig{Tokens: tokens(b, authn.TokensConfig{})})
			b.StartTimer()
		}
		if _, _, err := a.Authenticate(connect().call("Bearer "+text), r.s, later); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIndex is what the first call without a key's id pays after a change
// of who may do what, in a cluster of 10,000 keys and principals.
func BenchmarkIndex(b *testing.B) {
	r := newRecords()
	r.change(func(d *cluster.Draft) {
		for i := range 10_000 {
			name := fmt.Sprint("p", i)
			d.APIKeys.Put(name, &storev1.APIKey{Sha256: hash(name)}, 1)
			d.Principals.Put(name, &storev1.Principal{ApikeyId: "sha256:" + hash(name)}, 1)
		}
	})
	for b.Loop() {
		if _, _, err := authenticator(authn.BearersConfig{}).Authenticate(connect().call("Bearer p7"), r.s, now); err != nil {
			b.Fatal(err)
		}
	}
}
