package operations_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// forgetful is a store that does not answer its first change: it has got lost, or its
// answer has.
type forgetful struct {
	*store.Store
	answer bool
	asked  atomic.Int32
}

func (f *forgetful) Commit(ctx context.Context, change store.Change) (int64, error) {
	if f.asked.Add(1) > 1 {
		return f.Store.Commit(ctx, change)
	}
	if f.answer {
		if _, err := f.Store.Commit(ctx, change); err != nil {
			return 0, err
		}
	}
	<-ctx.Done()
	return 0, ctx.Err()
}

// A change that etcd loses while its leader resigns, or whose answer gets lost, is
// made once, and the caller hears of nothing.
func TestWhatEtcdLosesIsAskedAgain(t *testing.T) {
	for name, answerLost := range map[string]bool{"the change": false, "its answer": true} {
		r, _ := start(t)
		f := &forgetful{Store: r.store, answer: answerLost}
		id, err := operations.New(r.view, f).Submit(t.Context(), migrateSpec("v1", ""))
		if err != nil {
			t.Fatalf("%s is lost: %v", name, err)
		}
		if op, err := r.Get(id); err != nil || op.GetId() != id || len(r.view.Current().Operations) != 1 || f.asked.Load() < 2 {
			t.Errorf("%s is lost: %v, %v; %d operations, asked %d times", name, op, err, len(r.view.Current().Operations), f.asked.Load())
		}
	}
}
