package authn_test

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func run(t *testing.T, tok *authn.Tokens) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tok.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func newTokens(cfg authn.TokensConfig) (*authn.Tokens, error) {
	cfg.Log = hclog.NewNullLogger()
	return authn.NewTokens(cfg)
}

func TestTokensConfiguration(t *testing.T) {
	good := publicPEM(t, issuerKey().Public())
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(issuerKey())
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, "good.pem", good)
	for name, c := range map[string]struct {
		cfg  authn.TokensConfig
		want string
	}{
		"no source":        {authn.TokensConfig{}, "--jwt-key and --jwt-jwks"},
		"both sources":     {authn.TokensConfig{KeyFile: file, JWKS: "https://issuer.example/jwks"}, "--jwt-key and --jwt-jwks"},
		"a CA for nothing": {authn.TokensConfig{KeyFile: file, JWKSCA: file}, "--jwt-jwks-ca"},
		"HS256":            {authn.TokensConfig{KeyFile: file, Algorithms: []string{"HS256"}}, `--jwt-algorithms: "HS256"`},
		"none":             {authn.TokensConfig{KeyFile: file, Algorithms: []string{"none"}}, "--jwt-algorithms"},
		"http":             {authn.TokensConfig{JWKS: "http://issuer.example/jwks"}, "--jwt-jwks"},
		"a file address":   {authn.TokensConfig{JWKS: "file:///etc/jwks"}, "--jwt-jwks"},
		"a password":       {authn.TokensConfig{JWKS: "https://a:b@issuer.example/jwks"}, "--jwt-jwks"},
		"no host":          {authn.TokensConfig{JWKS: "https:///jwks"}, "--jwt-jwks"},
		"no CA file":       {authn.TokensConfig{JWKS: "https://issuer.example/jwks", JWKSCA: "/nonexistent"}, "--jwt-jwks-ca /nonexistent"},
		"no CA in it":      {authn.TokensConfig{JWKS: "https://issuer.example/jwks", JWKSCA: file}, "no certificate"},
		"no file":          {authn.TokensConfig{KeyFile: "/nonexistent"}, "--jwt-key /nonexistent"},
		"an empty file":    {authn.TokensConfig{KeyFile: write(t, "a", nil)}, "0 keys"},
		"no PEM":           {authn.TokensConfig{KeyFile: write(t, "a", []byte("secret"))}, "not PEM"},
		"PEM and more":     {authn.TokensConfig{KeyFile: write(t, "a", append(good[:len(good):len(good)], "more"...))}, "not PEM"},
		"a private key":    {authn.TokensConfig{KeyFile: write(t, "a", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))}, `a block "PRIVATE KEY"`},
		"a small key":      {authn.TokensConfig{KeyFile: write(t, "a", publicPEM(t, small.Public()))}, "1024 bits"},
		"an EC key":        {authn.TokensConfig{KeyFile: write(t, "a", publicPEM(t, ecKey().Public()))}, "--jwt-algorithms"},
		"too many keys":    {authn.TokensConfig{KeyFile: write(t, "a", []byte(strings.Repeat(string(good), 33)))}, "33 keys"},
		"a large file":     {authn.TokensConfig{KeyFile: write(t, "a", []byte(strings.Repeat(" ", 256<<10+1)))}, "more than"},
	} {
		_, err := newTokens(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, c.want)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuer"}},
		&x509.Certificate{}, issuerKey().Public(), issuerKey())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"PKCS #1":       pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&issuerKey().PublicKey)}),
	} {
		a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{KeyFile: write(t, "a", content)})})
		if c, _, err := a.Authenticate(connect().call("Bearer "+sign(t, nil)), newRecords().s, now); err != nil || c.Name != "ada" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// A file that changes is read anew, and what its old keys have signed is over;
// a broken one changes nothing.
func TestKeyFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := write(t, "jwt.pem", publicPEM(t, issuerKey().Public()))
		tok := tokens(t, authn.TokensConfig{KeyFile: path})
		run(t, tok)
		a, r := authenticator(authn.BearersConfig{Tokens: tok}), newRecords()
		put := func(content []byte) {
			t.Helper()
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second) // of the bubble's clock
		}
		text := sign(t, nil)
		conn := connect()
		c, _, err := a.Authenticate(conn.call("Bearer "+text), r.s, now)
		if err != nil {
			t.Fatal(err)
		}
		stamp := a.Stamp()
		put([]byte("nonsense"))
		if a.Stamp() != stamp {
			t.Error("a broken file changes the keys")
		}
		if err := a.Check(c, r.s, now); err != nil {
			t.Errorf("a broken file: %v", err)
		}
		both := append(publicPEM(t, strangerKey().Public()), publicPEM(t, issuerKey().Public())...)
		put(both)
		if err := a.Check(c, r.s, now); err != nil {
			t.Errorf("a second key: %v", err)
		}
		if a.Stamp() == stamp {
			t.Error("other keys have the same stamp")
		}
		put(publicPEM(t, strangerKey().Public()))
		wantRefused(t, a.Check(c, r.s, now), "TOKEN_NOT_ACCEPTED")
		_, _, err = a.Authenticate(connect().call("Bearer "+text), r.s, now)
		wantRefused(t, err, "TOKEN_NOT_ACCEPTED")
		next, err := jwt.NewWithClaims(jwt.SigningMethodRS256, goodClaims()).SignedString(strangerKey())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.Authenticate(conn.call("Bearer "+next), r.s, now); err != nil {
			t.Errorf("the new key's token: %s", authn.Reason(err))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if _, _, err := a.Authenticate(connect().call("Bearer "+next), r.s, now); err != nil {
			t.Errorf("a file that is gone: %s", authn.Reason(err))
		}
	})
}

// rsaJWK is a key of a key set.
func rsaJWK(kid string, key *rsa.PublicKey, more string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":%q%s}`, kid,
		base64.RawURLEncoding.EncodeToString(key.N.Bytes()), base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()), more)
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

// signKid signs good claims and names a key.
func signKid(t testing.TB, kid string, key any) string {
	t.Helper()
	method := jwt.SigningMethod(jwt.SigningMethodRS256)
	if _, ok := key.(*rsa.PrivateKey); !ok {
		method = jwt.SigningMethodES256
	}
	token := jwt.NewWithClaims(method, goodClaims())
	if kid != "" {
		token.Header["kid"] = kid
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// issuer serves a key set over TLS 1.3 and counts.
type issuer struct {
	*httptest.Server
	mu      sync.Mutex
	body    string
	status  int
	fetches atomic.Int32
	caFile  string
}

func newIssuer(t *testing.T, body string) *issuer {
	t.Helper()
	i := &issuer{body: body, status: http.StatusOK}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.fetches.Add(1)
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/jwks", http.StatusFound)
			return
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		w.WriteHeader(i.status)
		_, _ = w.Write([]byte(i.body))
	}))
	t.Cleanup(i.Close)
	i.caFile = write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}))
	return i
}

func (i *issuer) serve(status int, body string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.status, i.body = status, body
}

func (i *issuer) tokens(t *testing.T, path string) *authn.Tokens {
	t.Helper()
	tok, err := newTokens(authn.TokensConfig{JWKS: i.URL + path, JWKSCA: i.caFile, Algorithms: []string{"RS256", "ES256"}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, tok)
	return tok
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func accepts(a *authn.Authenticator, text string) func() bool {
	return func() bool {
		_, _, err := a.Authenticate(connect().call("Bearer "+text), newRecords().s, now)
		return err == nil
	}
}

// Against a real server with TLS: a key set with keys of all sorts, of which
// only the good ones count, and a change of keys, which the first token of the
// new key brings about.
func TestJWKS(t *testing.T) {
	x, y := ecPoint()
	ec := fmt.Sprintf(`{"kty":"EC","kid":"ec","crv":"P-256","x":%q,"y":%q,"alg":"ES256","use":"sig"}`, x, y)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	i := newIssuer(t, set(
		rsaJWK("one", &issuerKey().PublicKey, `,"use":"sig","alg":"RS256","key_ops":["verify"],"x5t":"a"`), ec,
		rsaJWK("enc", &strangerKey().PublicKey, `,"use":"enc"`), rsaJWK("512", &strangerKey().PublicKey, `,"alg":"RS512"`),
		rsaJWK("sign", &strangerKey().PublicKey, `,"key_ops":["sign"]`), rsaJWK("small", &small.PublicKey, ""),
		`{"kty":"oct","kid":"hmac","k":"c2VjcmV0"}`, `{"kty":7}`, `{"kty":"EC","kid":"off","crv":"P-256","x":"AAAA","y":"AAAA"}`, `null`,
	))
	a := authenticator(authn.BearersConfig{Tokens: i.tokens(t, "/jwks")})
	one := signKid(t, "one", issuerKey())
	eventually(t, "the keys are fetched", accepts(a, one))
	if !accepts(a, signKid(t, "ec", ecKey()))() {
		t.Error("the EC key does not count")
	}
	if !accepts(a, signKid(t, "", ecKey()))() {
		t.Error("a token without kid is refused where there is no choice")
	}
	for _, kid := range []string{"enc", "512", "sign", "hmac", "off", "two"} {
		if accepts(a, signKid(t, kid, strangerKey()))() {
			t.Errorf("the key %s counts", kid)
		}
	}
	if accepts(a, signKid(t, "small", small))() {
		t.Error("a key of 1024 bits counts")
	}
	hs := hmacOf(segment(map[string]any{"alg": "HS256", "kid": "hmac"})+"."+segment(goodClaims()), []byte("secret"))
	if accepts(a, hs)() {
		t.Error("a key for HMAC counts")
	}
	if accepts(a, signKid(t, "ec", issuerKey()))() || accepts(a, signKid(t, "one", strangerKey()))() {
		t.Error("a kid gets the token of another key through")
	}
}

func ecPoint() (x, y string) {
	point := elliptic.Marshal(elliptic.P256(), ecKey().X, ecKey().Y) //nolint:staticcheck // the only way to the coordinates
	return base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
}

func TestJWKSChangeOfKeys(t *testing.T) {
	i := newIssuer(t, set(rsaJWK("one", &issuerKey().PublicKey, "")))
	a := authenticator(authn.BearersConfig{Tokens: i.tokens(t, "/jwks")})
	one := signKid(t, "one", issuerKey())
	eventually(t, "the keys are fetched", accepts(a, one))
	c, _, err := a.Authenticate(connect().call("Bearer "+one), newRecords().s, now)
	if err != nil {
		t.Fatal(err)
	}
	i.serve(http.StatusOK, set(rsaJWK("two", &strangerKey().PublicKey, "")))
	if _, _, err := a.Authenticate(connect().call("Bearer "+signKid(t, "two", strangerKey())), newRecords().s, now); err != nil {
		t.Fatalf("the first token of the new key: %s", authn.Reason(err))
	}
	wantRefused(t, a.Check(c, newRecords().s, now), "TOKEN_NOT_ACCEPTED")
	if accepts(a, one)() {
		t.Error("the key that the issuer took back still counts")
	}
	// Whatever is asked for now, nothing is fetched for 5 minutes.
	before := i.fetches.Load()
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for m := range 25 {
				if accepts(a, signKid(t, fmt.Sprint("kid", n, m), strangerKey()))() {
					t.Error("an unknown kid counts")
				}
			}
		})
	}
	wg.Wait()
	if n := i.fetches.Load(); n != before {
		t.Errorf("a flood of unknown kids led to %d fetches", n-before)
	}
}

func TestJWKSAnswersThatAreRefused(t *testing.T) {
	good := set(rsaJWK("one", &issuerKey().PublicKey, ""))
	i := newIssuer(t, good)
	a := authenticator(authn.BearersConfig{Tokens: i.tokens(t, "/jwks")})
	one := signKid(t, "one", issuerKey())
	eventually(t, "the keys are fetched", accepts(a, one))
	// Each is fetched because of an unknown kid, by an authenticator of its own,
	// that keeps what it had: nothing.
	many := make([]string, 33)
	for n := range many {
		many[n] = rsaJWK(fmt.Sprint(n), &issuerKey().PublicKey, "")
	}
	for name, c := range map[string]struct {
		status     int
		body, path string
	}{
		"an error": {500, good, "/jwks"}, "not there": {404, good, "/jwks"}, "no JSON": {200, "<html>", "/jwks"}, "no keys": {200, "{}", "/jwks"},
		"nothing usable": {200, set(`{"kty":"oct"}`), "/jwks"}, "too large": {200, good + strings.Repeat(" ", 256<<10), "/jwks"},
		"too many": {200, set(many...), "/jwks"}, "moved": {200, good, "/moved"},
	} {
		i.serve(c.status, c.body)
		before := i.fetches.Load()
		other := authenticator(authn.BearersConfig{Tokens: i.tokens(t, c.path)})
		eventually(t, name+" is fetched", func() bool { return i.fetches.Load() > before })
		_, _, err := other.Authenticate(connect().call("Bearer "+one), newRecords().s, now)
		if e := errdefs.FromStatus(errdefs.ToStatus(err, "")); err == nil || e.Kind != errdefs.Unavailable || e.RetryAfter == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !accepts(a, one)() {
		t.Error("who had the keys has lost them")
	}
	// A server that the given CA does not vouch for.
	other := newIssuer(t, good)
	tok, err := newTokens(authn.TokensConfig{JWKS: other.URL + "/jwks", JWKSCA: write(t, "ca.pem", otherCA(t))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, tok)
	stranger := authenticator(authn.BearersConfig{Tokens: tok})
	if accepts(stranger, one)() || other.fetches.Load() != 0 {
		t.Error("keys are taken from a server that nobody vouches for")
	}
}

func otherCA(t *testing.T) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, issuerKey().Public(), issuerKey())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// The key of a set that is broken in some way is passed over or refused, never
// believed; nothing panics.
func FuzzJWKS(f *testing.F) {
	f.Add([]byte(set(rsaJWK("one", &issuerKey().PublicKey, `,"alg":"RS256"`))))
	x, y := ecPoint()
	f.Add([]byte(set(fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, x, y))))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"","e":"AQAB"},{"kty":"RSA","n":"AQAB","e":"AAAAAAAA"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := authn.CountKeys(body)
		if (n == 0) != (err != nil) {
			t.Errorf("%d keys, %v", n, err)
		}
		if err == nil && !json.Valid(body) {
			t.Error("what is no JSON is taken for a key set")
		}
	})
}
