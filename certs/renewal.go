package certs

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"
)

// RenewalTime returns when a certificate is to be renewed: at two thirds of
// its life, give or take a twentieth; jitter, in [0,1), says where in between.
func RenewalTime(leaf *x509.Certificate, jitter float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	part := 2.0/3 + (jitter-0.5)/10
	return leaf.NotBefore.Add(time.Duration(part * float64(life)))
}

// Renewal keeps one certificate from ending.
type Renewal struct {
	// Leaf returns the certificate in use.
	Leaf func() *x509.Certificate
	// Renew obtains and installs the next one; afterwards Leaf returns it.
	Renew func(ctx context.Context) error
	Log   hclog.Logger
	// Now is the clock; nil is the machine's.
	Now func() time.Time
}

// Run renews at two thirds of each certificate's life until the context ends;
// it then returns nil. The machine's clock may be set meanwhile: what is due by
// it is done within lookAgain. A failure is logged and tried again, sooner the
// less life is left, at the latest after an hour; it never ends Run.
func (r Renewal) Run(ctx context.Context) error {
	at := RenewalTime(r.Leaf(), rand.Float64())
	for {
		if !r.sleepUntil(ctx, at) {
			return nil
		}
		if err := r.Renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			at = r.again()
			r.Log.Error("certificate not renewed", "error", err, "not_after", stamp(r.Leaf().NotAfter), "next_try", stamp(at))
			continue
		}
		leaf := r.Leaf()
		r.Log.Info("certificate renewed", "subject", leaf.Subject.CommonName, "serial", Serial(leaf), "not_after", stamp(leaf.NotAfter))
		at = RenewalTime(leaf, rand.Float64())
		if pause := r.again(); pause.After(at) {
			// Each would be out of date as it comes: the issuer's clock is another.
			r.Log.Warn("the new certificate is to be renewed already: is this host's clock ahead of the others'?", "now", stamp(r.now()), "next_try", stamp(pause))
			at = pause
		}
	}
}

const (
	minRetry = 200 * time.Millisecond
	maxRetry = time.Hour
	// lookAgain is how often what is to come is held against the clock: a timer
	// knows nothing of a clock that is set, or stood still with its host.
	lookAgain = 15 * time.Second
)

// again is the earliest time for another renewal.
func (r Renewal) again() time.Time {
	now := r.now()
	return now.Add(retryDelay(r.Leaf(), now))
}

func (r Renewal) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// retryDelay is a tenth of the life that is left, jittered by a half, within
// limits; an expired certificate is tried every minute.
func retryDelay(leaf *x509.Certificate, now time.Time) time.Duration {
	left := leaf.NotAfter.Sub(now)
	if left <= 0 {
		return time.Minute/2 + rand.N(time.Minute/2)
	}
	d := min(max(left/10, minRetry), maxRetry)
	return d/2 + rand.N(d/2)
}

func (r Renewal) sleepUntil(ctx context.Context, at time.Time) bool {
	for left := at.Sub(r.now()); left > 0; left = at.Sub(r.now()) {
		timer := time.NewTimer(min(left, lookAgain))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
	return ctx.Err() == nil
}
