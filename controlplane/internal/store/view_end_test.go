package store_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// ends keeps the ids of what has ended, in their order.
type ends struct {
	mu  sync.Mutex
	ids []string
}

func (e *ends) take(ended cluster.Endings) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, op := range ended.Operations {
		e.ids = append(e.ids, op.GetId())
	}
	for _, t := range ended.Tasks {
		e.ids = append(e.ids, t.GetId())
	}
}

func (e *ends) are(want ...string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Equal(e.ids, want)
}

func TestEndsAreToldOnce(t *testing.T) {
	client := storetest.Client(t)
	s := store.New(client)
	put := func(puts ...store.Put) {
		t.Helper()
		if _, err := s.Commit(t.Context(), store.Change{Puts: puts}); err != nil {
			t.Fatal(err)
		}
	}
	operation := func(id string, state task.OpState) store.Put {
		return store.PutProto(store.OperationKey(id), &storev1.Operation{Id: id, State: state})
	}
	put(operation("before", task.OpSucceeded), operation("a", task.OpRunning), operation("d", task.OpRunning))
	var seen ends
	v := store.NewView(client, hclog.NewNullLogger())
	v.OnEnd(seen.take)
	begin := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = v.Run(ctx)
		}()
		stop = sync.OnceFunc(func() {
			cancel()
			<-done
		})
		t.Cleanup(stop)
		return stop
	}
	stop := begin()
	<-v.Ready()
	told := func(want ...string) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for late := time.After(10 * time.Second); !seen.are(want...); {
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("told %v, want %v", seen.ids, want)
			}
		}
	}
	put(operation("a", task.OpSucceeded))
	told("a")
	put(operation("a", task.OpSucceeded), operation("born", task.OpFailed)) // the first has ended already
	told("a", "born")
	running := &storev1.Task{Id: "t", Node: "n", State: task.Recorded(task.Running)}
	ended := &storev1.Task{Id: "t", Node: "n", State: task.Recorded(task.Failed)}
	put(store.PutProto(store.TaskKey("t"), running))
	put(store.PutProto(store.TaskKey("t"), ended))
	told("a", "born", "t")

	// What ends while nobody watches is found when all is listed again.
	stop()
	put(operation("d", task.OpCancelled))
	begin()
	told("a", "born", "t", "d")
}
