package store_test

import (
	"context"
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

// A view whose watch hangs in our own code is not alive, although it still
// measures its age: who feeds the watchdog by it must not go on.
func TestAViewThatHangsIsNotAlive(t *testing.T) {
	t.Parallel()
	client := storetest.Client(t)
	v := store.NewView(client, hclog.NewNullLogger())
	v.LoseAfter(3 * time.Second)
	held := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(held) })
	v.OnEnd(func(cluster.Endings) { <-held })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = v.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	t.Cleanup(letGo)
	<-v.Ready()
	put := func(state task.OpState) {
		t.Helper()
		commit(deadline(t), t, store.New(client), store.Change{Puts: []store.Put{
			store.PutProto(store.OperationKey("a"), &storev1.Operation{Id: "a", State: state}),
		}})
	}
	put(task.OpRunning)
	poll(t, "it comes along", func() bool { return v.Fresh() == nil && v.Current().Operations["a"].Value != nil })
	if err := v.Alive(); err != nil {
		t.Fatal(err)
	}
	put(task.OpSucceeded) // who is told of it hangs
	put(task.OpSucceeded) // this one is never read
	poll(t, "it is not alive", func() bool { return v.Alive() != nil })
	letGo()
	poll(t, "it is alive again", func() bool { return v.Alive() == nil && v.Fresh() == nil })
}
