package worker_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// script is a kind whose Do and Observe the test writes.
type script struct {
	name    string
	do      func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome
	observe func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome
}

func (s script) Name() string { return s.name }

func (s script) Do(ctx context.Context, t *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
	return s.do(ctx, t, r)
}

func (s script) Observe(ctx context.Context, t *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
	return s.observe(ctx, t, r)
}

func open(t *testing.T, path string, kinds ...worker.Kind) *worker.Worker {
	t.Helper()
	w, err := worker.Open(worker.Config{Path: path, Kinds: kinds, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// start runs the worker; the returned function stops it as an agent's end does.
func start(t *testing.T, w *worker.Worker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

func newTask(id, resource string) *agentv1.Task {
	return &agentv1.Task{Id: id, OperationId: "op", Resource: resource, Term: &agentv1.Term{Epoch: 1, Revision: 5}}
}

func accept(t *testing.T, w *worker.Worker, tasks ...*agentv1.Task) {
	t.Helper()
	for _, one := range tasks {
		if err := w.Accept(one); err != nil {
			t.Fatal(err)
		}
	}
}

// stateOf is how the task would be told in a Hello; nil: not at all.
func stateOf(w *worker.Worker, id string) *agentv1.TaskReport {
	for _, r := range w.Open() {
		if r.GetTaskId() == id {
			return r
		}
	}
	return nil
}

func TestDeliveredTwiceAndLateRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		var mu sync.Mutex
		runs := 0
		kind := script{name: "k", do: func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome {
			mu.Lock()
			defer mu.Unlock()
			runs++
			return &agentv1.TaskOutcome{DowntimeMs: 7}
		}}
		w := open(t, path, kind)
		stop := start(t, w)
		accept(t, w, newTask("op/1/k", "vm/a"), newTask("op/1/k", "vm/a"))
		synctest.Wait()
		accept(t, w, newTask("op/1/k", "vm/a"))
		if err := w.Acknowledge("op/1/k"); err != nil {
			t.Fatal(err)
		}
		if r := stateOf(w, "op/1/k"); r != nil {
			t.Fatalf("an acknowledged end is still told: %v", r)
		}
		stop()

		w = open(t, path, kind)
		defer start(t, w)()
		accept(t, w, newTask("op/1/k", "vm/a"))
		synctest.Wait()
		reports, _ := w.Due()
		if len(reports) != 1 || reports[0].GetState() != task.Succeeded || reports[0].GetOutcome().GetDowntimeMs() != 7 {
			t.Fatalf("a late duplicate is answered with %v, want its former end", reports)
		}
		if runs != 1 {
			t.Fatalf("ran %d times", runs)
		}
	})
}

func TestEndsAreForgottenAfterAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		w := open(t, filepath.Join(t.TempDir(), "journal.db"), script{name: "k", do: func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome {
			runs++
			return &agentv1.TaskOutcome{}
		}})
		defer start(t, w)()
		accept(t, w, newTask("op/1/k", ""))
		synctest.Wait()
		if err := w.Acknowledge("op/1/k"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7*24*time.Hour - time.Minute)
		accept(t, w, newTask("op/1/k", ""))
		synctest.Wait()
		if runs != 1 {
			t.Fatalf("ran again within the week")
		}
		if err := w.Acknowledge("op/1/k"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		accept(t, w, newTask("op/1/k", ""))
		synctest.Wait()
		if runs != 2 {
			t.Fatalf("ran %d times, want the journal to have forgotten", runs)
		}
	})
}

func TestTermsAreKeptOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	w := open(t, path)
	id := w.JournalID()
	for _, term := range []task.Term{{Epoch: 1, Revision: 5}, {Epoch: 1, Revision: 9}, {Epoch: 1, Revision: 9}, {Epoch: 2, Revision: 3}} {
		if err := w.Welcome(term, 2); err != nil {
			t.Fatalf("term %s: %v", term, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, path)
	defer func() { _ = w.Close() }()
	for _, term := range []task.Term{{}, {Epoch: 1, Revision: 9}, {Epoch: 2, Revision: 2}} {
		if err := w.Admit(term); !errors.Is(err, worker.ErrStaleTerm) {
			t.Errorf("term %s after a restart: %v, want ErrStaleTerm", term, err)
		}
	}
	if err := w.Admit(task.Term{Epoch: 2, Revision: 3}); err != nil {
		t.Errorf("the highest term itself: %v", err)
	}
	if w.JournalID() != id || len(id) != 32 {
		t.Errorf("journal id %q after %q", w.JournalID(), id)
	}
}

// A cluster that was restored from a backup is obeyed only on an operator's word,
// by an agent that knows another, and is then the only one that is.
func TestAnEpochIsObeyedOnceConfirmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	w := open(t, path)
	if err := w.Admit(task.Term{Epoch: 7, Revision: 5}); err != nil {
		t.Fatalf("an agent that never heard a leader obeys none: %v", err)
	}
	for _, confirmed := range []uint64{0, 7, 8} {
		if err := w.Welcome(task.Term{Epoch: 9, Revision: 1}, confirmed); !errors.Is(err, worker.ErrUnconfirmedEpoch) {
			t.Errorf("epoch 9, of which %d is confirmed: %v, want ErrUnconfirmedEpoch", confirmed, err)
		}
	}
	if err := w.Admit(task.Term{Epoch: 9, Revision: 1}); !errors.Is(err, worker.ErrUnconfirmedEpoch) {
		t.Errorf("a message of a leader without Welcome: %v, want ErrUnconfirmedEpoch", err)
	}
	if got := w.HighestTerm(); got != (task.Term{Epoch: 7, Revision: 5}) {
		t.Errorf("a refused leader was noted: %s", got)
	}
	if err := w.Admit(task.Term{Epoch: 7, Revision: 6}); err != nil {
		t.Errorf("the former cluster goes on: %v", err)
	}
	if err := w.Welcome(task.Term{Epoch: 9, Revision: 1}, 9); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, path)
	defer func() { _ = w.Close() }()
	if err := w.Admit(task.Term{Epoch: 9, Revision: 2}); err != nil {
		t.Errorf("the next leader of the epoch: %v", err)
	}
	if err := w.Welcome(task.Term{Epoch: 7, Revision: 100}, 9); !errors.Is(err, worker.ErrStaleTerm) {
		t.Errorf("the former cluster: %v, want ErrStaleTerm", err)
	}
}

func TestRestartResumesWithMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		w := open(t, path, script{name: "k", do: func(ctx context.Context, _ *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
			if r.Resumed() || r.Marked("started") {
				t.Error("a first run looks like a resumed one")
			}
			if err := r.Mark(ctx, "started"); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			return nil
		}})
		stop := start(t, w)
		accept(t, w, newTask("op/1/k", "vm/a"))
		synctest.Wait()
		if r := stateOf(w, "op/1/k"); r.GetState() != task.Running {
			t.Fatalf("before the restart: %v", r)
		}
		stop()

		w = open(t, path, script{name: "k", do: func(_ context.Context, one *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
			if !r.Resumed() || !r.Marked("started") || r.Marked("other") || one.GetResource() != "vm/a" {
				t.Errorf("resumed=%v, started=%v, task %v", r.Resumed(), r.Marked("started"), one)
			}
			return &agentv1.TaskOutcome{ErrorCode: "LIBVIRT_ERROR", ErrorMessage: "no"}
		}})
		stop = start(t, w)
		synctest.Wait()
		if r := stateOf(w, "op/1/k"); r.GetState() != task.Failed || r.GetOutcome().GetErrorCode() != "LIBVIRT_ERROR" {
			t.Fatalf("after the restart: %v", r)
		}
		stop()

		w = open(t, path) // the outcome is still to be acknowledged
		defer start(t, w)()
		if r := stateOf(w, "op/1/k"); r.GetState() != task.Failed {
			t.Fatalf("after the second restart: %v", r)
		}
	})
}

func TestOneLockAResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := map[string]int{}, 0
		var order []string
		release := make(chan struct{})
		w := open(t, filepath.Join(t.TempDir(), "journal.db"), script{name: "k", do: func(_ context.Context, one *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
			mu.Lock()
			running[one.GetResource()]++
			most = max(most, running[one.GetResource()])
			order = append(order, one.GetId())
			mu.Unlock()
			<-release
			mu.Lock()
			running[one.GetResource()]--
			mu.Unlock()
			return &agentv1.TaskOutcome{}
		}})
		defer start(t, w)()
		accept(t, w, newTask("a/1/k", "vm/a"), newTask("b/1/k", "vm/a"), newTask("c/1/k", "vm/a"), newTask("d/1/k", "vm/d"))
		synctest.Wait()
		if got := stateOf(w, "b/1/k").GetState(); got != task.Accepted {
			t.Fatalf("the second on one VM is %s", got)
		}
		if got := stateOf(w, "d/1/k").GetState(); got != task.Running {
			t.Fatalf("another VM's is %s", got)
		}
		w.Cancel("b/1/k") // waiting: ends without having been begun
		synctest.Wait()
		if got := stateOf(w, "b/1/k").GetState(); got != task.Cancelled {
			t.Fatalf("cancelled while waiting: %s", got)
		}
		close(release)
		synctest.Wait()
		if got := stateOf(w, "c/1/k").GetState(); got != task.Succeeded || most != 1 || len(order) != 3 {
			t.Fatalf("third is %s, %d at once on one VM, order %v", got, most, order)
		}
	})
}

func TestCancelRelayAndPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, filepath.Join(t.TempDir(), "journal.db"),
			script{name: "patient", do: func(_ context.Context, _ *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
				<-r.Cancelled()
				side := <-r.Relayed()
				return &agentv1.TaskOutcome{ErrorCode: worker.CodeCancelled, Side: side}
			}},
			script{name: "panics", do: func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome { panic("boom") }},
			script{name: "looks", observe: func(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome {
				return &agentv1.TaskOutcome{ErrorCode: "OBSERVED"}
			}})
		defer start(t, w)()
		looks := newTask("op/1/looks", "")
		looks.ObserveOnly = true
		accept(t, w, newTask("op/1/patient", ""), newTask("op/1/panics", ""), looks, newTask("op/1/unheard", ""))
		w.Relay("op/1/patient", &agentv1.Side{State: agentv1.SideState_SIDE_STATE_PAUSED})
		w.Relay("op/1/patient", &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT})
		w.Cancel("op/1/patient")
		w.Cancel("op/1/patient")
		w.Cancel("nobody")
		synctest.Wait()
		for id, want := range map[string]struct {
			state task.State
			code  string
		}{
			"op/1/patient": {task.Cancelled, worker.CodeCancelled},
			"op/1/panics":  {task.Failed, "PANIC"},
			"op/1/looks":   {task.Failed, "OBSERVED"},
			"op/1/unheard": {task.Failed, "UNKNOWN_KIND"},
		} {
			if r := stateOf(w, id); r.GetState() != want.state || r.GetOutcome().GetErrorCode() != want.code {
				t.Errorf("%s: %v", id, r)
			}
		}
		if got := stateOf(w, "op/1/patient").GetOutcome().GetSide().GetState(); got != agentv1.SideState_SIDE_STATE_ABSENT {
			t.Errorf("relayed side %s, want the newest", got)
		}
	})
}

func TestProgressIsCoalescedAndOutcomesAreResent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := make(chan uint64)
		w := open(t, filepath.Join(t.TempDir(), "journal.db"), script{name: "k", do: func(_ context.Context, _ *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
			for n := range steps {
				r.Progress(sent(n))
			}
			return &agentv1.TaskOutcome{}
		}})
		defer start(t, w)()
		accept(t, w, newTask("op/1/k", ""))
		synctest.Wait()
		w.Due()
		for n := range uint64(50) {
			steps <- n
		}
		synctest.Wait()
		reports, next := w.Due()
		if len(reports) != 0 || time.Until(next) != time.Second {
			t.Fatalf("within the second: %v, next in %v", reports, time.Until(next))
		}
		time.Sleep(time.Second)
		if reports, _ = w.Due(); len(reports) != 1 || reports[0].GetProgress().GetMigrateSend().GetBytesDone() != 49 {
			t.Fatalf("after it: %v", reports)
		}
		close(steps)
		synctest.Wait()
		for range 3 {
			if reports, next = w.Due(); len(reports) != 1 || reports[0].GetState() != task.Succeeded {
				t.Fatalf("the end: %v", reports)
			}
			if again, _ := w.Due(); len(again) != 0 {
				t.Fatalf("resent at once: %v", again)
			}
			time.Sleep(time.Until(next))
		}
		if err := w.Acknowledge("op/1/k"); err != nil {
			t.Fatal(err)
		}
		if reports, next = w.Due(); len(reports) != 0 || !next.IsZero() {
			t.Fatalf("after the acknowledgement: %v", reports)
		}
	})
}

func sent(n uint64) *agentv1.TaskProgress {
	return &agentv1.TaskProgress{Kind: &agentv1.TaskProgress_MigrateSend{MigrateSend: &agentv1.MigrateSendProgress{BytesDone: n}}}
}

func TestTwoAgentsOneDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		w := open(t, path)
		defer func() { _ = w.Close() }()
		if _, err := worker.Open(worker.Config{Path: path, Log: hclog.NewNullLogger()}); err == nil {
			t.Fatal("a second agent opened the journal")
		}
	})
}

func TestABrokenJournalStopsTheAgent(t *testing.T) {
	w := open(t, filepath.Join(t.TempDir(), "journal.db"))
	done := make(chan error, 1)
	go func() { done <- w.Run(context.Background()) }()
	if err := w.Close(); err != nil { // a file that no longer takes writes
		t.Fatal(err)
	}
	if err := w.Accept(newTask("op/1/k", "")); err == nil {
		t.Error("a task was accepted without being on disk")
	}
	if err := <-done; err == nil {
		t.Error("Run goes on without a journal")
	}
}
