package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// jwksEvery is how often the key set is fetched, and the shortest time
	// between fetches for the sake of unknown keys.
	jwksEvery = 5 * time.Minute
	// jwksRetry and jwksRetryMost are the first and the longest pause before a
	// fetch that failed is tried again.
	jwksRetry     = time.Second
	jwksRetryMost = time.Minute
	// jwksTimeout is how long a fetch may take, and jwksWait how long a call
	// waits for one.
	jwksTimeout = 10 * time.Second
	jwksWait    = 3 * time.Second
	// maxJWKS is the most that a key set may hold, bytes.
	maxJWKS = 256 << 10
)

// jwks has an issuer's keys from an address. They are fetched beside the calls,
// so that neither the start nor a call without tokens waits for it, and what
// was fetched last stays while the address does not answer.
type jwks struct {
	url, caFile string
	algorithms  []string
	log         hclog.Logger
	// transport is what fetches, given the CAs; tests have their own.
	transport func(*x509.CertPool) http.RoundTripper

	current atomic.Pointer[keySet]
	asked   chan struct{}
	// again asks for a fetch that nobody waits for.
	again chan struct{}

	mu sync.Mutex
	// askedAt is when an unknown key last led to a fetch, and coming is closed
	// when that fetch has ended; nil: it has.
	askedAt time.Time
	coming  chan struct{}
}

func newJWKS(address, caFile string, algorithms []string, log hclog.Logger) (*jwks, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errdefs.Field("--jwt-jwks", address, "an https address, such as https://login.example.org/jwks.json")
	}
	j := &jwks{
		url: address, caFile: caFile, algorithms: algorithms, log: log,
		transport: tlsTransport, asked: make(chan struct{}, 1), again: make(chan struct{}, 1),
	}
	j.current.Store(newKeySet(nil, true))
	if _, err := j.authorities(); err != nil {
		return nil, err
	}
	return j, nil
}

// Current are the keys that were fetched last; none before the first time.
func (j *jwks) Current() *keySet { return j.current.Load() }

// Unknown has the keys fetched, at most once in jwksEvery however many ask, and
// waits a while for that.
func (j *jwks) Unknown(ctx context.Context, now time.Time) {
	coming := j.ask(now)
	if coming == nil {
		return
	}
	wait := time.NewTimer(jwksWait)
	defer wait.Stop()
	select {
	case <-coming:
	case <-wait.C:
	case <-ctx.Done():
	}
}

// Reload has the keys fetched soon.
func (j *jwks) Reload() error {
	select {
	case j.again <- struct{}{}:
	default: // they are about to be
	}
	return nil
}

// ask gives what is closed when the fetch that was asked for has ended; nil:
// none may be asked for yet.
func (j *jwks) ask(now time.Time) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.coming == nil {
		if !j.askedAt.IsZero() && now.Sub(j.askedAt) < jwksEvery {
			return nil
		}
		j.askedAt, j.coming = now, make(chan struct{})
		j.asked <- struct{}{} // there is room: the one before was answered
	}
	return j.coming
}

// answer tells those who asked that a fetch has ended.
func (j *jwks) answer() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.coming)
	j.coming = nil
}

// Run fetches the keys at once, when asked, and every jwksEvery; after a failure
// soon again.
func (j *jwks) Run(ctx context.Context) error {
	next := time.NewTimer(0)
	defer next.Stop()
	for pause := time.Duration(0); ; {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		case <-j.again:
		case <-j.asked:
			asked = true
		}
		err := j.refresh(ctx)
		if asked {
			j.answer()
		}
		if err == nil {
			pause = 0
			next.Reset(jwksEvery)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		pause = min(max(2*pause, jwksRetry), jwksRetryMost)
		next.Reset(pause)
		j.log.Warn("the keys of tokens' issuer cannot be fetched; those fetched before stay in use",
			"address", j.url, "keys", len(j.Current().keys), "again_in", pause, "error", err)
	}
}

// refresh fetches the keys once.
func (j *jwks) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, jwksTimeout)
	defer cancel()
	body, err := j.fetch(ctx)
	if err != nil {
		return err
	}
	next, passed, err := parseJWKS(body, j.algorithms)
	if err != nil {
		return err
	}
	if was := j.current.Load(); !was.same(next) {
		j.current.Store(next)
		j.log.Info("the keys of tokens' issuer were fetched", "address", j.url, "keys", len(next.keys), "passed_over", passed)
	}
	return nil
}

func (j *jwks) fetch(ctx context.Context) ([]byte, error) {
	cas, err := j.authorities()
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: j.transport(cas),
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it points to another address, which is not followed")
		},
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxJWKS {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxJWKS)
	}
	return body, nil
}

// authorities reads the CAs that vouch for the address; nil: the host's.
func (j *jwks) authorities() (*x509.CertPool, error) {
	if j.caFile == "" {
		return nil, nil //nolint:nilnil // that is how crypto/tls is told
	}
	content, err := readSmall(j.caFile, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("--jwt-jwks-ca %s: %w", j.caFile, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("--jwt-jwks-ca %s: there is no certificate in it", j.caFile)
	}
	return pool, nil
}

// tlsTransport speaks TLS 1.3 with the address itself: no proxy of the
// environment comes in between.
func tlsTransport(cas *x509.CertPool) http.RoundTripper {
	return &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: cas, MinVersion: tls.VersionTLS13},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// jwk is a key of a set (RFC 7517, RFC 7518 §6).
type jwk struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid"`
	Use    string   `json:"use"`
	Alg    string   `json:"alg"`
	KeyOps []string `json:"key_ops"`
	N      string   `json:"n"`
	E      string   `json:"e"`
	Crv    string   `json:"crv"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
}

// parseJWKS reads a key set. Keys that are not for verifying tokens of our
// algorithms are passed over; one without any is refused.
func parseJWKS(body []byte, algorithms []string) (set *keySet, passed int, err error) {
	var all struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, 0, fmt.Errorf("the answer is no key set: %w", err)
	}
	if len(all.Keys) > maxKeys {
		return nil, 0, fmt.Errorf("the key set has %d keys; the most is %d", len(all.Keys), maxKeys)
	}
	var keys []verifyKey
	var last error
	for _, raw := range all.Keys {
		key, err := parseJWK(raw, algorithms)
		if err != nil {
			last = err
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, 0, errors.Join(errors.New("the key set has no key that tokens could be verified with"), last)
	}
	return newKeySet(keys, true), len(all.Keys) - len(keys), nil
}

func parseJWK(raw json.RawMessage, algorithms []string) (verifyKey, error) {
	var k jwk
	if err := json.Unmarshal(raw, &k); err != nil {
		return verifyKey{}, err
	}
	if k.Use != "" && k.Use != "sig" || len(k.KeyOps) > 0 && !slices.Contains(k.KeyOps, "verify") {
		return verifyKey{}, errors.New("a key that is not for signatures")
	}
	public, err := k.public()
	if err != nil {
		return verifyKey{}, err
	}
	key, err := newVerifyKey(k.Kid, public, algorithms)
	if err != nil {
		return verifyKey{}, err
	}
	if k.Alg != "" && k.Alg != key.alg {
		return verifyKey{}, fmt.Errorf("a key for %s", k.Alg)
	}
	return key, nil
}

func (k *jwk) public() (crypto.PublicKey, error) {
	switch k.Kty {
	case "RSA":
		n, err := base64.RawURLEncoding.DecodeString(k.N)
		if err != nil {
			return nil, errors.New("an RSA key whose n is not in base64url")
		}
		e, err := base64.RawURLEncoding.DecodeString(k.E)
		if err != nil || len(e) > 4 {
			return nil, errors.New("an RSA key whose e is not in base64url, or too large")
		}
		exponent := new(big.Int).SetBytes(e)
		if exponent.BitLen() > 31 {
			return nil, errors.New("an RSA key whose e is too large")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}, nil
	case "EC":
		x, errX := base64.RawURLEncoding.DecodeString(k.X)
		y, errY := base64.RawURLEncoding.DecodeString(k.Y)
		if k.Crv != "P-256" || errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return nil, errors.New("an EC key that is not on P-256 or not in base64url")
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	}
	return nil, fmt.Errorf("a key of the type %q", k.Kty)
}
