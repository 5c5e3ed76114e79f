package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// agentEnv makes this test's binary an agent: a worker with a journal and the real
// kinds, in a process of its own that can be killed at any line.
const agentEnv = "DEBVISOR_TEST_IMAGE_AGENT"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "ceph" {
		if err := rbd.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if text := os.Getenv(agentEnv); text != "" {
		if err := runAgent(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// agentConfig is what an agent's process is told.
type agentConfig struct {
	Dir, Conf, User string
	// Task is the encoded task that it runs; then it ends.
	Task string
	// DieAt is the point at which it is killed, CancelAt at which its task is cancelled.
	DieAt, CancelAt string
	// Thaws is how a freeze ends: "", "expired" or "none" (no guest agent).
	Thaws    string
	Patience time.Duration
}

// said is a line of an agent's process: its task's progress, or its outcome.
type said struct {
	Phase   string          `json:"phase,omitempty"`
	Done    uint64          `json:"done,omitempty"`
	Outcome json.RawMessage `json:"outcome,omitempty"`
}

// runAgent is an agent's process, from its start to its task's end.
func runAgent(text string) error {
	var cfg agentConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	task, err := decodeTask(cfg.Task)
	if err != nil {
		return err
	}
	log := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug})
	client := rbd.New(rbd.Config{Conf: cfg.Conf, User: cfg.User, Command: []string{os.Args[0], "ceph"}, Log: log.Named("rbd")})
	defer func() { _ = client.Close() }()
	i := New(Config{Ceph: client, Freezer: guest{cfg.Thaws}, Log: log})
	if cfg.Patience > 0 {
		i.patience = cfg.Patience
	}
	var w *worker.Worker
	var cancelled atomic.Bool
	i.passing = func(point string) {
		switch point {
		case cfg.DieAt:
			fmt.Fprintln(os.Stderr, "dies at", point)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case cfg.CancelAt:
			if !cancelled.Swap(true) {
				w.Cancel(task.GetId())
			}
		}
	}
	if w, err = worker.Open(worker.Config{Path: filepath.Join(cfg.Dir, "journal.db"), Kinds: i.Kinds(), Log: log.Named("worker")}); err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if err := w.Accept(task); err != nil {
		return err
	}
	if cfg.CancelAt == "start" {
		w.Cancel(task.GetId())
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	tellReports(w, task.GetId())
	cancel()
	return <-done
}

func decodeTask(text string) (*agentv1.Task, error) {
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	task := &agentv1.Task{}
	return task, proto.Unmarshal(data, task)
}

// tellReports prints what is reported of a task, until it has ended.
func tellReports(w *worker.Worker, id string) {
	for {
		reports, next := w.Due()
		for _, r := range reports {
			if r.GetTaskId() != id {
				continue
			}
			p := r.GetProgress().GetRbd()
			line := said{Phase: p.GetPhase(), Done: p.GetDone()}
			if r.GetOutcome() != nil {
				line.Outcome, _ = protojson.Marshal(r.GetOutcome())
			}
			text, _ := json.Marshal(line)
			fmt.Println(string(text))
			if r.GetOutcome() != nil {
				_ = w.Acknowledge(id)
				return
			}
		}
		wait := time.Second
		if !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-w.Wake():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// guest stands for a guest that can be frozen, or not (freeze.Freezer).
type guest struct{ thaws string }

func (g guest) Frozen(ctx context.Context, f *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	switch {
	case f == nil:
		return nil, errors.New("no freeze is wanted")
	case g.thaws == "none" && f.GetRequired():
		return &agentv1.FreezeOutcome{Reason: "no agent"}, errdefs.New(errdefs.FailedPrecondition, "NO_GUEST_AGENT", "no agent")
	case g.thaws == "none":
		return &agentv1.FreezeOutcome{Reason: "no agent"}, take(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(f.GetBudgetMs())*time.Millisecond)
	defer cancel()
	err := take(ctx)
	if g.thaws == "expired" {
		out := &agentv1.FreezeOutcome{Filesystems: 1, Reason: "too slow"}
		if err == nil && f.GetRequired() {
			err = errdefs.New(errdefs.FailedPrecondition, "FREEZE_EXPIRED", "too slow")
		}
		return out, err
	}
	return &agentv1.FreezeOutcome{Frozen: true, Filesystems: 1, FrozenMs: 7}, err
}
