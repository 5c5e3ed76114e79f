package api

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	// guardEvery is how often it is looked for credentials that have ended, and
	// whether the cluster is still in sight.
	guardEvery = 250 * time.Millisecond
	// guardGrace is how long a stream that has been ended may take to return
	// before it is left behind: one that waits for its caller to read or write
	// hears of nothing else.
	guardGrace = 200 * time.Millisecond
)

// guard holds the calls that go on for long, streams and changes, so that they
// end when what they were admitted by no longer holds.
type guard struct {
	mu    sync.Mutex
	calls map[*call]struct{}
	// left counts the handlers of streams.
	left sync.WaitGroup
}

// endedCall is why a guard ended a call.
type endedCall struct{ error }

func (e *endedCall) Unwrap() error { return e.error }

// ended gives what a handler returned, or why its call was ended meanwhile.
func ended(ctx context.Context, err error) error {
	var e *endedCall
	if err != nil && errors.As(context.Cause(ctx), &e) {
		return e.error
	}
	return err
}

// watch gives the call a context that ends when its caller may no longer make
// it. What is open to everybody needs no watching.
func (c *Chain) watch(k *call) (_ context.Context, release func()) {
	if k.caller == nil || k.rule.Open {
		return k, func() {}
	}
	ctx, end := context.WithCancelCause(k)
	k.end = end
	g := &c.guard
	g.mu.Lock()
	if g.calls == nil {
		g.calls = map[*call]struct{}{}
	}
	g.calls[k] = struct{}{}
	g.mu.Unlock()
	// What changed between its admission and now went unseen.
	c.recheck(k, c.View.Current(), time.Now())
	return ctx, func() {
		g.mu.Lock()
		delete(g.calls, k)
		g.mu.Unlock()
		end(nil)
	}
}

// serve runs a stream's handler until it returns, or shortly after its call was
// ended. A handler that is left behind ends with its stream, when the chain has
// returned.
func (g *guard) serve(ctx context.Context, handler func() error) error {
	var err error
	done := make(chan struct{})
	g.left.Go(func() {
		defer close(done)
		err = rpc.Recover(handler)
	})
	select {
	case <-done:
		return endedStream(ctx, err)
	case <-ctx.Done():
	}
	var e *endedCall
	if !errors.As(context.Cause(ctx), &e) {
		<-done // the caller has left, which ends the stream
		return err
	}
	grace := time.NewTimer(guardGrace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	}
	return e.error
}

// endedStream is ended for a stream, to whose end no answer belongs: it may have
// returned nil because it was ended.
func endedStream(ctx context.Context, err error) error {
	var e *endedCall
	if errors.As(context.Cause(ctx), &e) {
		return e.error
	}
	return err
}

// Run ends calls whose callers may no longer make them, within a second, and
// writes sums of refusals to the audit log, until ctx ends; then it waits for
// the handlers that were left behind. It is to be stopped after the listener.
func (c *Chain) Run(ctx context.Context) error {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	var seen [2]any
	for {
		changed := c.View.Changed()
		s := c.View.Current()
		if now := [2]any{c.Authz.Stamp(s), c.Authn.Stamp()}; now != seen {
			seen = now
			c.sweep(s, time.Now(), func(*call) bool { return true })
		}
		select {
		case <-changed:
		case now := <-tick.C:
			c.look(now)
			c.refusals.flush(now)
			c.flood.flush(now)
		case <-ctx.Done():
			c.refusals.flushAll()
			c.flood.flushAll()
			c.guard.left.Wait()
			return nil
		}
	}
}

// look ends what time has ended: credentials, and this replica's sight of the
// cluster. Agents' sessions end with leadership, which needs no help.
func (c *Chain) look(now time.Time) {
	stale := c.View.Fresh()
	c.sweep(c.View.Current(), now, func(k *call) bool {
		if stale != nil && k.caller.Agent == nil && !k.rule.Stale {
			k.end(&endedCall{stale})
			return false
		}
		return !k.caller.Expires.IsZero() && now.After(k.caller.Expires)
	})
}

// sweep looks again at the calls that are chosen.
func (c *Chain) sweep(s *cluster.Snapshot, now time.Time, choose func(*call) bool) {
	var chosen []*call
	c.guard.mu.Lock()
	for k := range c.guard.calls {
		if choose(k) {
			chosen = append(chosen, k)
		}
	}
	c.guard.mu.Unlock()
	for _, k := range chosen {
		c.recheck(k, s, now)
	}
}

// recheck ends a call that its caller may no longer make.
func (c *Chain) recheck(k *call, s *cluster.Snapshot, now time.Time) {
	err := c.Authn.Check(k.caller, s, now)
	if err == nil {
		g := c.Authz.Grant(s, k.caller)
		if err = c.Authz.AuthorizeBy(g, k.caller, k.method, now); err == nil && g.Tenant() != k.grant.Tenant() {
			err = moved(k.caller)
		}
	}
	if err == nil {
		return
	}
	c.Log.Info("an open call is ended: its caller may no longer make it",
		"caller", k.caller.Name, "peer", k.peer, "method", k.method, obs.TraceKey, k.trace, "reason", errdefs.Of(err).Message)
	k.end(&endedCall{err})
}

// moved ends a call of a caller that belongs to another tenant now: what it was
// shown, and would be, is another cluster's.
func moved(caller *authn.Caller) error {
	return errdefs.New(errdefs.Unavailable, "ACCESS_CHANGED",
		"%s sees another part of the cluster now: ask again", caller.Name).WithRetry(time.Millisecond)
}
