package storage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// hosts are nodes with agents, as the records and questions show them: what ZFS
// they have is a model, that refuses what ZFS would.
type hosts struct {
	b *bench

	mu       sync.Mutex
	r        *rand.Rand
	datasets map[string]*dataset // by node and name
	last     uint64              // guid, and transaction
	sent     map[string]bool     // rights whose streams are over
	over     map[string]*agentv1.TaskOutcome
	made     map[string]int // snapshots taken, by operation and dataset
	images   images
	// worse is how often, in a hundred, a task is interrupted.
	worse  int
	faults []string
	asked  int // questions under way
	refuse int // that many to come are refused, of the source's
	stuck  bool
}

// dataset is one of them.
type dataset struct {
	name, job string
	guid      uint64
	snapshots []*agentv1.ZfsSnapshot
	bookmarks []*agentv1.ZfsBookmark
}

func newHosts(b *bench) *hosts {
	return &hosts{b: b, r: rand.New(rand.NewPCG(7, 7)), datasets: map[string]*dataset{}, sent: map[string]bool{}, over: map[string]*agentv1.TaskOutcome{}, made: map[string]int{}}
}

func (h *hosts) next() uint64 { h.last++; return h.last }

func (h *hosts) make(node, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.datasets[node+":"+name] = &dataset{name: name, guid: h.next()}
}

func (h *hosts) fault(format string, args ...any) {
	h.faults = append(h.faults, fmt.Sprintf(format, args...))
}

// ask answers questions as agents do.
func (h *hosts) ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	h.mu.Lock()
	h.asked++
	stuck := h.stuck
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.asked--
		h.mu.Unlock()
	}()
	if stuck {
		<-ctx.Done()
		return errdefs.New(errdefs.Unavailable, "NO_ANSWER", "node %s has not answered", node)
	}
	h.mu.Lock()
	if h.r.IntN(100) < h.worse {
		h.mu.Unlock()
		return errdefs.New(errdefs.Unavailable, "SESSION_ENDED", "the session of node %s ended", node)
	}
	if node == "a" && h.refuse > 0 {
		h.refuse--
		h.mu.Unlock()
		return errdefs.New(errdefs.FailedPrecondition, "ZFS_ERROR", "node a cannot answer")
	}
	answer := &agentv1.Answer{}
	if list := q.GetListZfs(); list != nil {
		answer.Answer = &agentv1.Answer_ZfsListing{ZfsListing: h.list(node, list)}
	} else if list := q.GetListRbd(); list != nil {
		answer.Answer = &agentv1.Answer_RbdListing{RbdListing: h.listImages(list)}
	} else {
		answer.Answer = &agentv1.Answer_ZfsSendEstimate{ZfsSendEstimate: &agentv1.ZfsSendEstimate{Bytes: 10}}
	}
	h.mu.Unlock()
	return part(answer)
}

func (h *hosts) list(node string, q *agentv1.ListZfs) *agentv1.ZfsListing {
	out := &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{{Name: "backup", AvailableBytes: 1 << 40}}}
	for _, name := range q.GetDatasets() {
		d := h.datasets[node+":"+name]
		if d == nil {
			continue
		}
		out.Datasets = append(out.Datasets, &agentv1.ZfsDataset{Name: name, Guid: d.guid, ReplicationJob: d.job, AvailableBytes: 1 << 40})
		for _, s := range d.snapshots {
			out.Snapshots = append(out.Snapshots, proto.CloneOf(s))
		}
		for _, b := range d.bookmarks {
			out.Bookmarks = append(out.Bookmarks, proto.CloneOf(b))
		}
	}
	return out
}

// work carries out the nodes' tasks until ctx ends.
func (h *hosts) work(ctx context.Context) {
	for {
		changed := h.b.view.Changed()
		s := h.b.view.Current()
		for _, node := range []string{"a", "b"} {
			for _, t := range s.OpenTasksOn(node) {
				h.act(ctx, s, t)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// act takes a task one state further.
func (h *hosts) act(ctx context.Context, s *cluster.Snapshot, entry cluster.Entry[*storev1.Task]) {
	t := proto.CloneOf(entry.Value)
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(t.GetSpec(), &spec); err != nil {
		h.b.t.Error(err)
		return
	}
	h.mu.Lock()
	var out *agentv1.TaskOutcome
	state := task.State(t.GetState())
	switch done, ok := h.over[t.GetId()]; {
	case ok: // it has ended, and the record does not tell yet
		out = done
	case t.GetCancelRequested():
		out = &agentv1.TaskOutcome{ErrorCode: "CANCELLED"}
	case h.r.IntN(100) < h.worse:
		out = &agentv1.TaskOutcome{ErrorCode: "INTERRUPTED", ErrorMessage: "the agent died", Interrupted: true}
	case state == task.Assigned:
		state = task.Running
		if spec.GetReplicateReceive() != nil {
			t.Progress = encoded(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_ReplicateReceive{ReplicateReceive: &agentv1.ReplicateReceiveProgress{Address: "b:7500"}}})
		}
	default:
		out = h.do(s, t.GetNode(), &spec)
	}
	if out != nil {
		h.over[t.GetId()] = out
	}
	h.mu.Unlock()
	if out != nil {
		state = task.Failed
		switch out.GetErrorCode() {
		case "":
			state = task.Succeeded
		case "CANCELLED":
			state = task.Cancelled
		}
		t.Outcome, t.EndedAt = encoded(out), timestamppb.Now()
	}
	if state == task.State(t.GetState()) {
		return
	}
	t.State = task.Recorded(state)
	key := store.TaskKey(t.GetId())
	_, err := h.b.store.Commit(ctx, store.Change{Require: []store.Condition{store.Unchanged(key, entry.ModRevision)}, Puts: []store.Put{store.PutProto(key, t)}})
	var conflict *store.ConflictError
	if err != nil && !errors.As(err, &conflict) && ctx.Err() == nil {
		h.b.t.Error(err)
	}
}

// do does a task; nil: it is not over.
func (h *hosts) do(s *cluster.Snapshot, node string, spec *agentv1.TaskSpec) *agentv1.TaskOutcome {
	if out := h.doImage(spec); out != nil {
		return out
	}
	switch k := spec.GetKind().(type) {
	case *agentv1.TaskSpec_ZfsSnapshotCreate:
		return h.snapshot(node, k.ZfsSnapshotCreate)
	case *agentv1.TaskSpec_ZfsSnapshotDestroy:
		return h.destroy(node, k.ZfsSnapshotDestroy)
	case *agentv1.TaskSpec_ReplicateSend:
		return h.send(s, k.ReplicateSend)
	case *agentv1.TaskSpec_ReplicateReceive:
		if h.sent[k.ReplicateReceive.GetRight().GetId()] {
			return &agentv1.TaskOutcome{Zfs: &agentv1.ZfsOutcome{}}
		}
		return nil
	case *agentv1.TaskSpec_ReplicationRelease:
		d := h.datasets[node+":"+k.ReplicationRelease.GetDataset()]
		d.mark(k.ReplicationRelease.GetJobId(), 0, false)
		if k.ReplicationRelease.GetTarget() {
			d.job = ""
		}
		return &agentv1.TaskOutcome{}
	}
	return &agentv1.TaskOutcome{ErrorCode: "UNKNOWN_KIND"}
}

func (h *hosts) snapshot(node string, c *agentv1.ZfsSnapshotCreate) *agentv1.TaskOutcome {
	out := &agentv1.ZfsOutcome{}
	for _, name := range c.GetDatasets() {
		d := h.datasets[node+":"+name]
		at := slices.IndexFunc(d.snapshots, func(s *agentv1.ZfsSnapshot) bool { return s.GetName() == c.GetName() })
		if at < 0 {
			h.made[c.GetOperation()+" "+name]++
			at = len(d.snapshots)
			guid := h.next()
			d.snapshots = append(d.snapshots, &agentv1.ZfsSnapshot{
				Dataset: name, Name: c.GetName(), Guid: guid, CreateTxg: guid, Created: time.Now().Unix(), Operation: c.GetOperation(), Label: c.GetLabel(), Set: c.GetSet(),
			})
		}
		out.Made = append(out.Made, &agentv1.ZfsSnapshotID{Dataset: name, Name: c.GetName(), Guid: d.snapshots[at].GetGuid()})
	}
	return &agentv1.TaskOutcome{Zfs: out}
}

func (h *hosts) destroy(node string, c *agentv1.ZfsSnapshotDestroy) *agentv1.TaskOutcome {
	out := &agentv1.ZfsOutcome{}
	for _, id := range c.GetSnapshots() {
		d := h.datasets[node+":"+id.GetDataset()]
		at := slices.IndexFunc(d.snapshots, func(s *agentv1.ZfsSnapshot) bool { return s.GetGuid() == id.GetGuid() })
		if at >= 0 && len(d.snapshots[at].GetHolds()) > 0 {
			out.Kept = append(out.Kept, &agentv1.ZfsKept{Snapshot: id, Code: "SNAPSHOT_HELD"})
			continue
		}
		if at >= 0 {
			d.snapshots = slices.Delete(d.snapshots, at, at+1)
		}
		out.Destroyed++
	}
	return &agentv1.TaskOutcome{Zfs: out}
}

// send copies all steps and puts the marks right; it may break off between any two
// of them. The target must be at it.
func (h *hosts) send(s *cluster.Snapshot, c *agentv1.ReplicateSend) *agentv1.TaskOutcome {
	right := c.GetRight()
	receive := s.Tasks[right.GetReceiveTaskId()].Value
	if task.Ended(task.State(receive.GetState())) {
		return &agentv1.TaskOutcome{ErrorCode: "INTERRUPTED", ErrorMessage: "nobody listens", Interrupted: true}
	}
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(receive.GetSpec(), &spec); err != nil || spec.GetReplicateReceive().GetRight().GetId() != right.GetId() {
		h.fault("the target's task is of another right: %v", err)
	}
	source, at := h.datasets[right.GetSourceNode()+":"+right.GetSourceDataset()], right.GetTargetNode()+":"+right.GetTargetDataset()
	if aside := spec.GetReplicateReceive().GetAside(); aside.GetRenameTo() != "" && h.datasets[at] != nil && h.datasets[at].guid == aside.GetGuid() {
		h.datasets[right.GetTargetNode()+":"+aside.GetRenameTo()] = h.datasets[at]
		delete(h.datasets, at)
	}
	reached := c.GetCursor()
	for _, step := range c.GetSteps() {
		if h.r.IntN(100) < h.worse {
			return &agentv1.TaskOutcome{ErrorCode: "INTERRUPTED", ErrorMessage: "the agent died in a stream", Interrupted: true, Zfs: &agentv1.ZfsOutcome{Cursor: reached}}
		}
		if !h.step(source, at, right.GetJobId(), step) {
			return &agentv1.TaskOutcome{ErrorCode: "SOURCE_CHANGED", ErrorMessage: "a snapshot is gone"}
		}
		reached = &agentv1.ZfsSnapshotID{Dataset: source.name, Name: step.GetTo(), Guid: step.GetToGuid()}
	}
	if h.r.IntN(100) < h.worse {
		return &agentv1.TaskOutcome{ErrorCode: "INTERRUPTED", ErrorMessage: "the agent died before the marks", Interrupted: true}
	}
	source.mark(right.GetJobId(), reached.GetGuid(), true)
	h.datasets[at].mark(right.GetJobId(), reached.GetGuid(), false)
	h.sent[right.GetId()] = true
	return &agentv1.TaskOutcome{Zfs: &agentv1.ZfsOutcome{Cursor: reached, Bytes: 10}}
}

// step receives one stream, as ZFS would; false: the source has it no more.
func (h *hosts) step(source *dataset, at, job string, step *agentv1.ReplicationStep) bool {
	i := slices.IndexFunc(source.snapshots, func(s *agentv1.ZfsSnapshot) bool { return s.GetGuid() == step.GetToGuid() })
	if i < 0 {
		return false
	}
	target := h.datasets[at]
	_, name, _ := strings.Cut(at, ":")
	switch {
	case step.GetFromGuid() == 0 && target == nil:
		target = &dataset{name: name, guid: h.next(), job: job}
		h.datasets[at] = target
	case step.GetFromGuid() == 0, target == nil, len(target.snapshots) == 0, target.snapshots[len(target.snapshots)-1].GetGuid() != step.GetFromGuid():
		h.fault("ZFS refuses %v on %s", step, at)
		return false
	}
	copied := proto.CloneOf(source.snapshots[i])
	copied.Dataset, copied.CreateTxg, copied.Operation, copied.Holds = name, h.next(), "", nil
	target.snapshots = append(target.snapshots, copied)
	return true
}

// mark leaves a job's marks at a snapshot, and nowhere else.
func (d *dataset) mark(job string, guid uint64, bookmark bool) {
	if d == nil {
		return
	}
	tag, prefix := repldiff.HoldTag(job), "debvisor-"+job+"-"
	d.bookmarks = slices.DeleteFunc(d.bookmarks, func(b *agentv1.ZfsBookmark) bool { return strings.HasPrefix(b.GetName(), prefix) })
	for _, s := range d.snapshots {
		s.Holds = slices.DeleteFunc(s.Holds, func(have string) bool { return have == tag })
		if s.GetGuid() != guid {
			continue
		}
		s.Holds = append(s.Holds, tag)
		if bookmark {
			d.bookmarks = append(d.bookmarks, &agentv1.ZfsBookmark{Dataset: d.name, Name: fmt.Sprintf("%s%x", prefix, guid), Guid: guid, CreateTxg: s.GetCreateTxg()})
		}
	}
}
