package election_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const patience = 30 * time.Second

// reign is one call of a replica's lead.
type reign struct {
	election.Leadership
	ctx context.Context
	// finish lets lead return with an error; until then it stays, even when
	// its context has ended, unless obedient.
	finish chan error
}

// replica campaigns until stop.
type replica struct {
	reigns chan reign
	stop   func()
}

func start(t *testing.T, client *clientv3.Client, name string, ttl time.Duration, obedient bool) replica {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	e := election.New(election.Config{
		Client: client, TTL: ttl, Log: hclog.NewNullLogger(),
		Self: &storev1.Leader{Name: name, AgentsAddress: name + ":7444"},
	})
	r := replica{reigns: make(chan reign, 10)}
	ended := make(chan error, 1)
	go func() {
		ended <- e.Run(ctx, func(ctx context.Context, l election.Leadership) error {
			now := reign{Leadership: l, ctx: ctx, finish: make(chan error)}
			r.reigns <- now
			done := ctx.Done()
			if !obedient {
				done = nil
			}
			select {
			case err := <-now.finish:
				return err
			case <-done:
				return nil
			}
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", name, err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r replica) elected(t *testing.T) reign {
	t.Helper()
	select {
	case now := <-r.reigns:
		return now
	case <-time.After(patience):
		t.Fatal("never elected")
		return reign{}
	}
}

func over(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("its context never ended")
	}
}

// try commits a change under a leader's fence.
func try(t *testing.T, client *clientv3.Client, r reign) error {
	t.Helper()
	_, err := store.New(client).Commit(t.Context(), store.Change{
		Fence: r.Fence, Puts: []store.Put{store.PutString(store.InUseKey("vm/x"), r.Term.String())},
	})
	return err
}

func TestResigningHandsOverAtOnce(t *testing.T) {
	client := storetest.Client(t)
	first := start(t, client, "r1", 5*time.Second, true)
	one := first.elected(t)
	if !one.Fresh() || try(t, client, one) != nil {
		t.Fatal("elected, yet it may not lead")
	}
	second := start(t, client, "r2", 5*time.Second, true)
	begun := time.Now()
	first.stop()
	two := second.elected(t)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the next leader came after %s: not at once", took)
	}
	if !one.Term.Less(two.Term) {
		t.Errorf("term %s is not before %s", one.Term, two.Term)
	}
	if err := try(t, client, one); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the former leader's write: %v, want ErrFenced", err)
	}
	if err := try(t, client, two); err != nil {
		t.Error(err)
	}
}

func TestSnapshotNamesTheLeader(t *testing.T) {
	client := storetest.Client(t)
	if _, err := client.Put(t.Context(), store.EpochKey(), "7"); err != nil {
		t.Fatal(err)
	}
	v := store.NewView(client, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	first := start(t, client, "r1", 2*time.Second, true)
	one := first.elected(t)
	start(t, client, "r2", 2*time.Second, true) // waits behind the first
	if err := v.Await(t.Context(), one.Term.Revision); err != nil {
		t.Fatal(err)
	}
	got := v.Current().Leader
	if got == nil || got.Name != "r1" || got.AgentsAddress != "r1:7444" || got.Term != one.Term || got.Term.Epoch != 7 {
		t.Errorf("the snapshot's leader is %+v, the term %s", got, one.Term)
	}
}

func TestALostKeyEndsLeadership(t *testing.T) {
	client := storetest.Client(t)
	lose := map[string]func(reign) error{
		"lease revoked": func(r reign) error {
			resp, err := client.Get(t.Context(), r.Fence.Key)
			if err == nil {
				_, err = client.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
			}
			return err
		},
		"key deleted": func(r reign) error {
			_, err := client.Delete(t.Context(), r.Fence.Key)
			return err
		},
	}
	for name, f := range lose {
		t.Run(name, func(t *testing.T) {
			stubborn := start(t, client, "r1", 2*time.Second, false)
			one := stubborn.elected(t)
			if err := f(one); err != nil {
				t.Fatal(err)
			}
			over(one.ctx, t)
			if err := context.Cause(one.ctx); err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("the cause is %v, want the loss", err)
			}
			// Another one can lead while the former has not returned; the former
			// is not elected again before it has.
			other := start(t, client, "r2", 2*time.Second, true)
			two := other.elected(t)
			if !one.Term.Less(two.Term) || !errors.Is(try(t, client, one), store.ErrFenced) {
				t.Errorf("term %s after %s", two.Term, one.Term)
			}
			other.stop()
			select {
			case <-stubborn.reigns:
				t.Fatal("elected again before its lead returned")
			default:
			}
			one.finish <- nil
			three := stubborn.elected(t)
			if !two.Term.Less(three.Term) {
				t.Errorf("term %s after %s", three.Term, two.Term)
			}
			go func() { three.finish <- nil }()
			stubborn.stop()
		})
	}
}

// mutedLease is a Lease whose keepalives a test can hold back: a stand-in for
// a network, or a process that is stopped.
type mutedLease struct {
	clientv3.Lease
	mu    sync.Mutex
	muted bool
}

func (l *mutedLease) mute(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.muted = on
}

func (l *mutedLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	l.mu.Lock()
	muted := l.muted
	l.mu.Unlock()
	if muted {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return l.Lease.KeepAliveOnce(ctx, id)
}

// KeepAlive never renews, so that the lease lives by KeepAliveOnce alone.
func (l *mutedLease) KeepAlive(ctx context.Context, _ clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	ch := make(chan *clientv3.LeaseKeepAliveResponse)
	context.AfterFunc(ctx, func() { close(ch) })
	return ch, nil
}

func TestLeadershipEndsBeforeTheLease(t *testing.T) {
	real := storetest.Client(t)
	client := clientv3.NewCtxClient(t.Context())
	lease := &mutedLease{Lease: real.Lease}
	client.KV, client.Watcher, client.Lease = real.KV, real.Watcher, lease
	const ttl = 2 * time.Second
	r := start(t, client, "r1", ttl, false)
	one := r.elected(t)

	// Longer than the TTL nothing happens to it: the lease is renewed.
	begun := time.Now()
	poll(t, "twice the TTL has passed", func() bool {
		if !one.Fresh() || one.ctx.Err() != nil {
			t.Fatalf("leadership has ended after %s: %v", time.Since(begun), context.Cause(one.ctx))
		}
		return time.Since(begun) > 2*ttl
	})

	lease.mute(true)
	muted := time.Now()
	poll(t, "not fresh", func() bool { return !one.Fresh() })
	if took := time.Since(muted); took > ttl {
		t.Errorf("fresh for %s after the last keepalive, with a TTL of %s", took, ttl)
	}
	// etcd still holds the key at this moment: ours is the shorter clock.
	if err := try(t, real, one); err != nil {
		t.Errorf("etcd had let the key go before Fresh said so: %v", err)
	}
	over(one.ctx, t)
	lease.mute(false)
	one.finish <- nil
	two := r.elected(t)
	if !one.Term.Less(two.Term) || !two.Fresh() || one.Fresh() {
		t.Errorf("term %s after %s", two.Term, one.Term)
	}
	go func() { two.finish <- nil }()
	r.stop()
}

func TestALeadThatFailsGivesWay(t *testing.T) {
	client := storetest.Client(t)
	first := start(t, client, "r1", 2*time.Second, true)
	one := first.elected(t)
	second := start(t, client, "r2", 2*time.Second, true)
	poll(t, "the second waits behind the first", func() bool {
		resp, err := client.Get(t.Context(), store.ElectionPrefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && resp.Count == 2
	})
	one.finish <- errors.New("a controller has failed")
	second.elected(t)
	second.stop()
	first.elected(t)
}

func TestLeadershipEndsWithTheStore(t *testing.T) {
	member := storetest.Start(t, storetest.Configs(t, 1)[0])
	r := start(t, member.Client(), "r1", time.Second, true)
	one := r.elected(t)
	member.Close()
	over(one.ctx, t)
	begun := time.Now()
	r.stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

func TestBadTTL(t *testing.T) {
	for _, ttl := range []time.Duration{-time.Second, 1500 * time.Millisecond, 6 * time.Second} {
		err := election.New(election.Config{TTL: ttl}).Run(t.Context(), nil)
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: got %v", ttl, err)
		}
	}
}

// poll asks until the answer is yes; for what no channel tells.
func poll(t *testing.T, what string, yes func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(patience)
	for !yes() {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}
