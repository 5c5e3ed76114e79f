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
}

// Run renews at two thirds of each certificate's life until the context ends;
// it then returns nil. A failure is logged and tried again, sooner the less
// life is left, at the latest after an hour; it never ends Run.
func (r Renewal) Run(ctx context.Context) error {
	at := RenewalTime(r.Leaf(), rand.Float64())
	for {
		if !sleepUntil(ctx, at) {
			return nil
		}
		if err := r.Renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			at = time.Now().Add(retryDelay(r.Leaf(), time.Now()))
			r.Log.Error("certificate not renewed", "error", err, "not_after", stamp(r.Leaf().NotAfter), "next_try", stamp(at))
			continue
		}
		leaf := r.Leaf()
		r.Log.Info("certificate renewed", "subject", leaf.Subject.CommonName, "serial", Serial(leaf), "not_after", stamp(leaf.NotAfter))
		at = later(RenewalTime(leaf, rand.Float64()), time.Now().Add(minRetry))
	}
}

const (
	minRetry = 200 * time.Millisecond
	maxRetry = time.Hour
)

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

func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
