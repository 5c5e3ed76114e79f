package certs_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// issuer makes the leaves of one agent, by its own clock.
type issuer struct {
	t    *testing.T
	ca   *certs.Authority
	leaf atomic.Pointer[x509.Certificate]
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	ca, err := certs.NewAuthority("ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, ca: ca}
	i.next()
	return i
}

// next puts a new leaf in use.
func (i *issuer) next() {
	i.t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		i.t.Error(err)
		return
	}
	certPEM, err := i.ca.Issue(key.Public(), certs.AgentLeaf(cluster, "n", 0), time.Now())
	if err != nil {
		i.t.Error(err)
		return
	}
	list, err := certs.ParseCertificates(certPEM)
	if err != nil {
		i.t.Error(err)
		return
	}
	i.leaf.Store(list[0])
}

func TestRenewalAtTwoThirds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		tries, renewals := 0, 0
		r := certs.Renewal{
			Leaf: i.leaf.Load,
			Log:  hclog.NewNullLogger(),
			Renew: func(context.Context) error {
				leaf := i.leaf.Load()
				part := float64(time.Since(leaf.NotBefore)) / float64(leaf.NotAfter.Sub(leaf.NotBefore))
				tries++
				if tries%3 != 0 {
					return errors.New("the replica is away")
				}
				if part < 0.61 || part > 0.73 {
					t.Errorf("renewed at %.2f of the life", part)
				}
				renewals++
				i.next()
				return nil
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*24*time.Hour)
		defer cancel()
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
		if renewals != 4 && renewals != 5 {
			t.Errorf("%d renewals in 100 days", renewals)
		}
	})
}

// TestRenewalGoesByTheClockThatIsSet sets the clock ahead while the renewal is waited for, as on a host that begins with a wrong
// one: what has become due is done at once, and not by the timer of before. The issuer's clock stays, so that what it issues is due as it comes:
// that is not asked for again and again.
func TestRenewalGoesByTheClockThatIsSet(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		ahead time.Duration
		least int64 // renewals within a minute
		most  int64 // and within a day
	}{
		"nothing is due":                 {ahead: 10 * day, least: 0, most: 0},
		"it is due":                      {ahead: 25 * day, least: 1, most: 1 + 48},
		"it has ended, and so will each": {ahead: 40 * day, least: 1, most: 24 * 60 * 2},
		"it is set back":                 {ahead: -10 * day, least: 0, most: 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(t)
				var renewals, ahead atomic.Int64
				r := certs.Renewal{
					Leaf:  i.leaf.Load,
					Log:   hclog.NewNullLogger(),
					Renew: func(context.Context) error { renewals.Add(1); i.next(); return nil },
					Now:   func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				time.Sleep(day)
				synctest.Wait()
				ahead.Store(int64(c.ahead))
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := renewals.Load(); n < c.least {
					t.Errorf("%d renewals within a minute, want %d", n, c.least)
				}
				time.Sleep(day)
				synctest.Wait()
				if n := renewals.Load(); n > c.most {
					t.Errorf("%d renewals within a day, want %d at most", n, c.most)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
