package election

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// errLeaseLost is why a stint ended: the lease has run out, or may have.
var errLeaseLost = errors.New("the lease is lost")

// lease is an etcd lease with a deadline of our own: etcd counts the TTL from
// the arrival of a keepalive, we from before its sending, by a monotonic clock
// that runs on while the process is stopped. So ours passes first, however long
// the answer was on its way.
type lease struct {
	client *clientv3.Client
	id     clientv3.LeaseID
	ttl    time.Duration
	// born is the zero of the deadline.
	born     time.Time
	deadline atomic.Int64
}

// grant asks for a lease; etcd may give it a longer TTL than was asked for.
func grant(ctx context.Context, client *clientv3.Client, ttl time.Duration) (*lease, error) {
	bounded, cancel := context.WithTimeout(ctx, ttl)
	defer cancel()
	born := time.Now()
	resp, err := client.Grant(bounded, int64(ttl/time.Second))
	if err != nil {
		return nil, fmt.Errorf("asking for a lease: %w", err)
	}
	l := &lease{client: client, id: resp.ID, born: born, ttl: time.Duration(resp.TTL) * time.Second}
	l.extend(0, l.ttl)
	return l, nil
}

// extend moves the deadline: a keepalive sent at a moment was answered with a
// TTL. A tenth of it is kept back for clocks that run at different speeds.
func (l *lease) extend(sent, ttl time.Duration) {
	l.deadline.Store(int64(sent + ttl - ttl/10))
}

// left is how long the lease is sure to last.
func (l *lease) left() time.Duration {
	return time.Duration(l.deadline.Load()) - time.Since(l.born)
}

// fresh tells whether the lease is sure to last still.
func (l *lease) fresh() bool { return l.left() > 0 }

// keep renews the lease three times in a TTL until ctx ends (nil) or until the
// lease may have run out (errLeaseLost). A renewal without an answer is tried
// again at once.
func (l *lease) keep(ctx context.Context) error {
	interval := l.ttl / 3
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		sent, err := l.renew(ctx, interval)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return fmt.Errorf("%w: etcd has ended it", errLeaseLost)
		case !l.fresh():
			return errors.Join(fmt.Errorf("%w: not renewed in time", errLeaseLost), err)
		case err != nil:
			timer.Reset(min(interval/10, l.left()))
		default:
			timer.Reset(interval - (time.Since(l.born) - sent))
		}
	}
}

// renew sends one keepalive, waits for its answer for at most an interval and
// never beyond the deadline, and tells when it was sent.
func (l *lease) renew(ctx context.Context, interval time.Duration) (sent time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, min(interval, max(l.left(), 0)))
	defer cancel()
	sent = time.Since(l.born)
	resp, err := l.client.KeepAliveOnce(ctx, l.id)
	if err == nil {
		l.extend(sent, time.Duration(resp.TTL)*time.Second)
	}
	return sent, err
}

// revoke ends the lease and all its keys now, so that the next leader need not
// wait for the TTL. Without an answer it runs out by itself.
func (l *lease) revoke(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	_, err := l.client.Revoke(ctx, l.id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}
