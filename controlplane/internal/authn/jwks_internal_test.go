package authn

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// CountKeys counts the keys of a key set that count.
func CountKeys(body []byte) (int, error) {
	s, _, err := parseJWKS(body, []string{"RS256", "ES256"})
	if err != nil {
		return 0, err
	}
	return len(s.keys), nil
}

// wire stands for the way to the issuer, in a bubble that has no network.
type wire struct {
	mu      sync.Mutex
	fetches []time.Time
	answer  func(n int) (string, error)
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.fetches = append(w.fetches, time.Now())
	n := len(w.fetches)
	w.mu.Unlock()
	body, err := w.answer(n)
	if err != nil {
		return nil, err
	}
	if body == "" { // an issuer that does not answer
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (w *wire) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.fetches)
}

func overWire(t *testing.T, w *wire) *jwks {
	t.Helper()
	j, err := newJWKS("https://issuer.example/jwks", "", []string{"RS256"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	j.transport = func(*x509.CertPool) http.RoundTripper { return w }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return j
}

var oneKey = sync.OnceValue(func() string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"one","n":%q,"e":"AQAB"}]}`, base64.RawURLEncoding.EncodeToString(key.N.Bytes()))
})

// A flood of unknown keys leads to one fetch in 5 minutes, however it comes.
func TestFloodOfUnknownKids(t *testing.T) {
	body := oneKey()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{answer: func(int) (string, error) { return body, nil }}
		j := overWire(t, w)
		synctest.Wait()
		if n := w.count(); n != 1 {
			t.Fatalf("%d fetches at the start", n)
		}
		flood := func() int {
			before := w.count()
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					for range 100 {
						j.Unknown(t.Context(), time.Now())
					}
				})
			}
			wg.Wait()
			return w.count() - before
		}
		if n := flood(); n != 1 {
			t.Errorf("the first flood led to %d fetches", n)
		}
		for range 4 {
			time.Sleep(time.Minute)
			if n := flood(); n != 0 {
				t.Errorf("a flood within 5 minutes led to %d fetches", n)
			}
		}
		time.Sleep(time.Minute + time.Second)
		if n := flood(); n != 1 {
			t.Errorf("the flood after 5 minutes led to %d fetches", n)
		}
		// An hour of it: one by the clock and one for the flood each 5 minutes at
		// the very most.
		before := w.count()
		for range 60 {
			time.Sleep(time.Minute)
			flood()
		}
		if n := w.count() - before; n > 24 {
			t.Errorf("an hour of flood led to %d fetches", n)
		}
	})
}

// An address that is down from the start, and later again: nothing waits for
// it, it is asked again with growing pauses, and the old keys stay.
func TestIssuerThatIsDown(t *testing.T) {
	body := oneKey()
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("connection refused")
		w := &wire{answer: func(n int) (string, error) {
			if n <= 8 || n > 9 {
				return "", down
			}
			return body, nil
		}}
		began := time.Now()
		j := overWire(t, w)
		synctest.Wait()
		if len(j.Current().keys) != 0 {
			t.Fatal("keys from nowhere")
		}
		time.Sleep(10 * time.Minute)
		if len(j.Current().keys) != 1 {
			t.Fatal("the keys were not fetched when the issuer was there")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		var at []int
		for _, f := range w.fetches[:9] {
			at = append(at, int(f.Sub(began).Seconds()))
		}
		if got, want := fmt.Sprint(at), "[0 1 3 7 15 31 63 123 183]"; got != want {
			t.Errorf("fetched after %s seconds, want %s", got, want)
		}
		if len(w.fetches) < 11 {
			t.Error("it was not asked again")
		}
	})
}

// An issuer that hangs holds up a call for 3 s, once, and a fetch for 10 s.
func TestIssuerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{answer: func(int) (string, error) { return "", nil }}
		j := overWire(t, w)
		synctest.Wait()
		began := time.Now()
		j.Unknown(t.Context(), time.Now())
		if took := time.Since(began); took != jwksWait {
			t.Errorf("a call waited %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		j.Unknown(ctx, time.Now())
		if took := time.Since(began); took != time.Second {
			t.Errorf("a call waited %s beyond its deadline", took)
		}
		time.Sleep(time.Minute)
		began = time.Now()
		j.Unknown(t.Context(), time.Now())
		if took := time.Since(began); took != 0 {
			t.Errorf("a later call waited %s", took)
		}
	})
}

// The cache holds so many tokens and no more, each for a minute at most.
func TestTokenCache(t *testing.T) {
	var c tokenCache
	keys := newKeySet(nil, false)
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	digest := func(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }
	for i := range 5 * generationTokens {
		c.put(digest(i), tokenEntry{caller: &Caller{Name: fmt.Sprint(i)}, keys: keys, until: at.Add(tokenKept)})
		if n := len(c.younger) + len(c.older); n > 2*generationTokens {
			t.Fatalf("%d tokens are kept", n)
		}
	}
	last := 5*generationTokens - 1
	if got := c.get(digest(last), keys, at); got == nil || got.Name != fmt.Sprint(last) {
		t.Errorf("the last one: %+v", got)
	}
	for name, got := range map[string]*Caller{
		"of other keys":   c.get(digest(last), newKeySet(nil, false), at),
		"after a minute":  c.get(digest(last), keys, at.Add(tokenKept)),
		"from long ago":   c.get(digest(0), keys, at),
		"that never came": c.get(digest(-1), keys, at),
	} {
		if got != nil {
			t.Errorf("a token %s: %+v", name, got)
		}
	}
}
