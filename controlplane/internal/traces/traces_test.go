package traces

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/obs/obstest"
	"github.com/debvisor/debvisor/shared/task"
)

const asked = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// records are a cluster's, as a View gives them.
type records struct {
	mu      sync.Mutex
	now     *cluster.Snapshot
	changed chan struct{}
	// looked is sent to when somebody has been given them.
	looked chan struct{}
}

func newRecords() *records {
	return &records{now: cluster.Empty(), changed: make(chan struct{}), looked: make(chan struct{}, 1)}
}

func (r *records) Current() *cluster.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.looked <- struct{}{}:
	default:
	}
	return r.now
}

func (r *records) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *records) put(op *storev1.Operation, tasks ...*storev1.Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.now.Draft()
	revision := r.now.Revision + 1
	d.Operations.Put(op.GetId(), proto.CloneOf(op), revision)
	for _, t := range tasks {
		d.Tasks.Put(t.GetId(), proto.CloneOf(t), revision)
	}
	r.now = d.Snapshot(revision)
	close(r.changed)
	r.changed = make(chan struct{})
}

// collector serves one on a unix socket.
func collector(t *testing.T) (c *obstest.Collector, endpoint string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "otlp.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c = &obstest.Collector{}
	t.Cleanup(c.Serve(listener))
	return c, "unix://" + path
}

func tracing(t *testing.T, replica, endpoint string) *obs.Tracing {
	t.Helper()
	to, err := obs.OpenTracing(t.Context(), obs.TraceConfig{Service: "rpcd", Instance: replica, Endpoint: endpoint, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// lead has a replica lead, which then has looked at the records; the returned function ends that, and sends what it has recorded.
func lead(t *testing.T, view *records, to *obs.Tracing, revision uint64) (resign func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	select {
	case <-view.looked: // another's look
	default:
	}
	done := make(chan error, 1)
	go func() {
		done <- (&Recorder{View: view, Tracing: to}).Lead(ctx, election.Leadership{Term: task.Term{Epoch: 1, Revision: int64(revision)}})
	}()
	<-view.looked
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := to.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestTraceSurvivesItsLeader ends an operation whose first leader has died without a word, and whose second one resigns in the
// very moment.
func TestTraceSurvivesItsLeader(t *testing.T) {
	c, endpoint := collector(t)
	view, began := newRecords(), time.Now().Add(-10*time.Second)
	op := &storev1.Operation{
		Id: "op-1", Kind: "migrate", State: task.OpRunning, Step: "copying memory, 10 %", Traceparent: asked, TraceId: "the caller's",
		CreatedAt: timestamppb.New(began), StartedAt: timestamppb.New(began), Resources: []string{"vm/v"},
	}
	failed, err := proto.Marshal(&agentv1.TaskOutcome{ErrorCode: "GONE", ErrorMessage: "a text that stays in the log"})
	if err != nil {
		t.Fatal(err)
	}
	below := obs.Below(asked, "op-1")
	early := &storev1.Task{
		Id: "op-1/1/migrate-send", OperationId: "op-1", Node: "n1", State: task.Recorded(task.Failed), Outcome: failed, Traceparent: below,
		CreatedAt: timestamppb.New(began), EndedAt: timestamppb.New(began.Add(5 * time.Second)),
	}
	late := proto.CloneOf(early)
	late.Id, late.State, late.Outcome, late.EndedAt = "op-1/2/migrate-send", task.Recorded(task.Running), nil, nil
	quiet := proto.CloneOf(op)
	quiet.Id, quiet.Traceparent, quiet.State, quiet.EndedAt = "op-2", obs.Unrecorded(obs.TraceOf(asked), "op-2"), task.OpSucceeded, timestamppb.Now()
	view.put(op, early, late)
	view.put(quiet)

	// The first leader has told of the task that has ended, and dies.
	lead(t, view, tracing(t, "r1", endpoint), 1)()
	resign := lead(t, view, tracing(t, "r2", endpoint), 2)
	op.Step = "copying memory, 90 %"
	view.put(op)
	op.State, op.Step, op.EndedAt = task.OpSucceeded, "", timestamppb.Now()
	late.State, late.EndedAt = task.Recorded(task.Succeeded), timestamppb.Now()
	view.put(op, late)
	resign()
	// A third one finds all of it told, and cannot know.
	lead(t, view, tracing(t, "r3", endpoint), 3)()

	tree, err := c.Tree(obs.TraceOf(asked))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range tree {
		names = append(names, s.GetName())
		switch s.GetName() {
		case "operation migrate":
			if s.Parent() != "00f067aa0ba902b7" || s.GetStatus().GetMessage() != "" || s.Attribute("debvisor.trace_id") != "the caller's" {
				t.Errorf("%v", s.Span)
			}
			if s.GetStartTimeUnixNano() != uint64(op.GetCreatedAt().AsTime().UnixNano()) || s.GetEndTimeUnixNano() != uint64(op.GetEndedAt().AsTime().UnixNano()) {
				t.Errorf("the operation's times are not its record's: %v", s.Span)
			}
		case "task migrate-send":
			if want := map[string]string{early.GetId(): "GONE", late.GetId(): ""}[s.Attribute("debvisor.task_id")]; s.GetStatus().GetMessage() != want {
				t.Errorf("%v", s.Span)
			}
			fallthrough
		default:
			if above := tree.Above(s); !slices.Equal(above, []string{"operation migrate"}) {
				t.Errorf("above %v is %q", s, above)
			}
		}
	}
	slices.Sort(names)
	// Each leader that saw the step has its own span of it.
	want := []string{"operation migrate", "step: copying memory", "step: copying memory", "task migrate-send", "task migrate-send"}
	if !slices.Equal(names, want) {
		t.Errorf("spans %q, want %q\n%s", names, want, tree)
	}
}

// TestOldEndsAreNotToldAgain leaves out what ended long before the election.
func TestOldEndsAreNotToldAgain(t *testing.T) {
	c, endpoint := collector(t)
	view := newRecords()
	view.put(&storev1.Operation{
		Id: "op-1", Kind: "migrate", State: task.OpFailed, ErrorCode: "X", Traceparent: asked,
		CreatedAt: timestamppb.New(time.Now().Add(-time.Hour)), EndedAt: timestamppb.New(time.Now().Add(-2 * again)),
	})
	lead(t, view, tracing(t, "r1", endpoint), 1)()
	if tree, err := c.Tree(obs.TraceOf(asked)); err != nil || len(tree) != 0 {
		t.Errorf("%v\n%s", err, tree)
	}
}
