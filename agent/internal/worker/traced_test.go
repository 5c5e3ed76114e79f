package worker_test

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/obs/obstest"
	"github.com/debvisor/debvisor/shared/task"
)

// TestTaskIsTraced runs a task that is part of a trace: its span, those below it, and all lines about it.
func TestTaskIsTraced(t *testing.T) {
	const above = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	socket := filepath.Join(t.TempDir(), "otlp.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var c obstest.Collector
	t.Cleanup(c.Serve(listener))
	tracing, err := obs.OpenTracing(t.Context(), obs.TraceConfig{Service: "agent", Instance: "n1", Endpoint: "unix://" + socket, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &out})
	kind := script{name: "go", do: func(ctx context.Context, _ *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
		ctx, span := obs.Start(ctx, "inside")
		obs.Logger(ctx, log).Info("at it")
		span.End(nil)
		return &agentv1.TaskOutcome{ErrorCode: "BUSY", ErrorMessage: "what it says"}
	}}
	w, err := worker.Open(worker.Config{Path: filepath.Join(t.TempDir(), "journal.db"), Kinds: []worker.Kind{kind}, Tracing: tracing, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, w)
	one, other := newTask("op/1/go", "vm/v"), newTask("op/2/go", "vm/w")
	one.Traceparent, other.Traceparent = above, strings.TrimSuffix(above, "01")+"00"
	accept(t, w, one, other)
	for !ended(w, one.GetId()) || !ended(w, other.GetId()) {
		<-w.Wake()
	}
	stop()
	if err := tracing.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	tree, err := c.Tree(obs.TraceOf(above))
	if err != nil || len(tree) != 2 {
		t.Fatalf("%v: %d spans, want those of the task that is recorded\n%s", err, len(tree), tree)
	}
	do, err := tree.Named("do go", "agent of n1")
	if err != nil {
		t.Fatal(err)
	}
	if do.Parent() != "00f067aa0ba902b7" || do.GetStatus().GetMessage() != "BUSY" || do.Attribute("debvisor.task_id") != one.GetId() {
		t.Errorf("the task's span is %v", do.Span)
	}
	if inside, err := tree.Named("inside", "agent of n1"); err != nil || inside.Parent() != do.ID() {
		t.Errorf("what is done inside is not below it: %v, %v", inside, err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, line := range lines {
		if !strings.Contains(line, "trace_id="+obs.TraceOf(above)) || !strings.Contains(line, "operation_id=op ") || !strings.Contains(line, "task_id=op/") {
			t.Errorf("without its ids: %s", line)
		}
	}
	if len(lines) < 8 {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

func ended(w *worker.Worker, id string) bool {
	r := stateOf(w, id)
	return r != nil && task.Ended(r.GetState())
}
