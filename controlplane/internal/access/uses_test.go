package access_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// ledger stands for etcd in a bubble, that has no network: it holds the
// snapshot, and counts transactions.
type ledger struct {
	mu      sync.Mutex
	s       *cluster.Snapshot
	fail    error
	commits []int // puts in each
}

func (l *ledger) Current() *cluster.Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s
}

func (l *ledger) Commit(_ context.Context, c store.Change) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits = append(l.commits, len(c.Puts))
	return 0, l.fail
}

func (l *ledger) taken() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.commits)
}

func withKeys(n int) *cluster.Snapshot {
	d := cluster.Empty().Draft()
	for i := range n {
		d.APIKeys.Put(fmt.Sprint("key", i), &storev1.APIKey{}, 1)
	}
	return d.Snapshot(1)
}

func runUses(t *testing.T, u *access.Uses) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = u.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// However often a key is used, it is written once a minute; many keys go
// together; and what is not a key is not written at all.
func TestUsesAreWrittenOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{s: withKeys(300)}
		u := access.NewUses(access.UsesConfig{View: l, Store: l, Replica: "r1", Log: hclog.NewNullLogger()})
		stop := runUses(t, u)
		time.Sleep(time.Second / 2)
		for range 10*60 - 5 {
			for i := range 300 {
				u.Note(fmt.Sprint("key", i), "192.0.2.7", time.Now())
			}
			u.Note("revoked", "192.0.2.7", time.Now())
			time.Sleep(time.Second)
		}
		stop()
		// 300 keys are two transactions, ten times in ten minutes.
		got := l.taken()
		if len(got) != 2*10 {
			t.Errorf("%d transactions: %v", len(got), got)
		}
		for i := range got {
			if want := []int{200, 100}[i%2]; got[i] != want {
				t.Errorf("transaction %d has %d uses, want %d", i, got[i], want)
			}
		}
	})
}

func TestUsesThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{s: withKeys(1), fail: errors.New("no quorum")}
		u := access.NewUses(access.UsesConfig{View: l, Store: l, Replica: "r1", Log: hclog.NewNullLogger()})
		stop := runUses(t, u)
		u.Note("key0", "192.0.2.7", time.Now())
		time.Sleep(time.Minute + time.Second/2) // between two tries
		before := len(l.taken())
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		time.Sleep(time.Minute)
		stop()
		if got := len(l.taken()) - before; before < 2 || got != 1 {
			t.Errorf("tried %d times in vain, then written %d times", before, got)
		}
	})
}

// With a real etcd: the use of one replica is seen by another, which writes
// none of its own within the minute; and no use outlives its key.
func TestUsesOfReplicas(t *testing.T) {
	s := newSite(t)
	s.put(store.APIKeyKey("ci"), `{"sha256":"x"}`, store.APIKeyKey("gone"), `{"sha256":"y"}`)
	s.await("the keys", func(c *cluster.Snapshot) bool { return len(c.APIKeys) == 2 })
	uses := func(replica string, view interface{ Current() *cluster.Snapshot }) *access.Uses {
		return access.NewUses(access.UsesConfig{View: view, Store: s.store, Replica: replica, Log: hclog.NewNullLogger()})
	}
	at := time.Now()
	one := uses("r1", s.view)
	one.Note("ci", "192.0.2.7", at)
	runUses(t, one)() // what is noted is written at the end
	s.await("the first use", func(c *cluster.Snapshot) bool { return c.KeyUses["ci"].Value != nil })
	if got := s.view.Current().KeyUses["ci"].Value; got.GetFrom() != "192.0.2.7" || got.GetReplica() != "r1" || !got.GetAt().AsTime().Equal(at) {
		t.Errorf("written: %v", got)
	}
	two := uses("r2", s.view)
	two.Note("ci", "192.0.2.8", at.Add(59*time.Second))
	runUses(t, two)()
	if got := s.dump()[store.KeyUseKey("ci")]; got == "" || s.view.Current().KeyUses["ci"].Value.GetReplica() != "r1" {
		t.Errorf("another replica wrote within the minute")
	}
	old := s.view.Current() // where the key still is
	if _, err := s.client.Delete(t.Context(), store.APIKeyKey("gone")); err != nil {
		t.Fatal(err)
	}
	late := uses("r3", &ledger{s: old})
	late.Note("gone", "192.0.2.9", at)
	late.Note("ci", "192.0.2.9", at.Add(2*time.Minute))
	runUses(t, late)()
	if got, ok := s.dump()[store.KeyUseKey("gone")]; ok {
		t.Errorf("a use has outlived its key: %q", got)
	}
}
