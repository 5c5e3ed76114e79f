package schedule

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// mostKeys is about how many records one transaction writes; the rest of a
	// run is for the next.
	mostKeys = 400
	// mostDatasets is how many datasets one operation is about.
	mostDatasets = 256
	// mostNamed is how many operations a policy's record names as its last, and
	// mostToldOf how many of those that it could not begin.
	mostNamed, mostToldOf = 100, 3
)

// step is one transaction of one policy.
type step struct {
	log    string
	change store.Change

	// What the change writes, for those who look at a step.
	run *storev1.StoragePolicyRun
	ops []*storev1.Operation
}

// view is what a decision needs besides the policy.
type view struct {
	snapshot *cluster.Snapshot
	now      time.Time
	// owner tells whose something of a backend (pool, name) is.
	owner       func(backend, pool, name string) string
	inventories *inventories
	// tracing is nil where nothing is traced.
	tracing *obs.Tracing
}

// decision is one policy with all that is decided on.
type decision struct {
	*view
	*policy
	next *storev1.StoragePolicyRun // what the step will write
	due  time.Time
	ops  []*storev1.Operation
	// taken are the resources that this step takes, with by which operation.
	taken map[string]string
	skips []string
}

// far is when a policy that has no next time is looked at again by the clock.
const far = 1 << 62

// decide gives the next step of a policy; nil: there is none before the time
// that is given too, unless a record changes. It is pure.
func decide(v *view, p *policy) (*step, time.Time) {
	d := &decision{view: v, policy: p, next: proto.CloneOf(p.run), taken: map[string]string{}}
	if d.next == nil {
		d.next = &storev1.StoragePolicyRun{}
	}
	never := v.now.Add(far)
	if err := p.read(); err != nil {
		return d.tell("it cannot be carried out: " + err.Error()), never
	}
	if p.paused || p.schedule == "" {
		return nil, never
	}
	times, err := Parse(p.schedule, p.zone)
	if err != nil {
		return d.tell("it cannot be carried out: " + err.Error()), never
	}
	if d.follow(); len(d.ops)+len(d.skips) > 0 {
		return d.commit("pruning what " + p.title + " has taken new snapshots of"), v.now
	}
	return d.tick(times)
}

// tick begins what is due.
func (d *decision) tick(times Schedule) (*step, time.Time) {
	last, coming := d.lastDue(), times.Next(d.now)
	if !coming.IsZero() && last.After(coming) {
		// It was due in a future that some leader's clock showed.
		d.next.LastDue = timestamppb.New(d.now)
		return d.tell(fmt.Sprintf("it was last due at %s, which is yet to come: a clock is or was wrong; it goes on from now", last.Format(time.RFC3339))), coming
	}
	if d.begun() {
		d.due = last
	} else {
		var missed int
		var ok bool
		if d.due, missed, ok = Due(later(last, d.changedAt), d.now, times); !ok {
			return nil, coming
		}
		d.next.LastDue, d.next.LastOperations, d.next.Reached = timestamppb.New(d.due), nil, ""
		if d.next.Skipped += uint64(missed); missed > 0 {
			d.next.LastSkip = fmt.Sprintf("before %s it was due %d times while nobody led", d.due.Format(time.RFC3339), missed)
		}
	}
	if d.retention != nil {
		d.retain()
	} else {
		d.replicate()
	}
	if !d.begun() && len(d.ops) > 0 {
		d.next.Fired++
	}
	return d.commit(fmt.Sprintf("%s was due at %s: %d operations", d.title, d.due.Format(time.RFC3339), len(d.ops))), d.now
}

// dealWith goes through the subjects that the run has not reached, until there
// is enough for one transaction.
func (d *decision) dealWith(subjects []subject, begin func(s *subject)) {
	from := ""
	if d.begun() {
		from = d.run.GetReached()
	}
	d.next.Reached = ""
	for i := range subjects {
		s := &subjects[i]
		if s.key() <= from {
			continue
		}
		if len(d.taken)+len(d.ops) >= mostKeys {
			return
		}
		if d.next.Reached = s.key(); s.why != "" {
			d.skip("%v: %s", s, s.why)
			continue
		}
		begin(s)
	}
	d.next.Reached = ""
}

// free tells whether no operation has any of the resources; one that has is why
// the subject is left out.
func (d *decision) free(s fmt.Stringer, resources ...string) bool {
	for _, r := range resources {
		if holder := cmp.Or(d.snapshot.InUse[r].Value, d.taken[r]); holder != "" {
			d.skip("%v is in use by operation %s", s, holder)
			return false
		}
	}
	return true
}

// begin makes an operation, which the step writes together with the run. One of
// its id was begun for the same time already, before a clock was set back.
func (d *decision) begin(op *storev1.Operation) {
	if _, ok := d.snapshot.Operations[op.GetId()]; ok {
		d.skip("operation %s was begun at that time already", op.GetId())
		return
	}
	op.State, op.CreatedAt = task.OpPending, timestamppb.New(d.now)
	op.Principal = d.changedBy
	op.TraceId, op.Traceparent = d.tracing.Root(op.GetId())
	d.ops = append(d.ops, op)
	for _, r := range op.GetResources() {
		d.taken[r] = op.GetId()
	}
}

// skip notes what is not done.
func (d *decision) skip(format string, args ...any) {
	d.skips = append(d.skips, fmt.Sprintf(format, args...))
}

// commit makes the transaction that writes the operations and the run, on the
// ground that nobody changed the policy meanwhile.
func (d *decision) commit(log string) *step {
	if len(d.ops) > 0 {
		d.next.LastFired = timestamppb.New(d.now)
	}
	for _, op := range d.ops {
		if len(d.next.GetLastOperations()) < mostNamed {
			d.next.LastOperations = append(d.next.LastOperations, op.GetId())
		}
	}
	if n := len(d.skips); n > 0 {
		d.next.Skipped++
		told := d.skips[:min(n, mostToldOf)]
		if n > mostToldOf {
			told = append(slices.Clone(told), fmt.Sprintf("and %d more", n-mostToldOf))
		}
		d.next.LastSkip = d.now.UTC().Format(time.RFC3339) + ": " + strings.Join(told, "; ")
		log += "; left out: " + strings.Join(told, "; ")
	}
	s := &step{log: log, run: d.next, ops: d.ops, change: store.Change{
		Require: []store.Condition{store.Unchanged(d.key, d.modRevision)},
		Puts:    []store.Put{d.put(d.next)},
	}}
	for _, op := range d.ops {
		s.change.Require = append(s.change.Require, store.Absent(store.OperationKey(op.GetId())))
		s.change.Puts = append(s.change.Puts, store.PutProto(store.OperationKey(op.GetId()), op))
		for _, r := range op.GetResources() {
			s.change.Require = append(s.change.Require, store.Absent(store.InUseKey(r)))
			s.change.Puts = append(s.change.Puts, store.PutString(store.InUseKey(r), op.GetId()))
		}
	}
	return s
}

// tell writes why nothing is done, unless it is written already.
func (d *decision) tell(text string) *step {
	if d.run.GetLastSkip() == text {
		return nil
	}
	d.next.LastSkip = text
	return d.commit(d.title + ": " + text)
}

// idAlphabet is that of all operations' ids.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// id is made of what an operation is for: the same whoever makes it.
func id(of ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(of, "\x00")))
	return "op-" + base32.NewEncoding(idAlphabet).EncodeToString(sum[:])[:26]
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
