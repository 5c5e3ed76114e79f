package replication

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/pace"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// markSettled is in the journal once the source keeps the cursor's hold and
	// bookmark only: nothing is left to do but to tell the target.
	markSettled = "settled"
	// tellWithin is how long the target is looked for then.
	tellWithin = 15 * time.Second
	dialAgain  = 50 * time.Millisecond
	dialLate   = time.Second
)

// markSent is in the journal before the last part of a step's stream is sent: a
// target that claims to have a step without it has it from nowhere.
func markSent(step int) string { return "sent " + strconv.Itoa(step) }

// sendKind is replicate-send: the source's side.
type sendKind struct{ r *Replication }

// Name is the kind's.
func (sendKind) Name() string { return "replicate-send" }

// Do sends the steps, or goes on where a former process of this agent was.
func (k sendKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetReplicateSend()
	right := spec.GetRight()
	if right.GetSourceNode() != k.r.cfg.Node || right.GetId() == "" || right.GetJobId() == "" {
		return failure(codeInternal, "the task %s is not for this node", t.GetId())
	}
	k.r.leaving.limitTo(spec.GetNodeBandwidthMib())
	s := &sender{
		r: k.r, run: run, spec: spec, right: right, log: worker.IDs(t).Logger(k.r.cfg.Log).With("dataset", right.GetSourceDataset()),
		keep: keeper{k.r.zfs, right.GetJobId(), right.GetSourceDataset()},
		pace: &pace.Pace{Limit: func() uint64 { return spec.GetBandwidthMib() << 20 }},
	}
	s.progress.start(spec.GetSteps())
	out := s.do(ctx)
	if out != nil {
		out.Zfs = s.result()
	}
	return out
}

// Observe leaves all as it is: another attempt finds out what has arrived.
func (k sendKind) Observe(ctx context.Context, _ *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	if ctx.Err() != nil {
		return nil
	}
	return broken(CodeInterrupted, "the agent's journal was lost in the middle of a replication")
}

// sender is one replicate-send at work.
type sender struct {
	r     *Replication
	run   worker.Run
	spec  *agentv1.ReplicateSend
	right *agentv1.ReplicationRight
	log   hclog.Logger
	keep  keeper
	pace  *pace.Pace

	bufs      [2][]byte
	held      bool   // by this process: all steps' snapshots, each looked at
	have      int    // steps that the target is known to have
	known     bool   // it has said so since the last stream's last part was sent
	whole     bool   // all is done on this side
	dead      int    // how often what had arrived could not be gone on with
	begun     int    // one more than the step whose stream was begun last; 0: none was
	forgotten bool   // the target was told to forget a token that was not the plan's
	forget    string // the token that it is to forget
	trouble   trouble
	progress  progress
}

func (s *sender) steps() []*agentv1.ReplicationStep { return s.spec.GetSteps() }

// cursor is the newest snapshot that both sides are known to have.
func (s *sender) cursor() *agentv1.ZfsSnapshotID {
	if s.have > 0 {
		step := s.steps()[s.have-1]
		return &agentv1.ZfsSnapshotID{Dataset: s.right.GetSourceDataset(), Name: step.GetTo(), Guid: step.GetToGuid()}
	}
	return s.spec.GetCursor()
}

func (s *sender) result() *agentv1.ZfsOutcome {
	p := s.progress.now()
	return &agentv1.ZfsOutcome{Cursor: s.cursor(), Bytes: p.GetBytesDone(), Resumes: p.GetResumes()}
}

func (s *sender) do(ctx context.Context) *agentv1.TaskOutcome {
	err := s.work(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil, s.whole:
		// The target is at rest as soon as it hears of it, or with the next run.
		return &agentv1.TaskOutcome{}
	case final(err):
		s.log.Error("the replication failed", "error", err)
		return s.retreat(ctx, outcomeOf(ctx, err))
	case isCancelled(s.run):
		return s.retreat(ctx, cancelled())
	case time.Now().Unix() >= s.right.GetExpiresAt():
		return broken(CodeExpired, "the right to replicate %s %s; what has arrived can be resumed", s.right.GetSourceDataset(), worker.Lapsed(s.right.GetExpiresAt()))
	}
	return outcomeOf(ctx, err)
}

// work sends until all is done (nil), the run is over or the right is.
func (s *sender) work(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, stop := untilCancelled(ctx, s.run)
	defer stop()
	ctx, cancel := context.WithDeadline(ctx, time.Unix(s.right.GetExpiresAt(), 0))
	defer cancel()
	group.Go(func() { s.report(ctx) })
	s.whole = s.run.Marked(markSettled)
	if s.whole {
		s.have = len(s.steps())
		var late context.CancelFunc
		ctx, late = context.WithTimeout(ctx, tellWithin)
		defer late()
	} else if err := s.prepare(ctx); err != nil {
		return err
	}
	s.bufs = [2][]byte{newFrame(frameSize), newFrame(frameSize)}
	for wait := dialAgain; ; wait = min(2*wait, dialLate) {
		sent := s.progress.sent()
		err := s.attempt(ctx)
		if err == nil || final(err) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if s.progress.sent() > sent {
			wait = dialAgain
		}
		s.progress.phase("the stream was cut; dialling the target")
		s.log.Warn("the stream was cut, and goes on", "again_in", wait, "error", err)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// prepare makes sure that the source is the plan's, and holds what is to be sent.
func (s *sender) prepare(ctx context.Context) error {
	s.progress.phase("holding snapshots")
	if err := patiently(ctx, s.log, s.check); err != nil {
		return err
	}
	s.r.pass(pointSendHold)
	names := make([]string, 0, len(s.steps()))
	for _, step := range s.steps() {
		names = append(names, step.GetTo())
	}
	err := patiently(ctx, s.log, func(ctx context.Context) error { return s.keep.hold(ctx, names...) })
	if err == nil {
		s.held = true
		s.r.pass(pointSendHeld)
	}
	return err
}

// check compares the source with the plan, by guids.
func (s *sender) check(ctx context.Context) error {
	dataset := s.right.GetSourceDataset()
	found, err := s.r.look(ctx, dataset)
	if err != nil {
		return err
	}
	if !found.exists || found.guid != s.right.GetSourceGuid() {
		return refuse(CodeSourceChanged, "%s is not the dataset that the plan was made for", dataset)
	}
	list, err := s.r.snapshots(ctx, dataset)
	if err != nil {
		return err
	}
	guids := map[string]uint64{}
	for _, snapshot := range list {
		guids["@"+snapshot.Name] = snapshot.GUID
	}
	if len(s.steps()) > 0 && strings.HasPrefix(s.steps()[0].GetFrom(), "#") {
		if guids[s.steps()[0].GetFrom()], err = s.r.guidOf(ctx, dataset+s.steps()[0].GetFrom()); err != nil && !gone(err) {
			return err
		}
	}
	sent := s.sentUpTo()
	for i, step := range s.steps() {
		if guids["@"+step.GetTo()] != step.GetToGuid() {
			return refuse(CodeSourceChanged, "%s@%s is not the snapshot that the plan has", dataset, step.GetTo())
		}
		if i >= sent && step.GetFrom() != "" && guids[step.GetFrom()] != step.GetFromGuid() {
			return refuse(CodeSourceChanged, "%s%s is not what the plan goes on from", dataset, step.GetFrom())
		}
	}
	return nil
}

// sentUpTo is how many steps the target may have got.
func (s *sender) sentUpTo() int {
	for i := len(s.steps()); i > 0; i-- {
		if s.run.Marked(markSent(i - 1)) {
			return i
		}
	}
	return 0
}

// attempt dials the target and goes on with the run.
func (s *sender) attempt(ctx context.Context) error {
	conn, err := tunnel.DialStream(ctx, s.spec.GetTargetAddress(), tunnel.StreamRight{
		ID: s.right.GetId(), Cluster: s.r.cfg.Cluster, Peer: s.right.GetTargetNode(), Certificates: s.r.cfg.Certificates,
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return s.session(ctx, conn)
}

// report tells how far it is, each second, until ctx ends.
func (s *sender) report(ctx context.Context) {
	for {
		s.run.Progress(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_ReplicateSend{ReplicateSend: s.progress.now()}})
		if !pause(ctx, time.Second) {
			return
		}
	}
}

// settle keeps the cursor on this side, and nothing else of the job's.
func (s *sender) settle(ctx context.Context) error {
	cursor := s.cursor()
	s.progress.phase("moving holds and bookmark on")
	s.r.pass(pointSendBookmark)
	if err := s.keepOnly(ctx, cursor.GetName(), cursor.GetGuid()); err != nil {
		return err
	}
	if err := s.run.Mark(ctx, markSettled); err != nil {
		return err
	}
	s.whole = true
	s.r.pass(pointSendSettled)
	return nil
}

// keepOnly makes the hold and the bookmark of a snapshot, then takes away the job's
// others. also are further guids whose holds stay. A cursor of which only the
// bookmark is left has no hold.
func (s *sender) keepOnly(ctx context.Context, name string, guid uint64, also ...uint64) error {
	if err := s.keepCursor(ctx, name, guid); err != nil {
		return err
	}
	s.r.pass(pointSendMarked)
	if err := s.keep.release(ctx, append(also, guid)...); err != nil {
		return err
	}
	s.r.pass(pointSendReleasing)
	return s.keep.unmark(ctx, guid)
}

// keepCursor makes the hold and the bookmark of a snapshot. What this process held
// itself is not looked at again.
func (s *sender) keepCursor(ctx context.Context, name string, guid uint64) error {
	if !s.held || s.have == 0 {
		found, err := s.r.guidOf(ctx, s.keep.snapshot(name))
		switch {
		case gone(err), err == nil && found != guid:
			return s.keep.marked(ctx, guid)
		case err != nil:
			return err
		}
		if err := s.keep.hold(ctx, name); err != nil {
			return err
		}
	}
	return s.keep.mark(ctx, name, guid)
}

// retreat leaves the holds and the bookmark of what both sides have. What the
// target may have, though it has not said so, stays held.
func (s *sender) retreat(ctx context.Context, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	for tries := 0; out != nil; tries++ {
		err := s.letGo(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return out
		case tries == retreatTries:
			s.log.Error("holds and bookmarks of a run that failed could not be taken away", "error", err)
			return out
		}
		if !pause(ctx, again) {
			return nil
		}
	}
	return nil
}

const retreatTries = 10

func (s *sender) letGo(ctx context.Context) error {
	var maybe []uint64
	if sent := s.sentUpTo(); sent > s.have && !s.known {
		maybe = append(maybe, s.steps()[sent-1].GetToGuid())
	}
	if found, err := s.r.look(ctx, s.right.GetSourceDataset()); err != nil || !found.exists || found.guid != s.right.GetSourceGuid() {
		return err
	}
	if cursor := s.cursor(); cursor.GetGuid() != 0 {
		return s.keepOnly(ctx, cursor.GetName(), cursor.GetGuid(), maybe...)
	}
	var guids []uint64
	for _, step := range s.steps() {
		if len(maybe) == 0 || step.GetToGuid() != maybe[0] {
			guids = append(guids, step.GetToGuid())
		}
	}
	return s.keep.releaseOnly(ctx, guids)
}

// trouble is what went wrong on the target, and since when nothing has come of it.
type trouble struct {
	since time.Time
	token string
	tries int
}

// streamTries is how often a stream may come to nothing in the same place.
const streamTries = 5

// meet decides about a failure on the target: nil to try again, with what token
// the target then has.
func (t *trouble) meet(f failed, token string, patience time.Duration) error {
	err := f.err()
	if t.since.IsZero() || token != t.token {
		*t = trouble{since: time.Now(), token: token}
	}
	t.tries++
	full := isFull(err)
	switch {
	case full && time.Since(t.since) < patience:
		return nil
	case full:
		return definite{err}
	case f.Again && (err.Code != zfs.CodeStreamBroken || t.tries < streamTries):
		return nil
	}
	return definite{err}
}

func isFull(err error) bool { return codeOf(err) == zfs.CodeNoSpace || codeOf(err) == zfs.CodeQuota }
