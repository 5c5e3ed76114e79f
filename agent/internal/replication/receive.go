package replication

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// markReleased is in the journal once nothing is left to do but to tell.
	markReleased = "released"
	// markAside is in the journal before what is in the way is touched; markClear once
	// nothing is in the way any more.
	markAside = "aside"
	markClear = "clear"
	// portWithin is how long the port of a former process may take to be free again.
	portWithin = 20 * time.Second
	again      = 200 * time.Millisecond
	againLate  = 5 * time.Second
)

// markTook is in the journal before a step is received: a snapshot of its name is
// ours from then on, and so is a dataset that was not there before the first.
func markTook(step int) string { return "took " + strconv.Itoa(step) }

func markPort(port int) string { return "port " + strconv.Itoa(port) }

// receiveKind is replicate-receive: the target's side.
type receiveKind struct{ r *Replication }

// Name is the kind's.
func (receiveKind) Name() string { return "replicate-receive" }

// Do takes the steps, or goes on where a former process of this agent was.
func (k receiveKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetReplicateReceive()
	right := spec.GetRight()
	if right.GetTargetNode() != k.r.cfg.Node || right.GetId() == "" || right.GetJobId() == "" {
		return failure(codeInternal, "the task %s is not for this node", t.GetId())
	}
	k.r.arriving.limitTo(spec.GetNodeBandwidthMib())
	c := k.receiver(t, run)
	out := c.do(ctx)
	if out != nil {
		out.Zfs = c.result()
	}
	return out
}

// Observe leaves what has arrived to be resumed by another attempt. A former copy
// that was renamed is found by this task's plan only: it is made no job's here.
func (k receiveKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	c := k.receiver(t, run)
	if err := patiently(ctx, c.log, c.leaveAside); err != nil && ctx.Err() == nil {
		c.log.Error("a copy that was set aside may keep its job's holds", "error", err)
	}
	if ctx.Err() != nil {
		return nil
	}
	return broken(CodeInterrupted, "the agent's journal was lost in the middle of a replication")
}

func (k receiveKind) receiver(t *agentv1.Task, run worker.Run) *receiver {
	spec := t.GetSpec().GetReplicateReceive()
	right := spec.GetRight()
	return &receiver{
		r: k.r, run: run, spec: spec, right: right, log: worker.IDs(t).Logger(k.r.cfg.Log).With("dataset", right.GetTargetDataset()),
		keep: keeper{k.r.zfs, right.GetJobId(), right.GetTargetDataset()},
	}
}

// receiver is one replicate-receive at work.
type receiver struct {
	r     *Replication
	run   worker.Run
	spec  *agentv1.ReplicateReceive
	right *agentv1.ReplicationRight
	log   hclog.Logger
	keep  keeper

	streams *tunnel.Streams
	address string
	buf     []byte // for one frame
	have    int    // steps that are here, once surveyed
	token   string
	fresh   bool // the survey is of this very process's preparation
	bytes   atomic.Uint64
	aside   string // the former copy's new name
}

func (c *receiver) dataset() string                   { return c.right.GetTargetDataset() }
func (c *receiver) steps() []*agentv1.ReplicationStep { return c.spec.GetSteps() }
func (c *receiver) fromScratch() bool {
	return len(c.steps()) > 0 && c.steps()[0].GetFromGuid() == 0
}

// cursorGUID is that of the newest snapshot which both sides have; 0: there is none.
func (c *receiver) cursorGUID() uint64 {
	if c.have > 0 {
		return c.steps()[c.have-1].GetToGuid()
	}
	return c.spec.GetCursor().GetGuid()
}

func (c *receiver) do(ctx context.Context) *agentv1.TaskOutcome {
	if c.run.Marked(markReleased) {
		return c.farewell(ctx)
	}
	err := c.work(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return &agentv1.TaskOutcome{}
	case final(err):
		c.log.Error("the replication failed", "error", err)
		return c.retreat(ctx, outcomeOf(ctx, err))
	case isCancelled(c.run):
		return c.unlessWhole(c.retreat(ctx, cancelled()))
	case c.expired() && c.have == len(c.steps()):
		return c.unlessWhole(c.retreat(ctx, broken(CodeExpired, "the right to replicate into %s %s", c.dataset(), worker.Lapsed(c.right.GetExpiresAt()))))
	case c.expired():
		return broken(CodeExpired, "the right to replicate into %s %s; what has arrived can be resumed", c.dataset(), worker.Lapsed(c.right.GetExpiresAt()))
	}
	return outcomeOf(ctx, err)
}

// unlessWhole makes a success of the end of a run that has received all, and keeps
// no more than that: whether its source has heard is no matter to this side.
func (c *receiver) unlessWhole(out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if out != nil && c.have == len(c.steps()) {
		return &agentv1.TaskOutcome{}
	}
	return out
}

// farewell ends a run that is done. A source that has not heard of it, as the agent
// died at that moment, is given some time to come and hear.
func (c *receiver) farewell(ctx context.Context) *agentv1.TaskOutcome {
	bounded, cancel := context.WithTimeout(ctx, byeWithin)
	defer cancel()
	if err := c.work(bounded); err != nil {
		c.log.Debug("the source has not come for the end", "error", err)
	}
	if ctx.Err() != nil {
		return nil
	}
	c.have = len(c.steps())
	return &agentv1.TaskOutcome{}
}

func (c *receiver) expired() bool { return time.Now().Unix() >= c.right.GetExpiresAt() }

// work receives until all is done (nil), the run is over or the right is.
func (c *receiver) work(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, stop := untilCancelled(ctx, c.run)
	defer stop()
	ctx, cancel := context.WithDeadline(ctx, time.Unix(c.right.GetExpiresAt(), 0))
	defer cancel()
	if err := patiently(ctx, c.log, c.prepare); err != nil {
		return err
	}
	if err := c.listen(ctx); err != nil {
		return err
	}
	defer c.streams.Close()
	group.Go(func() { c.report(ctx) })
	c.buf = make([]byte, frameSize)
	for {
		conn, err := c.streams.Accept(ctx)
		if err != nil {
			return err
		}
		err = c.session(ctx, conn)
		_ = conn.Close()
		if err == nil || final(err) {
			return err
		}
		c.log.Warn("the stream was cut", "have", c.have, "error", err)
	}
}

// prepare makes sure that the dataset is as the plan has it.
func (c *receiver) prepare(ctx context.Context) error {
	for _, s := range c.steps() {
		if _, err := zfs.ParseName(c.keep.snapshot(s.GetTo())); err != nil {
			return definite{err}
		}
	}
	if err := c.clear(ctx); err != nil {
		return err
	}
	err := c.survey(ctx)
	c.fresh = err == nil
	return err
}

// listen listens where a former process did, or somewhere.
func (c *receiver) listen(ctx context.Context) error {
	c.r.pass(pointReceiveListen)
	cfg := tunnel.StreamsConfig{
		StreamRight: tunnel.StreamRight{
			ID: c.right.GetId(), Cluster: c.r.cfg.Cluster, Peer: c.right.GetSourceNode(), Certificates: c.r.cfg.Certificates,
		},
		Host: c.r.cfg.Host, FirstPort: c.r.cfg.FirstPort, LastPort: c.r.cfg.LastPort, Log: c.log,
	}
	for port := cfg.FirstPort; port <= cfg.LastPort; port++ {
		if c.run.Marked(markPort(port)) {
			cfg.Port = port
		}
	}
	streams, err := tunnel.ListenStreams(ctx, cfg)
	for deadline := time.Now().Add(portWithin); err != nil && cfg.Port != 0 && time.Now().Before(deadline) && pause(ctx, again); {
		streams, err = tunnel.ListenStreams(ctx, cfg)
	}
	if err != nil {
		return errdefs.New(errdefs.Unavailable, CodeStream, "streams cannot be received: %v", err)
	}
	if err := c.run.Mark(ctx, markPort(streams.Port())); err != nil {
		streams.Close()
		return err
	}
	c.streams, c.address = streams, streams.Address()
	c.tell()
	return nil
}

// report tells of the bytes, each second, until ctx ends.
func (c *receiver) report(ctx context.Context) {
	for pause(ctx, time.Second) {
		c.run.Progress(c.progress())
	}
}

func (c *receiver) tell() { c.run.ProgressNow(c.progress()) }

func (c *receiver) progress() *agentv1.TaskProgress {
	refused, last := c.streams.Refused()
	return &agentv1.TaskProgress{Kind: &agentv1.TaskProgress_ReplicateReceive{ReplicateReceive: &agentv1.ReplicateReceiveProgress{
		Address: c.address, Bytes: c.bytes.Load(), Refused: refused, RefusedLast: last,
	}}}
}

// result is what is there in the end.
func (c *receiver) result() *agentv1.ZfsOutcome {
	out := &agentv1.ZfsOutcome{Bytes: c.bytes.Load(), Cursor: c.spec.GetCursor(), SetAside: c.aside}
	if c.have > 0 {
		s := c.steps()[c.have-1]
		out.Cursor = &agentv1.ZfsSnapshotID{Dataset: c.dataset(), Name: s.GetTo(), Guid: s.GetToGuid()}
	}
	return out
}

// retreat leaves whole snapshots only, and the hold of the last that both have.
func (c *receiver) retreat(ctx context.Context, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if out == nil {
		return nil
	}
	c.r.pass(pointReceiveDiscard)
	err := patiently(ctx, c.log, c.discard)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		c.log.Error("the rest of a receive could not be discarded", "error", err)
		out.ErrorMessage = fmt.Sprintf("%s; what had arrived could not be discarded: %s", out.GetErrorMessage(), messageOf(err))
	}
	c.r.pass(pointReceiveDiscarded)
	return out
}

func (c *receiver) discard(ctx context.Context) error {
	found, err := c.r.look(ctx, c.dataset())
	if err != nil || !found.exists {
		return err
	}
	if !c.ours(found) {
		return nil
	}
	if found.token != "" {
		if err := c.r.zfs.AbortReceive(ctx, c.dataset()); err != nil {
			return err
		}
	}
	list, err := c.r.snapshots(ctx, c.dataset())
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return c.discardEmpty(ctx)
	}
	c.have = c.haveOf(list)
	if s := byGUID(list, c.cursorGUID()); s != nil {
		if err := c.keep.hold(ctx, s.Name); err != nil {
			return err
		}
		return c.keep.release(ctx, s.GUID)
	}
	return nil
}

// discardEmpty removes what the first stream had made, where zfs has not: it is
// ours, and nothing in it was ever whole.
func (c *receiver) discardEmpty(ctx context.Context) error {
	found, err := c.r.look(ctx, c.dataset())
	if err != nil || !found.exists || !c.fromScratch() || !c.run.Marked(markTook(0)) || found.job != c.right.GetJobId() {
		return err
	}
	_, err = c.r.zfs.DestroyDataset(ctx, c.dataset(), found.guid)
	return err
}

// ours tells whether a dataset is this job's copy, or was begun by this task.
func (c *receiver) ours(found seen) bool {
	return found.job == c.right.GetJobId() || c.fromScratch() && c.run.Marked(markTook(0))
}
