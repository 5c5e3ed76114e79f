package plans

import (
	"context"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// answerWait is how long a plan may take, from the call to the answer: the wait
// for a leader and for agents is in it.
const answerWait = 5 * time.Second

// Desk takes requests for plans on any replica.
type Desk struct {
	view  View
	store Committer
}

// NewDesk makes a desk.
func NewDesk(view View, committer Committer) *Desk { return &Desk{view: view, store: committer} }

// Request is what is asked for.
type Request struct {
	Kind string
	// Principal asks, of Tenant; empty: of none.
	Principal, Tenant string
	// Message is the call's: VMMigratePlan, EvacuationPlanRequest or
	// RebalancePlanRequest.
	Message proto.Message
}

// Ask writes down a request and waits until the leader has computed the plan,
// 5 s at most; Result tells what came of it. Errors: Unavailable where nobody
// leads or nothing was computed in time.
func (d *Desk) Ask(ctx context.Context, r Request) (*storev1.Plan, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "INTERNAL", "the request for a plan could not be encoded").WithCause(err)
	}
	bounded, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	if err := d.awaitLeader(bounded); err != nil {
		return nil, ended(ctx, err)
	}
	now := time.Now()
	if err := d.room(r.Principal, now); err != nil {
		return nil, err
	}
	p := &storev1.Plan{
		Id: "plan-" + strings.ToLower(ulid.Make().String()), State: storev1.PlanState_PLAN_STATE_REQUESTED,
		Kind: r.Kind, Principal: r.Principal, Tenant: r.Tenant, Request: encoded,
		CreatedAt: timestamppb.New(now), ExpiresAt: timestamppb.New(now.Add(KeepFor)),
	}
	revision, err := d.store.Commit(bounded, store.Change{
		Require: []store.Condition{store.Absent(store.PlanKey(p.GetId()))},
		Puts:    []store.Put{store.PutProto(store.PlanKey(p.GetId()), p)},
	})
	if err != nil {
		return nil, ended(ctx, err)
	}
	p, err = d.await(bounded, p.GetId(), revision)
	if err != nil {
		return nil, ended(ctx, err)
	}
	return p, nil
}

// mostOfOne bounds the plans of one principal that are kept at a time: etcd
// remembers what was deleted, too, for an hour.
const mostOfOne = 500

// room refuses a plan to a principal that has as many as it may.
func (d *Desk) room(principal string, now time.Time) error {
	kept := 0
	for _, entry := range d.view.Current().Plans {
		if entry.Value.GetPrincipal() == principal && !Expired(entry.Value, now) {
			kept++
		}
	}
	if kept < mostOfOne {
		return nil
	}
	return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_PLANS",
		"%s has %d plans that have not expired; each is kept for %v", principal, kept, KeepFor).WithRetry(time.Minute)
}

// await waits until a plan that was written at a revision is computed.
func (d *Desk) await(ctx context.Context, id string, revision int64) (*storev1.Plan, error) {
	for {
		changed := d.view.Changed()
		s := d.view.Current()
		entry, ok := s.Plans[id]
		switch {
		case ok && entry.Value.GetState() > storev1.PlanState_PLAN_STATE_REQUESTED:
			return entry.Value, nil
		case !ok && s.Revision >= revision:
			return nil, errdefs.New(errdefs.Unavailable, "PLAN_DROPPED", "plan %s was dropped before it was computed: too many are asked for", id).
				WithRetry(time.Second)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, notComputed(id)
		}
	}
}

// awaitLeader waits until somebody leads.
func (d *Desk) awaitLeader(ctx context.Context) error {
	for {
		changed := d.view.Changed()
		if d.view.Current().Leader != nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errdefs.New(errdefs.Unavailable, "NO_LEADER", "no replica leads at the moment, and only a leader plans; try again").
				WithRetry(2 * time.Second).WithCause(ctx.Err())
		}
	}
}

// ended is the caller's own end of the call where that is why it failed.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func notComputed(id string) error {
	return errdefs.New(errdefs.Unavailable, "PLAN_NOT_COMPUTED",
		"plan %s is not computed yet: there is no leader, or it has much to do; ask for it later or anew", id).
		With("plan", id).WithRetry(2 * time.Second)
}

// failure is a plan that could not be computed, as an error.
func failure(p *storev1.Plan) error {
	kind := errdefs.Internal
	if strings.HasSuffix(p.GetErrorCode(), "_NOT_FOUND") {
		kind = errdefs.NotFound
	}
	return errdefs.New(kind, p.GetErrorCode(), "%s", p.GetErrorMessage()).With("plan", p.GetId())
}
