package api

import (
	"net/netip"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// failuresPerMinute is how many calls a minute may fail to say who makes them,
// for each address that they come from.
const failuresPerMinute = 30

// Strangers limits calls that nobody answers for, by the address they come
// from and never by a name that they try: so nobody locks another out, and
// nobody without an identity fills the audit log. It is safe for use by many
// goroutines.
type Strangers struct {
	failures *limit.Limiter
}

// NewStrangers makes one that has seen no failure.
func NewStrangers() *Strangers { return &Strangers{failures: limit.New()} }

// admit refuses an address of which too many calls have failed.
func (s *Strangers) admit(peer string, now time.Time) error {
	if s == nil {
		return nil
	}
	return tooMany(s.failures.Peek(network(peer), limit.Rate{PerMinute: failuresPerMinute}, now))
}

// failed counts a call that failed to say who makes it.
func (s *Strangers) failed(peer string, now time.Time) error {
	if s == nil {
		return nil
	}
	return tooMany(s.failures.Take(network(peer), limit.Rate{PerMinute: failuresPerMinute}, now))
}

// Addresses is how many addresses are counted at the moment.
func (s *Strangers) Addresses() int { return s.failures.Names() }

// Met counts a request that becomes no call, by the address that it came from.
func (s *Strangers) Met(peer string, now time.Time) error { return s.failed(peer, now) }

func tooMany(err error) error {
	if err == nil {
		return nil
	}
	return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_FAILURES",
		"too many calls without a valid identity have come from this address; those with one go on").WithRetry(errdefs.Of(err).RetryAfter)
}

// network is what an address is counted as: itself, or its /64, of which one
// host has all.
func network(peer string) string {
	ip, err := netip.ParseAddr(peer)
	if err != nil || ip.Unmap().Is4() {
		return "address:" + peer
	}
	prefix, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return "address:" + peer
	}
	return "address:" + prefix.String()
}
