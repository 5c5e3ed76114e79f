package failover

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
)

// mortal is an etcd at whose n-th write something happens: its leader dies before
// it, or right after it, or the lost node is heard again.
type mortal struct {
	*store.Store
	die         context.CancelFunc
	back        func()
	dies, backs int
	after       bool
	died, heard bool
}

func (m *mortal) Commit(ctx context.Context, c store.Change) (int64, error) {
	m.dies--
	if m.backs--; m.backs == 0 {
		m.heard = true
		m.back()
	}
	if m.dies != 0 {
		return m.Store.Commit(ctx, c)
	}
	m.died = true
	if m.after {
		_, _ = m.Store.Commit(ctx, c)
	}
	m.die()
	return 0, ctx.Err()
}

// life has a leader live to its n-th write, where it dies, or at which the lost node
// is back; then another to the operation's end.
func (b *bench) life(said string, etcd *mortal) {
	b.t.Helper()
	b.begin(said)
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	etcd.Store, etcd.die, etcd.back = b.store, cancel, b.back
	first := b.elect("first")
	over := make(chan error, 1)
	go func() { over <- New(b.view, etcd, hclog.NewNullLogger()).Lead(ctx, first) }()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			changed := b.view.Changed()
			s := b.view.Current()
			c, lost := s.LostCopies[vmID+"/a"]
			if task.OpEnded(s.Operations[opID].Value.GetState()) && (!lost || !heard(s, "a") || c.Value.GetState() == gone) {
				cancel()
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := <-over; err != nil {
		b.t.Fatalf("the first leader: %v", err)
	}
	<-finished
	if !etcd.died {
		return
	}
	// The dead one's word does not count any more.
	second := b.elect("second")
	if _, err := b.store.Commit(b.t.Context(), store.Change{Fence: first.Fence, Puts: []store.Put{store.PutString("/debvisor/rpc/inuse/x", "y")}}); !errors.Is(err, store.ErrFenced) {
		b.t.Fatalf("the first leader still writes: %v", err)
	}
	living, stop := context.WithCancel(b.t.Context())
	go func() { over <- New(b.view, b.store, hclog.NewNullLogger()).Lead(living, second) }()
	b.ended()
	stop()
	if err := <-over; err != nil {
		b.t.Fatalf("the second leader: %v", err)
	}
}

// TestTheLeaderDiesAtEveryStep: wherever a leader is cut off, the next one brings
// the VM back; and when its node is heard, nothing of it is left there.
func TestTheLeaderDiesAtEveryStep(t *testing.T) {
	b := newBench(t)
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			etcd := &mortal{dies: n, after: after}
			b.life("pending", etcd)
			if op := b.ended(); op.GetState() != task.OpSucceeded {
				t.Fatalf("died at %d: %v", n, op)
			}
			// Its node comes back to a leader that has nothing else to do, and may die at that, too.
			b.back()
			b.lead()
			if op := b.ended(); op.GetState() != task.OpSucceeded {
				t.Fatalf("died at %d: %v", n, op)
			}
			if !etcd.died {
				if n < 4 {
					t.Errorf("only %d steps were died at", n)
				}
				break
			}
		}
	}
}

// lead has a leader at work until the lost node's copy is gone.
func (b *bench) lead() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	over := make(chan error, 1)
	l := b.elect("third")
	go func() { over <- New(b.view, b.store, hclog.NewNullLogger()).Lead(ctx, l) }()
	b.await("no copy left", func(s *cluster.Snapshot) bool { return s.LostCopies[vmID+"/a"].Value.GetState() == gone })
	cancel()
	if err := <-over; err != nil {
		b.t.Fatal(err)
	}
}

// TestTheNodeIsBackAtEveryStep: at whatever moment the lost node is heard again, the
// VM runs where it was or where it was brought, and nowhere else; nobody stays fenced.
// The leader may die at every moment besides.
func TestTheNodeIsBackAtEveryStep(t *testing.T) {
	b := newBench(t)
	ends := map[string]int{}
	for dies := range 8 {
		for back := 1; ; back++ {
			etcd := &mortal{dies: dies, backs: back, after: back%2 == 0}
			b.life("pending", etcd)
			if !etcd.heard {
				if dies == 0 && back < 4 {
					t.Errorf("it was back at %d steps only", back)
				}
				break
			}
			op := b.ended()
			ends[op.GetErrorCode()]++
			if op.GetState() != task.OpSucceeded && op.GetErrorCode() != NodeReachable {
				t.Fatalf("back at %d, died at %d: %v", back, dies, op)
			}
		}
	}
	if ends[""] == 0 || ends[NodeReachable] == 0 {
		t.Errorf("it ended as %v: both were to be seen", ends)
	}
}

// TestItIsCancelledAtEveryStep: until the placement moves all is undone.
func TestItIsCancelledAtEveryStep(t *testing.T) {
	b := newBench(t)
	ends := map[string]int{}
	for n := 1; ; n++ {
		cancelled := false
		etcd := &mortal{backs: n}
		b.begin("pending")
		etcd.Store, etcd.back = b.store, func() { cancelled = b.cancel() }
		ctx, stop := context.WithCancel(t.Context())
		over := make(chan error, 1)
		l := b.elect(fmt.Sprint("r", n))
		go func() { over <- New(b.view, etcd, hclog.NewNullLogger()).Lead(ctx, l) }()
		op := b.ended()
		stop()
		if err := <-over; err != nil {
			t.Fatal(err)
		}
		ends[op.GetErrorCode()]++
		if !etcd.heard {
			break
		}
		if want := map[bool]task.OpState{true: task.OpCancelled, false: task.OpSucceeded}; op.GetState() != want[true] && op.GetState() != want[false] {
			t.Fatalf("cancelled (%t) at %d: %v", cancelled, n, op)
		}
	}
	if ends[codeCancelled] < 2 || ends[""] < 1 {
		t.Errorf("it ended as %v", ends)
	}
}
