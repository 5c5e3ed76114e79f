package plans

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The kinds of plans.
const (
	KindMigrate   = "migrate"
	KindEvacuate  = "evacuate"
	KindRebalance = "rebalance"
)

const (
	// KeepFor is how long a plan is kept once it is computed.
	KeepFor = 10 * time.Minute
	// learnRounds bounds how often agents are asked for one plan, learnFor for
	// how long in all: whoever waits for it waits 5 s.
	learnRounds = 8
	learnFor    = 3 * time.Second
)

// world is the planner's view of the latest snapshot, read once for all plans
// that are made on it.
type world struct {
	facts planner.Facts

	mu    sync.Mutex
	of    *cluster.Snapshot
	ready *planner.World
}

// with plans on a snapshot. One at a time: planner.World is for one goroutine.
func (w *world) with(s *cluster.Snapshot, plan func(*planner.World)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of != s {
		w.of, w.ready = s, planner.NewWorld(s, w.facts)
	}
	plan(w.ready)
}

func (w *world) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of, w.ready = nil, nil
}

// compute computes a plan, asking agents what only they know, and writes it
// under the leader's fence.
func (c *Controller) compute(ctx context.Context, l election.Leadership, id string) error {
	learning, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	for round := 0; ; round++ {
		snapshot := c.view.Current()
		entry, ok := snapshot.Plans[id]
		if !ok || entry.Value.GetState() != storev1.PlanState_PLAN_STATE_REQUESTED {
			return nil
		}
		next := proto.CloneOf(entry.Value)
		questions := c.answer(snapshot, next)
		if len(questions) > 0 && round < learnRounds && learning.Err() == nil && c.facts.Learn(learning, questions) {
			c.world.drop() // it remembers what was not known
			continue
		}
		return c.write(ctx, l, entry, next)
	}
}

// write writes a computed plan and waits until this replica sees it.
func (c *Controller) write(ctx context.Context, l election.Leadership, was cluster.Entry[*storev1.Plan], next *storev1.Plan) error {
	next.ExpiresAt = timestamppb.New(time.Now().Add(KeepFor))
	// gofail: var plansBeforeWrite struct{}
	key := store.PlanKey(next.GetId())
	revision, err := c.store.Commit(ctx, store.Change{
		Fence:   l.Fence,
		Require: []store.Condition{store.Unchanged(key, was.ModRevision)},
		Puts:    []store.Put{store.PutProto(key, next)},
	})
	if err != nil {
		return err
	}
	c.log.Debug("plan computed", "plan", next.GetId(), "kind", next.GetKind(), "state", next.GetState(), "bytes", len(next.GetResult()))
	return c.view.Await(ctx, revision)
}

// answer fills in what came of a plan, and gives what the planner did not know.
func (c *Controller) answer(s *cluster.Snapshot, p *storev1.Plan) []planner.Question {
	var questions []planner.Question
	var err error
	result := &debvisorv1.Plan{Kind: p.GetKind()}
	c.world.with(s, func(w *planner.World) { questions, err = fill(s, w, p, result) })
	if err == nil {
		p.Grounds = grounds(s, result)
		p.Result, err = proto.Marshal(result)
	}
	if err == nil {
		p.State = storev1.PlanState_PLAN_STATE_READY
		return questions
	}
	p.State, p.Result, p.Grounds = storev1.PlanState_PLAN_STATE_FAILED, nil, nil
	e := &errdefs.Error{Code: "INTERNAL", Message: "the plan could not be computed"}
	if !asError(err, &e) {
		c.log.Error("a plan cannot be computed", "plan", p.GetId(), "error", err)
	}
	p.ErrorCode, p.ErrorMessage = e.Code, e.Message
	return nil
}

// fill asks the planner. Its errors are NotFound, for a node that is gone, and
// Internal, for a record that cannot be read.
func fill(s *cluster.Snapshot, w *planner.World, p *storev1.Plan, result *debvisorv1.Plan) ([]planner.Question, error) {
	switch p.GetKind() {
	case KindMigrate:
		req, err := request(p, &debvisorv1.VMMigratePlan{})
		if err != nil {
			return nil, err
		}
		r := w.Plan(planner.Request{
			VM: req.GetVm().GetVmId(), Source: nodeID(req.GetSource()), Target: nodeID(req.GetTarget()),
			AllowDowntime: req.GetAllowDowntime(), Options: req.GetOptions(), Tenant: p.GetTenant(),
		})
		result.Migration = Verdict(&r)
		clipMigration(result.GetMigration())
		return r.Questions, nil
	case KindEvacuate:
		req, err := request(p, &debvisorv1.EvacuationPlanRequest{})
		if err != nil {
			return nil, err
		}
		node := nodeID(req.GetNode())
		if _, ok := s.Nodes[node]; !ok {
			return nil, errdefs.New(errdefs.NotFound, "NODE_NOT_FOUND", "no node is called %q", node)
		}
		m := w.Evacuate(planner.EvacuationRequest{
			Node: node, AllowDowntime: req.GetAllowDowntime(), Parallel: int(req.GetParallel()), Tenant: p.GetTenant(),
		})
		result.Moves = moves(&m, node, req.GetParallel())
		clipMoves(result.GetMoves())
		return m.Questions, nil
	case KindRebalance:
		req, err := request(p, &debvisorv1.RebalancePlanRequest{})
		if err != nil {
			return nil, err
		}
		r := planner.RebalanceRequest{MaxMoves: int(req.GetMaxMoves()), Parallel: int(req.GetParallel())}
		for _, node := range req.GetNodes() {
			r.Nodes = append(r.Nodes, nodeID(node))
		}
		m := w.Rebalance(r)
		result.Moves = moves(&m, "", req.GetParallel())
		clipMoves(result.GetMoves())
		return m.Questions, nil
	}
	return nil, errdefs.New(errdefs.Internal, "BROKEN_RECORD", "no plan is of the kind %q", p.GetKind())
}

// request reads what was asked for.
func request[M proto.Message](p *storev1.Plan, into M) (M, error) {
	if err := proto.Unmarshal(p.GetRequest(), into); err != nil {
		return into, broken(p, err)
	}
	return into, nil
}

func broken(p *storev1.Plan, err error) error {
	return errdefs.New(errdefs.Internal, "BROKEN_RECORD", "the record of plan %s cannot be read", p.GetId()).WithCause(err)
}
