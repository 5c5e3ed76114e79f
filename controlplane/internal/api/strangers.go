package api

import (
	"net/netip"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// failuresPerMinute is how many calls a minute may fail to say who makes them,
// for each address that they come from.
const failuresPerMinute = 30

// Strangers limits calls that nobody answers for, by the address they come
// from and never by a name that they try: so nobody locks another out, and
// nobody without an identity fills the audit log. Of an address that goes on
// beyond the limit the log has one line a minute. It is safe for use by many
// goroutines.
type Strangers struct {
	failures, lines *limit.Limiter
}

// NewStrangers makes one that has seen no failure.
func NewStrangers() *Strangers {
	return &Strangers{
		failures: limit.New(limit.Config{PerMinute: failuresPerMinute}),
		lines:    limit.New(limit.Config{PerMinute: 1}),
	}
}

// admit refuses an address of which too many calls have failed.
func (s *Strangers) admit(peer string, now time.Time) error {
	if s == nil {
		return nil
	}
	return tooMany(s.failures.Peek(network(peer), now))
}

// failed counts a call that failed to say who makes it.
func (s *Strangers) failed(peer string, now time.Time) error {
	if s == nil {
		return nil
	}
	return tooMany(s.failures.Take(network(peer), now))
}

// tell tells whether the refusal of a call is worth a line of the audit log.
func (s *Strangers) tell(peer string, now time.Time) bool {
	return s == nil || s.lines.Take(network(peer), now) == nil
}

// Met counts a request that becomes no call, by the address that it came from.
func (s *Strangers) Met(peer string, now time.Time) error { return s.failed(peer, now) }

func tooMany(err error) error {
	if err == nil {
		return nil
	}
	e := errdefs.FromStatus(err)
	return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_FAILURES",
		"too many calls without a valid identity have come from this address; those with one go on").WithRetry(e.RetryAfter)
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

// refuseStranger ends a call that nobody answers for, and writes no line of the
// audit log but one a minute for each address.
func (c *Chain) refuseStranger(k *call, err error) error {
	k.unheard = true
	if c.Strangers.tell(k.peer, k.began) {
		c.Audit.Add(c.refused(k, audit.RateLimitExceeded, err))
	}
	return err
}
