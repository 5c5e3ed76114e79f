package image

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Freezer has a guest quiet while its snapshots are taken (freeze.Freezer). Where
// f is nil, or need not succeed and does not, take is called all the same. Errors
// are of a freeze that was required, or take's own.
type Freezer interface {
	Frozen(ctx context.Context, f *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error)
}

const (
	// patience is how long a task waits for a cluster that does not answer.
	patience = 2 * time.Minute
	// again is how long it waits before it asks once more.
	again = time.Second
)

// Config is what tasks on images are done with.
type Config struct {
	Ceph    *rbd.Client
	Freezer Freezer
	Log     hclog.Logger
}

// Images holds what the kinds share. It is safe for concurrent use.
type Images struct {
	cfg      Config
	patience time.Duration
	// passing is called at each point at which an agent may die; for tests.
	passing func(point string)
}

// New makes an Images.
func New(cfg Config) *Images {
	return &Images{cfg: cfg, patience: patience, passing: func(string) {}}
}

// Kinds are the kinds of tasks.
func (i *Images) Kinds() []worker.Kind {
	return []worker.Kind{
		snapshotKind{i}, removeKind{i}, cloneKind{i}, flattenKind{i}, imageRemoveKind{i}, fenceKind{i}, unfenceKind{i},
	}
}

// work is one task at work.
type work struct {
	*Images
	run worker.Run
	log hclog.Logger
	// unknown: a former step may have been done, and Ceph has not said so.
	unknown bool
	// moved is sent to when something was got further, though nothing has ended.
	moved chan struct{}
}

func (i *Images) work(t *agentv1.Task, run worker.Run) *work {
	return &work{
		Images: i, run: run, log: worker.IDs(t).Logger(i.cfg.Log), unknown: run.Resumed() || !isFirst(t.GetId()),
		moved: make(chan struct{}, 1),
	}
}

// isFirst tells of the first attempt's task: <operation>/<attempt>/<kind>.
func isFirst(id string) bool {
	parts := strings.Split(id, "/")
	return len(parts) >= 2 && parts[len(parts)-2] == "1"
}

// insist calls f, which can be repeated, until Ceph has said what came of it:
// what it has not said, it may have done. It gives up once the task is cancelled
// or nothing has moved for as long as is waited; the error is then f's last.
func (w *work) insist(ctx context.Context, doing string, f func(context.Context) error) error {
	since := time.Now()
	for waited := false; ; waited = true {
		err := f(ctx)
		if !passing(err) {
			w.unknown = false
			return err
		}
		w.unknown = w.unknown || codeOf(err) == rbd.CodeUnknown
		select {
		case <-w.moved:
			since = time.Now()
		default:
		}
		if ctx.Err() != nil || isCancelled(w.run) || time.Since(since) > w.patience {
			return err
		}
		if !waited {
			w.log.Warn("Ceph does not answer; trying on", "doing", doing, "error", err)
		}
		w.run.Progress(progress(0, 0, doing+": waiting for Ceph: "+messageOf(err)))
		if !w.pause(ctx) {
			return err
		}
	}
}

// pause waits a while; false: the task is to end.
func (w *work) pause(ctx context.Context) bool {
	timer := time.NewTimer(again)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-w.run.Cancelled():
	}
	return false
}

// unwanted tells of a task that was cancelled before anything was done. One that
// may have been done is gone on with: Ceph says soon enough.
func (w *work) unwanted() bool { return !w.unknown && isCancelled(w.run) }

// step notes that something was got further.
func (w *work) step(done, total uint64, phase string) {
	select {
	case w.moved <- struct{}{}:
	default:
	}
	w.run.Progress(progress(done, total, phase))
}

func progress(done, total uint64, phase string) *agentv1.TaskProgress {
	return &agentv1.TaskProgress{Kind: &agentv1.TaskProgress_Rbd{Rbd: &agentv1.RbdProgress{Done: done, Total: total, Phase: phase}}}
}
