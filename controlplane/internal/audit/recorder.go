package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
)

const (
	// recordEvery is the least time between two heads.
	recordEvery = time.Second
	// foreignPause is how long a head that is not ours stands.
	foreignPause = time.Minute
)

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Ready() <-chan struct{}
	Await(ctx context.Context, revision int64) error
}

// Committer writes to etcd (store.Store).
type Committer interface {
	Commit(ctx context.Context, c store.Change) (revision int64, err error)
}

// Recorder tells etcd the end of the log, as far as it is on disk, so that a log
// whose end was cut off can be told. What etcd has is replaced only where this
// Recorder wrote it, or its line is in the log; otherwise lines are missing, or
// a copy of this replica writes as it does, and the log says so first.
type Recorder struct {
	Log     *Log
	Replica string
	View    View
	Store   Committer
	Logger  hclog.Logger

	// last is what etcd has, as of revision.
	last     auditlog.Head
	revision int64
	// told is the revision of what the log was last made to say that it lacks.
	told int64
	// dumb says that etcd did not take the last head.
	dumb bool
}

// Run records heads until ctx ends, and then the last one: the Log is to be
// stopped before.
func (r *Recorder) Run(ctx context.Context) error {
	select {
	case <-r.View.Ready():
	case <-ctx.Done():
		return nil
	}
	r.adopt(ctx)
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if r.record(ctx) {
				pause(ctx, foreignPause)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordEvery)
			defer cancel()
			r.record(last)
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// record writes the head if it is another. It tells whether somebody else wrote
// what etcd has.
func (r *Recorder) record(ctx context.Context) (foreign bool) {
	head := r.Log.Head()
	if head == r.last || head.Sequence == 0 {
		return false
	}
	key := store.AuditHeadKey(r.Replica)
	revision, err := r.Store.Commit(ctx, store.Change{
		Require: []store.Condition{store.Unchanged(key, r.revision)},
		Puts: []store.Put{store.PutProto(key, &storev1.AuditHead{
			Sequence: head.Sequence, Hash: bytes.Clone(head.Hash[:]), At: timestamppb.Now(),
		})},
	})
	var conflict *store.ConflictError
	switch {
	case err == nil:
		r.last, r.revision, r.dumb = head, revision, false
		return false
	case errors.As(err, &conflict):
		return r.meet(ctx)
	case ctx.Err() == nil && !r.dumb:
		r.dumb = true
		r.Logger.Warn("etcd is told the end of the audit log later", "error", err)
	}
	return false
}

// meet looks at a head that was written meanwhile: by this Recorder, in a write
// that was not answered, or by another.
func (r *Recorder) meet(ctx context.Context) (foreign bool) {
	waiting, cancel := context.WithTimeout(ctx, recordEvery)
	defer cancel()
	_ = r.View.Await(waiting, r.View.Current().Revision+1) // the next turn looks again
	return r.adopt(ctx)
}

// adopt takes over what etcd has. If the log does not have that line, it is made
// to say so.
func (r *Recorder) adopt(ctx context.Context) (foreign bool) {
	entry, ok := r.View.Current().AuditHeads[r.Replica]
	if !ok {
		r.last, r.revision = auditlog.Head{}, 0
		return false
	}
	if entry.ModRevision == r.revision {
		return false
	}
	known := HeadOf(entry.Value)
	has, err := r.Log.Has(ctx, known)
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil && has:
		r.last, r.revision = known, entry.ModRevision
		return false
	}
	if !r.tell(ctx, known, entry, err) {
		return false // it stands until the log says so
	}
	r.last, r.revision = known, entry.ModRevision
	return true
}

// tell makes the log say, once, that it lacks what etcd knows, or that nobody
// can tell. It tells whether that is on disk.
func (r *Recorder) tell(ctx context.Context, known auditlog.Head, entry cluster.Entry[*storev1.AuditHead], err error) bool {
	if r.told != entry.ModRevision {
		what := "which it does not have: its end was lost or cut off, or another process writes as replica " + r.Replica
		if err != nil {
			what = fmt.Sprintf("and whether it has that cannot be told: %v", err)
		}
		reason := fmt.Sprintf("etcd knows of line %d of this log (%s, of %s), %s", known.Sequence, known.Hash, stamp(entry.Value.GetAt().AsTime()), what)
		r.Logger.Error("the audit log is not whole", "reason", reason)
		if !r.Log.Add(&Event{Time: time.Now(), Kind: LogLost, Principal: itself, Reason: reason}) {
			return false
		}
		r.told = entry.ModRevision
	}
	return r.Log.Sync(ctx) == nil
}

// HeadOf gives a head as etcd has it.
func HeadOf(record *storev1.AuditHead) auditlog.Head {
	head := auditlog.Head{Sequence: record.GetSequence()}
	copy(head.Hash[:], record.GetHash())
	return head
}
