package migration

import (
	"context"
	"errors"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// markStarted is in the journal before libvirt is asked to migrate.
	markStarted = "started"
	// statsSoon is between two looks at the job until it copies, statsEvery
	// from then on. A look costs libvirtd and QEMU's main loop time that the
	// migration is short of: every 50 ms they made an idle guest's take a tenth
	// longer.
	statsSoon  = 400 * time.Millisecond
	statsEvery = time.Second
)

// sendKind is migrate-send: the source's half.
type sendKind struct{ m *Migration }

// Name is the kind's.
func (sendKind) Name() string { return "migrate-send" }

// Do moves the VM away, or finishes what a former process of this agent began.
func (k sendKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetMigrateSend()
	right := spec.GetRight()
	if right.GetSourceNode() != k.m.cfg.Node {
		return failure(codeInternal, "the migration's source is %q, not this node", right.GetSourceNode())
	}
	h := k.m.begin(ctx, t, right, run, right.GetTargetNode(), spec.GetTargetPeerAddress(), right.GetReceiveTaskId(), outgoing)
	defer h.stop()
	s := &sender{half: h, spec: spec}
	s.resume = spec.GetResume()
	out := s.do(ctx)
	if out != nil {
		out.Side = h.cell.get()
	}
	return out
}

// Observe finishes what another journal may have begun: it never migrates.
func (k sendKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.Do(ctx, t, run)
}

// sender is one migrate-send at work.
type sender struct {
	*half
	spec *agentv1.MigrateSend

	progress *agentv1.MigrateSendProgress
	// callErr is what the migrate call returned; took tells that there was one.
	callErr error
	took    bool
}

func (s *sender) do(ctx context.Context) *agentv1.TaskOutcome {
	s.progress = &agentv1.MigrateSendProgress{}
	ended := false
	if !s.observe && !s.run.Marked(markStarted) {
		out, done := s.start(ctx)
		if out != nil || !done {
			return out
		}
		ended = !errdefs.Is(s.callErr, errdefs.Unavailable)
	}
	if !ended && !s.drain(ctx) {
		return nil
	}
	// gofail: var sendAfterSwitchover struct{}
	return s.settle(ctx)
}

// start makes ready and migrates. done is false when ctx ended or when out says
// that nothing was begun.
func (s *sender) start(ctx context.Context) (out *agentv1.TaskOutcome, done bool) {
	if out = s.refuse(ctx); out != nil || ctx.Err() != nil {
		return s.giveUp(ctx, out), false
	}
	var err error
	s.tunnel, err = s.m.cfg.Tunnels.Open(ctx, tunnel.Config{
		Role: tunnel.Source, TaskID: s.taskID, RightID: s.right.GetId(), ExpiresAt: time.Unix(s.right.GetExpiresAt(), 0),
		VMUUID: s.right.GetVmUuid(), VMName: s.right.GetVmName(), Cluster: s.m.cfg.Cluster, Peer: s.right.GetTargetNode(),
		Certificates: s.m.cfg.Files, Address: s.spec.GetTunnelAddress(),
	})
	if err != nil {
		s.tunnel = s.m.cfg.Tunnels.Find(s.right.GetId())
		return s.giveUp(ctx, refused(codeTunnel, err)), false
	}
	if err := s.hypervisor().DisableAutostart(ctx, s.right.GetVmUuid()); err != nil {
		return s.giveUp(ctx, refused(codeInternal, err)), false
	}
	if err := s.run.Mark(ctx, markStarted); err != nil {
		return s.giveUp(ctx, broken(codeInternal, "the agent's journal cannot be written")), false
	}
	return nil, s.migrate(ctx)
}

// refuse tells why the migration is not begun.
func (s *sender) refuse(ctx context.Context) *agentv1.TaskOutcome {
	if s.cancelled() {
		return cancelled()
	}
	seen, ok := s.look(ctx)
	switch {
	case !ok:
		return nil
	case seen.State != absent && !seen.Persistent:
		// When such a guest ends it is absent, which must only ever mean that
		// libvirt has handed it over.
		return failure(codeTransient, "VM %s has no persistent definition: define it first (virsh define)", s.right.GetVmName())
	case seen.State == running && s.resume, seen.State == paused && !s.resume:
		return nil
	default:
		return failure(codeNotRunning, "VM %s is not as it was when the migration was ordered (%s)", s.right.GetVmName(), seen.State)
	}
}

// giveUp ends a migration that was never begun: as nothing will come of it, the
// side has ended.
func (s *sender) giveUp(ctx context.Context, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if out == nil || ctx.Err() != nil || !s.close(ctx) {
		return nil
	}
	seen, ok := s.look(ctx)
	if !ok {
		return nil
	}
	s.tell(&agentv1.Side{State: seen.State, Ended: true, Reason: out.GetErrorMessage()})
	return out
}

// migrate asks libvirt to migrate, and watches until it has ended. It is false
// when ctx ended first; libvirt then goes on alone.
func (s *sender) migrate(ctx context.Context) bool {
	s.took = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.callErr = s.hypervisor().Migrate(ctx, s.right.GetVmUuid(), hypervisor.Move{
			LibvirtURI: s.tunnel.LibvirtURI(), DataURI: s.tunnel.DataURI(), BandwidthMiB: s.spec.GetBandwidthMib(),
			MaxDowntime: time.Duration(s.spec.GetMaxDowntimeMs()) * time.Millisecond,
		})
	}()
	for {
		if !s.await(ctx, done, s.statsAfter()) {
			return false
		}
		select {
		case <-done:
			s.log.Info("libvirt has ended the migration", "error", s.callErr)
			return true
		default:
			s.watchJob(ctx)
		}
	}
}

// drain waits until a migration that this process has no call for has ended: no
// job, and the tunnel closed so that none can begin. libvirtd may still have
// had the call of an agent that was killed before it; without a tunnel that
// ends in nothing.
func (s *sender) drain(ctx context.Context) bool {
	for {
		closed := false
		seen, ok := s.look(ctx)
		if ok && seen.State != outgoing {
			if closed = s.close(ctx); closed {
				seen, ok = s.look(ctx)
			}
		}
		switch {
		case !ok || ctx.Err() != nil:
			return false
		case closed && seen.State != outgoing:
			return true
		}
		s.watchJob(ctx)
		if !s.await(ctx, nil, s.statsAfter()) {
			return false
		}
	}
}

func (s *sender) statsAfter() time.Duration {
	if s.progress.GetBytesDone() == 0 || s.cancelled() {
		return statsSoon
	}
	return statsEvery
}

// watchJob reports how far the migration is, and aborts it when it is to end.
func (s *sender) watchJob(ctx context.Context) {
	uuid := s.right.GetVmUuid()
	if s.cancelled() {
		if err := s.hypervisor().AbortJob(ctx, uuid); err != nil {
			s.log.Debug("nothing to abort", "error", err)
		}
	}
	stats, err := s.hypervisor().JobStats(ctx, uuid)
	if err != nil || stats == nil {
		return
	}
	if seen, err := s.hypervisor().Look(ctx, uuid); err == nil && seen.Switching {
		stats.SwitchingOver = true
	}
	first := s.progress.GetBytesDone() == 0 && stats.GetBytesDone() > 0
	switched := stats.GetSwitchingOver() && !s.progress.GetSwitchingOver()
	s.progress = stats
	s.report(first || switched)
	if stats.GetBytesDone() > 0 {
		atCopying()
	}
}

// atCopying is where fault tests kill the source's agent in mid-copy.
func atCopying() {
	// gofail: var sendWhileCopying struct{}
}

func (s *sender) report(now bool) {
	p := &agentv1.MigrateSendProgress{
		BytesTotal: s.progress.GetBytesTotal(), BytesDone: s.progress.GetBytesDone(), BytesRemaining: s.progress.GetBytesRemaining(),
		BytesPerSecond: s.progress.GetBytesPerSecond(), DirtyBytesPerSecond: s.progress.GetDirtyBytesPerSecond(),
		Iteration: s.progress.GetIteration(), ElapsedMs: s.progress.GetElapsedMs(),
		SwitchingOver: s.progress.GetSwitchingOver(), Side: s.cell.get(),
	}
	tell := s.run.Progress
	if now {
		tell = s.run.ProgressNow
	}
	tell(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_MigrateSend{MigrateSend: p}})
}

// tell makes the side known to the target's agent, and to the leader for it.
func (s *sender) tell(side *agentv1.Side) {
	if s.cell.set(side) {
		s.log.Info("this side", "state", side.GetState(), "ended", side.GetEnded())
		s.report(true)
	}
}

// settle does this side's part of what is left to do, until it is done.
func (s *sender) settle(ctx context.Context) *agentv1.TaskOutcome {
	for {
		seen, ok := s.look(ctx)
		if !ok {
			return nil
		}
		side := &agentv1.Side{State: seen.State, Ended: !s.leftOver(seen)}
		if s.callErr != nil {
			side.Reason = s.callErr.Error()
		}
		if seen.State == absent {
			s.progress.SwitchingOver = true
		}
		s.tell(side)
		out, again := s.step(ctx, seen)
		if out != nil {
			if !s.close(ctx) {
				return nil
			}
			return out
		}
		if !again && !s.await(ctx, nil, lookEvery) {
			return nil
		}
	}
}

// step takes one step; again tells that something has changed.
func (s *sender) step(ctx context.Context, seen hypervisor.Sighting) (out *agentv1.TaskOutcome, again bool) {
	if seen.State == absent {
		return &agentv1.TaskOutcome{}, false // whatever the target has, nothing is left to do here
	}
	if s.leftOver(seen) {
		if s.other.GetState() == running || s.other.GetState() == paused {
			return nil, s.act("undefining", s.hypervisor().Undefine(ctx, s.right.GetVmUuid()))
		}
		return nil, false
	}
	mine := view{seen.State, true}
	if seen.State == outgoing {
		mine.ended = false // a job that nobody should have begun
	}
	switch do := settle(mine, viewOf(s.other), s.resume && !seen.Held); do {
	case resumeSource:
		s.log.Warn("the guest goes on here: its copy is gone")
		return nil, s.act("resuming", s.hypervisor().Resume(ctx, s.right.GetVmUuid()))
	case undefineSource:
		return nil, s.act("undefining", s.hypervisor().Undefine(ctx, s.right.GetVmUuid()))
	case stayed:
		return s.why(), false
	case stopped, lost, conflict, unclear:
		s.log.Error("only people can put this right", "here", seen.State, "there", s.other.GetState())
		return undecided(do, s.right.GetVmName()), false
	default:
		return nil, false
	}
}

// leftOver tells of a definition that goes as soon as the copy is seen: libvirt
// has handed the guest over, and died or failed before it let go. Where the
// target has no copy after all, it is not.
func (s *sender) leftOver(seen hypervisor.Sighting) bool {
	if seen.State != shutoff || !seen.Handed {
		return false
	}
	switch s.other.GetState() {
	case absent, shutoff:
		return false
	default:
		return true
	}
}

func (h *half) act(doing string, err error) (done bool) {
	if err != nil {
		h.log.Error("left to be done", "what", doing, "error", err)
	}
	return err == nil
}

// why tells why the VM stayed here.
func (s *sender) why() *agentv1.TaskOutcome {
	var e *errdefs.Error
	switch {
	case errdefs.Is(s.callErr, errdefs.Cancelled):
		return cancelled()
	case !s.took:
		return broken(codeInterrupted, "the source's agent was restarted, and the migration did not come to its end")
	case errdefs.Is(s.callErr, errdefs.Unavailable) || s.libvirtLost():
		return broken(codeInterrupted, "the source's libvirtd was restarted during the migration")
	case s.tunnel.Broken() != "" || !s.tunnel.Alive():
		s.log.Warn("the tunnel broke", "how", s.tunnel.Broken())
		return broken(codeTunnel, "the connection between the two nodes broke: %s", s.tunnel.Broken())
	case s.callErr == nil:
		return failure(codeNotArrived, "libvirt says that it migrated VM %s, but it is still here and not there", s.right.GetVmName())
	case errors.As(s.callErr, &e):
		return refused(hypervisor.CodeLibvirt, s.callErr)
	default:
		return failure(hypervisor.CodeLibvirt, "%v", s.callErr)
	}
}
