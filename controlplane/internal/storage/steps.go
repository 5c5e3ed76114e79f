package storage

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// commit makes the transaction that writes the operation as it now stands in d,
// on the ground that nobody changed it meanwhile.
func (d *decision) commit(name stepName, log string) *step {
	key := store.OperationKey(d.op.GetId())
	return &step{
		name: name, about: d.op.GetId(), log: log, op: d.op,
		change: store.Change{
			Require: []store.Condition{store.Unchanged(key, d.entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, d.op)},
		},
	}
}

// note writes the operation's step where it says something new.
func (d *decision) note(text string) *step {
	if d.op.GetStep() == text {
		return nil
	}
	d.op.Step = text
	return d.commit(stepNote, text)
}

// begin notes that the operation has begun.
func (d *decision) begin() {
	if d.op.GetState() == task.OpPending {
		d.op.State, d.op.StartedAt = task.OpRunning, timestamppb.New(d.now)
	}
}

// order writes a task for a node's agent, on the ground that there is none of that
// attempt yet.
func (d *decision) order(name stepName, attempt, kind, node, resource string, spec *agentv1.TaskSpec, doing string) *step {
	t := &storev1.Task{
		Id: d.op.GetId() + "/" + attempt + "/" + kind, OperationId: d.op.GetId(), Node: node, Resource: resource,
		State: task.Recorded(task.Assigned), Term: d.term.Record(), Spec: encoded(spec), CreatedAt: timestamppb.New(d.now),
		Traceparent: obs.Below(d.op.GetTraceparent(), d.op.GetId()),
	}
	d.begin()
	d.op.Step = doing
	s := d.commit(name, doing)
	s.task = t
	s.change.Require = append(s.change.Require, store.Absent(store.TaskKey(t.GetId())))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// cancelTask asks for a task's end. One that is begun may end otherwise.
func (d *decision) cancelTask(h *half, why string) *step {
	t := proto.CloneOf(h.task)
	t.CancelRequested = true
	d.op.Step = why + d.unheard(t.GetNode())
	s := d.commit(stepCancelTask, why+": "+t.GetId())
	s.task = t
	s.change.Require = append(s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), h.entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// finish ends the operation and frees what it held.
func (d *decision) finish(name stepName, state task.OpState, log string) *step {
	d.op.State, d.op.EndedAt, d.op.Step = state, timestamppb.New(d.now), ""
	if r := d.op.GetReplicate(); r != nil {
		r.Right = nil
	}
	s := d.commit(name, log)
	for _, resource := range d.op.GetResources() {
		s.change.Deletes = append(s.change.Deletes, store.InUseKey(resource))
	}
	return s
}

func (d *decision) succeed(log string) *step { return d.finish(stepSucceed, task.OpSucceeded, log) }

func (d *decision) fail(code, message string) *step {
	d.op.ErrorCode, d.op.ErrorMessage = code, message
	d.op.ErrorContext = d.about()
	return d.finish(stepFail, task.OpFailed, "failed: "+message)
}

func (d *decision) cancelled(message string) *step {
	d.op.ErrorCode, d.op.ErrorMessage = "CANCELLED", message
	return d.finish(stepCancelled, task.OpCancelled, message)
}

// about is the context of the operation's error.
func (d *decision) about() map[string]string {
	all := map[string]string{}
	put := func(key, value string) {
		if value != "" {
			all[key] = value
		}
	}
	if t := d.op.GetTakeSnapshots(); len(t.GetDatasets()) > 0 {
		put("node", t.GetNode())
		put("dataset", t.GetDatasets()[0])
		put("snapshot", t.GetName())
	}
	if t := d.op.GetTakeSnapshots(); len(t.GetImages()) > 0 {
		put("node", t.GetNode())
		put("snapshot", t.GetName())
		if images, err := imagesOf(t.GetImages()); err == nil {
			put("image", paths(images)[0])
		}
	}
	put("node", d.op.GetRemoveSnapshots().GetNode())
	d.aboutImage(put)
	if r := d.op.GetReplicate(); r != nil {
		put("job", r.GetJobId())
		put("source", r.GetSource())
		put("target", r.GetTarget())
		put("dataset", r.GetDataset())
		put("target_dataset", r.GetTargetDataset())
	}
	return all
}

// aboutImage tells of the image that is cloned, flattened or removed.
func (d *decision) aboutImage(put func(key, value string)) {
	image, template := &agentv1.RbdImageID{}, &agentv1.RbdSnapshotID{}
	c, x := d.op.GetCloneImage(), d.op.GetChangeImage()
	record := c.GetImage()
	if c == nil {
		record = x.GetImage()
	}
	if len(record) == 0 || proto.Unmarshal(record, image) != nil || proto.Unmarshal(c.GetTemplate(), template) != nil {
		return
	}
	put("node", cmp.Or(c.GetNode(), x.GetNode()))
	put("image", cluster.RBDPath(image))
	if c != nil {
		put("template", cluster.RBDSnapshotPath(template))
	}
}

// verdict is what a task's end means for its operation.
type verdict int

const (
	done verdict = iota
	// absent: a daemon died or a node was not there; worth another attempt, always.
	absent
	// passing: what ZFS or the other end refused may be gone the next time, or was
	// planned on what is no longer so.
	passing
	// fatal: no further attempt changes it.
	fatal
	// stopped: it was cancelled.
	stopped
)

// judge tells what a task's end means.
func judge(h *half) verdict {
	code := h.outcome.GetErrorCode()
	switch {
	case h.succeeded():
		return done
	case task.State(h.task.GetState()) == task.Cancelled || code == "CANCELLED":
		return stopped
	case code == codeNodeOff && strings.HasPrefix(h.kind, cephTasks):
		return absent // any other node does it as well, and finds what was done
	case code == codeNodeGone || code == codeNodeOff:
		return fatal
	}
	switch code {
	case "CEPH_DOWN", "CEPH_UNKNOWN":
		return absent
	case "POOL_SUSPENDED", "DATASET_BUSY", "STREAM_BROKEN", "INTERNAL":
		if h.outcome.GetInterrupted() {
			return passing
		}
	case "TARGET_CHANGED", "SOURCE_CHANGED", "RIGHT_EXPIRED", codeModified, "TOKEN_DEAD", "DATASET_CHANGED", "DATASET_NOT_FOUND", "SNAPSHOT_EXISTS":
		if h.kind == taskReceive || h.kind == taskSend {
			return passing // planned anew
		}
	}
	if h.outcome.GetInterrupted() {
		return absent
	}
	return fatal
}

// codeModified is ZFS's refusal to receive into what was written to.
const codeModified = "DESTINATION_MODIFIED"

const (
	// maxBroken is how many attempts in a row may come to nothing for the same sort
	// of reason.
	maxBroken = 6
)

// pace is how long operations pause.
type pace struct {
	// shortest and longest are the pauses between attempts that something refused
	// which may pass; absent that after one that broke off because somebody was not
	// there.
	shortest, longest, absent time.Duration
	// askAgain is the pause after a question that was not answered.
	askAgain time.Duration
	// look is how often operations are looked at though no record changed: what is
	// waited for then is only the clock.
	look time.Duration
}

// ordinary is the pace of all but tests.
func ordinary() pace {
	return pace{shortest: 2 * time.Second, longest: time.Minute, absent: 3 * time.Second, askAgain: 2 * time.Second, look: time.Second}
}

// backoff is the pause after so many attempts that came to nothing.
func (p pace) backoff(broken uint32) time.Duration {
	return min(p.shortest<<min(broken, 10), p.longest)
}

// after is the pause after the last of those tries.
func (p pace) after(tries []*half) time.Duration {
	if n := passed(tries); n > 0 {
		return p.backoff(uint32(n - 1))
	}
	return p.absent
}

// ends is when the last of those tasks ended.
func ends(tasks []*half) time.Time {
	var last time.Time
	for _, h := range tasks {
		if at := h.task.GetEndedAt(); at != nil && at.AsTime().After(last) {
			last = at.AsTime()
		}
	}
	return last
}

// why is what a task said of its end.
func (h *half) why() (code, message string) {
	code, message = h.outcome.GetErrorCode(), h.outcome.GetErrorMessage()
	if code == "" {
		code = "INTERNAL"
	}
	if message == "" {
		message = fmt.Sprintf("the agent of %s gave no reason", h.task.GetNode())
	}
	return code, message
}

// codeOf and plain are an error's code and message.
func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	return "INTERNAL"
}

func plain(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// encoded is deterministic; nil for what cannot be encoded: invalid UTF-8 only,
// which the wire does not let through.
func encoded(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}
