package authn_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// now is when the tests' calls are made.
var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// connection gives calls of one connection that shows no certificate.
type connection struct{ peer *rpc.Peer }

func connect() connection { return connection{&rpc.Peer{}} }

// call makes the context of a call with these authorization headers.
func (c connection) call(authorization ...string) context.Context {
	ctx := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{
		Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}, AuthInfo: c.peer,
	})
	md := metadata.MD{}
	if len(authorization) > 0 {
		md["authorization"] = authorization
	}
	return metadata.NewIncomingContext(ctx, md)
}

// records makes snapshots whose access records differ from all others'.
type records struct {
	s *cluster.Snapshot
}

func newRecords() *records { return &records{cluster.Empty()} }

func (r *records) change(edit func(d *cluster.Draft)) *cluster.Snapshot {
	d := r.s.Draft()
	edit(d)
	r.s = d.Snapshot(r.s.Revision + 1)
	return r.s
}

func (r *records) principal(name string, p *storev1.Principal) {
	r.change(func(d *cluster.Draft) { d.Principals.Put(name, p, r.s.Revision+1) })
}

func (r *records) key(id string, k *storev1.APIKey) {
	r.change(func(d *cluster.Draft) { d.APIKeys.Put(id, k, r.s.Revision+1) })
}

// newKey makes a key of a principal that has a record.
func (r *records) newKey(t testing.TB, principal string, expires time.Time) identity.APIKey {
	t.Helper()
	key, err := identity.NewAPIKey()
	if err != nil {
		t.Fatal(err)
	}
	record := &storev1.APIKey{Sha256: key.Hash(), Principal: principal}
	if !expires.IsZero() {
		record.ExpiresAt = timestamppb.New(expires)
	}
	r.key(key.ID, record)
	if _, ok := r.s.Principals[principal]; !ok {
		r.principal(principal, &storev1.Principal{})
	}
	return key
}

func authenticator(cfg authn.BearersConfig) *authn.Authenticator {
	return authn.New(authn.Config{Cluster: "testing", Bearers: authn.NewBearers(cfg)})
}

// wantRefused checks a refusal's kind and code and gives what its caller sees.
func wantRefused(t *testing.T, err error, code string) string {
	t.Helper()
	e := errdefs.FromStatus(errdefs.ToStatus(err, ""))
	if err == nil || e.Kind != errdefs.Unauthenticated || e.Code != code {
		t.Fatalf("got %v (%+v), want UNAUTHENTICATED %s", err, e, code)
	}
	return e.Message
}

// rsaKeys are made once: they take long.
var rsaKeys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

// issuerKey signs good tokens, strangerKey those of somebody else.
func issuerKey() *rsa.PrivateKey   { return rsaKeys()[0] }
func strangerKey() *rsa.PrivateKey { return rsaKeys()[1] }

var ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

func publicPEM(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tokens accepts the issuer's tokens by a key file.
func tokens(t testing.TB, cfg authn.TokensConfig) *authn.Tokens {
	t.Helper()
	if cfg.KeyFile == "" {
		cfg.KeyFile = write(t, "jwt.pem", publicPEM(t, issuerKey().Public()))
	}
	cfg.Log = hclog.NewNullLogger()
	tok, err := authn.NewTokens(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// goodClaims are accepted with user_id ada.
func goodClaims() jwt.MapClaims {
	return jwt.MapClaims{
		"iss": "debvisor-auth", "aud": "debvisor-rpc", "user_id": "ada",
		"iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
}

// sign signs claims as the issuer does, after a change of them.
func sign(t testing.TB, change func(jwt.MapClaims)) string {
	t.Helper()
	claims := goodClaims()
	if change != nil {
		change(claims)
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(issuerKey())
	if err != nil {
		t.Fatal(err)
	}
	return text
}
