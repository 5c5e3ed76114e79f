package operations

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// Submit writes an operation for a controller to advance and gives its id. The
// same request id gives the same operation. Errors: Aborted naming the
// operation that holds a resource; InvalidArgument for a request id used for
// something else; Unavailable where nobody leads or etcd gave no answer, within
// 5 s, with the operation's id, which tells later what became of it.
func (o *Operations) Submit(ctx context.Context, spec Spec) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	id = spec.id()
	if op, err := o.Repeated(spec); op != nil || err != nil {
		return id, err
	}
	if err := o.awaitLeader(ctx); err != nil {
		return "", err
	}
	digest, err := spec.digest()
	if err != nil {
		return "", err
	}
	if spec.Begin != nil {
		spec.Begin(id)
	}
	change := spec.pending(o.view.Current(), id, digest)
	if spec.Also != nil {
		also := spec.Also(id)
		change.Require = append(change.Require, also.Require...)
		change.Puts = append(change.Puts, also.Puts...)
		change.Deletes = append(change.Deletes, also.Deletes...)
	}
	for {
		written, err := o.commit(ctx, id, change)
		switch {
		case err == nil && written:
			return id, nil
		case err == nil:
			return id, o.check(ctx, id, spec)
		case !spec.holds(err):
			return "", err
		}
		if err := o.holder(ctx, &spec); err != nil {
			return "", err
		}
	}
}

// Pending gives what an operation for a controller is written by, as a part of
// another change that is made of the same snapshot: it holds its resources from
// then on. Its request is not repeated by a request id of its own. The error is
// Aborted, naming the operation that holds a resource.
func Pending(snapshot *cluster.Snapshot, spec Spec) (id string, change store.Change, err error) {
	for _, resource := range spec.Resources {
		if err := InUse(snapshot.Within(spec.Tenant), resource); err != nil {
			return "", store.Change{}, err
		}
	}
	spec.RequestID = ""
	digest, err := spec.digest()
	if err != nil {
		return "", store.Change{}, err
	}
	id = spec.id()
	if spec.Begin != nil {
		spec.Begin(id)
	}
	return id, spec.pending(snapshot, id, digest), nil
}

// pending is the change that writes an operation.
func (s *Spec) pending(snapshot *cluster.Snapshot, id string, digest []byte) store.Change {
	change := store.Change{
		Require: free(id, s.Resources),
		Puts:    []store.Put{store.PutProto(store.OperationKey(id), s.record(snapshot, id, digest, task.OpPending, time.Now()))},
	}
	for _, resource := range s.Resources {
		change.Puts = append(change.Puts, store.PutString(store.InUseKey(resource), id))
	}
	return change
}

// Apply makes a change that is one transaction, together with the record of an
// operation that has already succeeded. make is given the snapshot and says
// what to change under which conditions; it is asked anew when they did not
// hold. Errors are make's own and Submit's, but it needs no leader.
func (o *Operations) Apply(ctx context.Context, spec Spec, make func(*cluster.Snapshot) (store.Change, error)) (*storev1.Operation, error) {
	ctx, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	id := spec.id()
	digest, err := spec.digest()
	if err != nil {
		return nil, err
	}
	for {
		changed := o.view.Changed()
		snapshot := o.view.Current()
		// In the very snapshot that make is given: what an earlier request with
		// this id has done must not make this one fail.
		if earlier, ok := snapshot.Operations[id]; ok {
			return earlier.Value, same(earlier.Value, spec)
		}
		for _, resource := range spec.Resources {
			if err := InUse(snapshot.Within(spec.Tenant), resource); err != nil {
				return nil, err
			}
		}
		change, err := make(snapshot)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		op := spec.record(snapshot, id, digest, task.OpSucceeded, now)
		op.StartedAt, op.EndedAt = op.GetCreatedAt(), op.GetCreatedAt()
		change.Require = append(free(id, spec.Resources), change.Require...)
		change.Puts = append(change.Puts, store.PutProto(store.OperationKey(id), op))
		written, err := o.commit(ctx, id, change)
		switch {
		case err == nil && written:
			return op, nil
		case err == nil:
			if err := o.check(ctx, id, spec); err != nil {
				return nil, err
			}
			return o.Get(id)
		case !isConflict(err):
			return nil, err
		}
		if err := settle(ctx, changed); err != nil {
			return nil, unknown(id, err)
		}
	}
}

// free are the conditions under which an operation may be written; its own
// absence comes first, so that a conflict names it before what it holds.
func free(id string, resources []string) []store.Condition {
	conditions := []store.Condition{store.Absent(store.OperationKey(id))}
	for _, resource := range resources {
		conditions = append(conditions, store.Absent(store.InUseKey(resource)))
	}
	return conditions
}

// commit writes the change that makes an operation and waits until this
// replica sees it. While the outcome is unknown it tries the very same change
// again. written is false, without an error, when the operation is there
// already: by this call, or by another with the same request id. Conflicts on
// other keys are returned as they are.
func (o *Operations) commit(ctx context.Context, id string, change store.Change) (written bool, err error) {
	for attempt := 0; ; attempt++ {
		revision, late, err := o.attempt(ctx, change)
		var conflict *store.ConflictError
		switch {
		case err == nil:
			// The change is made, whatever becomes of the view.
			_ = o.view.Await(ctx, revision)
			return true, nil
		case errors.As(err, &conflict) && conflict.Key == store.OperationKey(id):
			return false, nil
		case errors.As(err, &conflict):
			return false, err
		case ctx.Err() != nil:
			return false, unknown(id, err)
		case !late && !errdefs.Is(err, errdefs.Unavailable):
			return false, err
		}
		pause := time.NewTimer(min(50*time.Millisecond<<min(attempt, 4), settleWait*4))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return false, unknown(id, err)
		}
	}
}

// attempt tries the change once; late tells that etcd has not answered in time,
// while there is some left.
func (o *Operations) attempt(ctx context.Context, change store.Change) (revision int64, late bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, attemptWait)
	defer cancel()
	revision, err = o.store.Commit(bounded, change)
	return revision, bounded.Err() != nil, err
}

// check waits until this replica sees an operation that is known to be there,
// and refuses it when another request made it.
func (o *Operations) check(ctx context.Context, id string, spec Spec) error {
	for {
		changed := o.view.Changed()
		if op, err := o.Get(id); err == nil {
			return same(op, spec)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return unknown(id, ctx.Err())
		}
	}
}

// holder tells who holds one of the resources, Aborted. It is nil when this
// replica does not see that yet, or no longer: then it is worth another try.
func (o *Operations) holder(ctx context.Context, spec *Spec) error {
	changed := o.view.Changed()
	for range 2 {
		scope := o.view.Current().Within(spec.Tenant)
		for _, resource := range spec.Resources {
			if err := InUse(scope, resource); err != nil {
				return err
			}
		}
		if err := settle(ctx, changed); err != nil {
			return unknown("", err)
		}
	}
	return nil
}

// settle waits for the snapshot's next change, for a moment.
func settle(ctx context.Context, changed <-chan struct{}) error {
	timer := time.NewTimer(settleWait)
	defer timer.Stop()
	select {
	case <-changed:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitLeader waits until somebody leads, up to leaderWait.
func (o *Operations) awaitLeader(ctx context.Context) error {
	timer := time.NewTimer(leaderWait)
	defer timer.Stop()
	for {
		changed := o.view.Changed()
		if o.view.Current().Leader != nil {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return errdefs.New(errdefs.Unavailable, "NO_LEADER",
				"no replica leads at the moment; nothing was begun, try again").WithRetry(2 * time.Second)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// holds tells whether a conflict is about a resource of the operation.
func (s *Spec) holds(conflict error) bool {
	var c *store.ConflictError
	return errors.As(conflict, &c) && slices.ContainsFunc(s.Resources, func(r string) bool { return store.InUseKey(r) == c.Key })
}

func isConflict(err error) bool {
	var conflict *store.ConflictError
	return errors.As(err, &conflict)
}

// unknown says that nobody can tell whether the operation was written.
func unknown(id string, cause error) error {
	if errors.Is(cause, context.Canceled) {
		return cause
	}
	e := errdefs.New(errdefs.Unavailable, "OUTCOME_UNKNOWN",
		"the store did not answer in time; repeat the call with the same debvisor-request-id").
		WithRetry(2 * time.Second).WithCause(cause)
	if id != "" {
		e = errdefs.New(errdefs.Unavailable, "OUTCOME_UNKNOWN",
			"the store did not answer in time; whether operation %s was begun will be seen when it answers again; repeat the call with the same debvisor-request-id", id).
			With("operation", id).WithRetry(2 * time.Second).WithCause(cause)
	}
	return e
}
