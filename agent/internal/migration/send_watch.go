package migration

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// statsSoon is between two looks at the job until it copies, statsEvery
	// from then on. A look costs libvirtd and QEMU's main loop time that the
	// migration is short of: every 50 ms they made an idle guest's take a tenth
	// longer.
	statsSoon  = 400 * time.Millisecond
	statsEvery = time.Second
	// abortWithin is how long libvirt may take to give a migration up.
	abortWithin = 10 * time.Second
	// markPaused is in the journal before the guest is paused at its deadline:
	// it is let run again wherever it ends.
	markPaused = "paused-at-deadline"
	// markEnding, with the reason's code, is there before a migration is given
	// up that libvirt was asked for.
	markEnding = "ending/"
)

// What people are told of where a migration is.
const (
	phaseShutting  = "shutting the guest down"
	phaseDisks     = "copying disks"
	phaseMemory    = "copying memory"
	phaseSwitching = "switching over"
	phaseVolumes   = "sending snapshots of the disks"
	phaseLast      = "sending the last of the disks"
	phaseMoving    = "moving the definition"
	phaseTarget    = "waiting for the target"
)

// migrate asks libvirt to migrate, and watches until it has ended. It is false
// when ctx ended first; libvirt then goes on alone.
func (s *sender) migrate(ctx context.Context) bool {
	s.took = true
	move := s.move()
	if s.offline {
		s.progress.Phase = phaseMoving
		s.report(true)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.callErr = s.hypervisor().Migrate(ctx, s.right.GetVmUuid(), move)
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
	if s.progress.GetBytesDone() == 0 || s.cancelled() || s.end != nil {
		return statsSoon
	}
	return statsEvery
}

// watchJob reports how far the migration is, keeps it at its pace, and aborts it
// when it is to end.
func (s *sender) watchJob(ctx context.Context) {
	uuid := s.right.GetVmUuid()
	if s.cancelled() || s.end != nil {
		if err := s.hypervisor().AbortJob(ctx, uuid); err != nil {
			s.log.Debug("nothing to abort", "error", err)
		}
		s.cutLate()
	}
	seen, err := s.hypervisor().Look(ctx, uuid)
	if err != nil {
		return
	}
	job, err := s.hypervisor().OutgoingJob(ctx, uuid)
	if err != nil {
		return
	}
	if job == nil {
		job = &hypervisor.Job{} // not begun: that can take too long as well
	} else {
		s.noteHeld(ctx, seen, job)
		s.keepSpeed(ctx)
		s.tellJob(seen, job)
	}
	stalled := s.stall.look(job.Done, time.Now())
	s.progress.StalledMs = 0
	if stalled >= 2*statsEvery {
		s.progress.StalledMs = uint64(stalled.Milliseconds())
	}
	s.treat(ctx, job, stalled, seen)
}

// tellJob reports how far libvirt is.
func (s *sender) tellJob(seen hypervisor.Sighting, job *hypervisor.Job) {
	before := s.progress
	s.progress = &agentv1.MigrateSendProgress{
		BytesTotal: job.Total, BytesDone: job.Done, BytesRemaining: job.Remaining,
		BytesPerSecond: job.PerSecond, DirtyBytesPerSecond: job.DirtyPerSecond,
		Iteration: job.Iteration, ElapsedMs: uint64(job.Elapsed.Milliseconds()),
		SwitchingOver:   seen.Switching && !s.held && !s.paused,
		ThrottlePercent: job.Throttle, PausedAtDeadline: s.paused, StalledMs: before.GetStalledMs(),
	}
	disks := len(s.disks.only(copyLive)) > 0 && job.MemoryDone == 0
	switch {
	case s.progress.GetSwitchingOver():
		s.progress.Phase = phaseSwitching
	case disks:
		s.progress.Phase = phaseDisks
	default:
		s.progress.Phase = phaseMemory
	}
	s.report(before.GetPhase() != s.progress.GetPhase() || before.GetBytesDone() == 0 && job.Done > 0)
	switch {
	case job.Done == 0:
	case disks:
		atCopyingDisks()
	default:
		atCopying()
	}
}

// atCopying is where fault tests kill the source's agent in mid-copy.
func atCopying() {
	// gofail: var sendWhileCopying struct{}
}

func atCopyingDisks() {
	// gofail: var sendWhileCopyingDisks struct{}
}

// noteHeld keeps in the journal whether somebody has paused the guest.
func (s *sender) noteHeld(ctx context.Context, seen hypervisor.Sighting, job *hypervisor.Job) {
	now := s.held
	switch {
	case seen.State != outgoing || s.paused || !s.resume:
		return
	case !seen.Switching:
		now = false
	case held(job, time.Duration(s.spec.GetMaxDowntimeMs())*time.Millisecond):
		now = true
	}
	if now == s.held {
		return
	}
	if err := s.run.Mark(ctx, heldMark(s.heldMarks+1)); err != nil {
		return
	}
	s.heldMarks++
	s.held = now
	s.log.Info("somebody paused the guest, or let it run again", "paused", now)
	s.tell(s.side(s.cell.get().GetState(), s.cell.get().GetEnded(), s.cell.get().GetReason()))
}

// keepSpeed tells libvirt the limit where it has changed. Disks that are copied
// live keep the one that they began with.
func (s *sender) keepSpeed(ctx context.Context) {
	limit := s.limit()
	if limit == s.speed || limit == 0 {
		return
	}
	uuid := s.right.GetVmUuid()
	if s.formerSpeed == 0 {
		former, err := s.hypervisor().MaxSpeed(ctx, uuid)
		if err != nil {
			return
		}
		s.formerSpeed = former
	}
	if err := s.hypervisor().SetMaxSpeed(ctx, uuid, limit); err != nil {
		s.log.Warn("the migration keeps its former speed", "mib", s.speed, "error", err)
		return
	}
	s.log.Info("the migration's share of the bandwidth has changed", "mib", limit)
	s.speed = limit
}

// restoreSpeed undoes keepSpeed for a VM that stays.
func (s *sender) restoreSpeed(ctx context.Context) {
	if s.formerSpeed == 0 || ctx.Err() != nil || s.cell.get().GetState() == absent {
		return
	}
	if err := s.hypervisor().SetMaxSpeed(ctx, s.right.GetVmUuid(), s.formerSpeed); err != nil {
		s.log.Warn("the VM keeps the speed limit of its migration", "mib", s.speed, "error", err)
	}
}

// treat does what is to be done about a migration that does not get on. Each is
// in the journal first, so that the outcome is the same whoever dies.
func (s *sender) treat(ctx context.Context, job *hypervisor.Job, stalled time.Duration, seen hypervisor.Sighting) {
	if s.end != nil || s.cancelled() {
		return
	}
	switch remedyFor(s.spec, job.Elapsed, stalled, seen.Switching || s.suspended) {
	case pauseGuest:
		if err := s.run.Mark(ctx, markPaused); err != nil {
			return
		}
		s.paused = true
		s.log.Warn("the guest is paused: its deadline has passed", "elapsed", job.Elapsed)
		// Again with the next look if it did not succeed.
		s.suspended = s.act("pausing the guest", s.hypervisor().Suspend(ctx, s.right.GetVmUuid()))
	case endLate:
		s.endIt(ctx, codeDeadline)
	case endStalled:
		s.endIt(ctx, codeStalled)
	}
}

// endIt gives the migration up.
func (s *sender) endIt(ctx context.Context, code string) {
	if err := s.run.Mark(ctx, markEnding+code); err != nil {
		return
	}
	s.end = endOf(code, s.spec)
	s.log.Warn("the migration is given up", "why", s.end.GetErrorMessage())
	s.act("aborting", s.hypervisor().AbortJob(ctx, s.right.GetVmUuid()))
}

// cutLate closes the tunnel where libvirt does not come to an end though it was
// told to: it waits for the target's, which may itself wait for a QEMU that hangs.
// What that may leave on either side is settle's, as after any cut.
func (s *sender) cutLate() {
	switch {
	case s.aborted.IsZero():
		s.aborted = time.Now()
	case !s.cut && time.Since(s.aborted) >= abortWithin:
		s.log.Warn("libvirt does not give the migration up: the tunnel is closed", "after", abortWithin)
		s.cut = s.act("closing the tunnel", s.tunnel.Stop())
	}
}

func (s *sender) report(now bool) {
	p := &agentv1.MigrateSendProgress{
		BytesTotal: s.progress.GetBytesTotal(), BytesDone: s.progress.GetBytesDone(), BytesRemaining: s.progress.GetBytesRemaining(),
		BytesPerSecond: s.progress.GetBytesPerSecond(), DirtyBytesPerSecond: s.progress.GetDirtyBytesPerSecond(),
		Iteration: s.progress.GetIteration(), ElapsedMs: s.progress.GetElapsedMs(),
		SwitchingOver: s.progress.GetSwitchingOver(), Side: s.cell.get(), Phase: s.progress.GetPhase(),
		StalledMs: s.progress.GetStalledMs(), ThrottlePercent: s.progress.GetThrottlePercent(), PausedAtDeadline: s.paused,
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
