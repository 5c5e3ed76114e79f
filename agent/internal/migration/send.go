package migration

import (
	"context"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// markStarted is in the journal before libvirt is asked to migrate.
	markStarted = "started"
	// markShutting is there before the guest is asked to shut down: what is off
	// from then on is to be started again if nothing comes of the migration.
	markShutting = "shutting-down"
	// markGivenUp is there before such a guest is started again: the migration
	// is not taken up a second time.
	markGivenUp = "given-up"
	// markDisks is there once our own copy of disks has come to its end.
	markDisks = "disks-copied"
	// markLetRun is there before a VM that was started is let run: if it is off
	// afterwards, it has run.
	markLetRun = "let-run"
	// markRan is there once a VM that should be off was seen not to be, after its
	// disks were copied.
	markRan = "ran-meanwhile"
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
	defer k.m.leaving.join(h.bell)()
	h.resume, h.offline, h.disks = spec.GetResume(), spec.GetOffline(), spec.GetDisks()
	s := &sender{half: h, spec: spec, progress: &agentv1.MigrateSendProgress{}}
	s.recall()
	out := s.do(ctx)
	s.restoreSpeed(ctx)
	if out != nil {
		s.clearVolumes(ctx)
	}
	if out != nil {
		out.Side, out.Bytes = h.cell.get(), s.sent+s.progress.GetBytesDone()
		if out.GetErrorCode() == "" {
			out.Bytes += s.progress.GetBytesRemaining() // it has come since
		}
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
	// sent is what our own copy of disks sent, bytes.
	sent uint64

	stall stall
	// speed is the limit that libvirt was told last, MiB/s, and formerSpeed the
	// one before the first time, 0 where there was none.
	speed, formerSpeed uint64
	// held: somebody paused the guest while it was copied; heldMarks counts what
	// the journal knows of that. paused: we did, or were about to; suspended: this
	// process has.
	held, paused, suspended bool
	heldMarks               int
	// end is why the migration was given up; nil: it was not.
	end *agentv1.TaskOutcome
	// aborted is when libvirt was first told to give up; cut: the tunnel was
	// closed because it did not.
	aborted time.Time
	cut     bool
	// last are the last snapshots of the volumes, delivered whether the target has
	// them.
	last      []*agentv1.ZfsSnapshotID
	delivered bool
	// off is when the guest was seen to have shut down.
	off time.Time
}

func (s *sender) do(ctx context.Context) *agentv1.TaskOutcome {
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
	for _, step := range []func(context.Context) *agentv1.TaskOutcome{s.refuse, s.openTunnel, s.noteFiles, s.replicate, s.shutDown, s.copyDisks, s.sendOff, s.ready} {
		out := step(ctx)
		if ctx.Err() != nil {
			return nil, false
		}
		if out != nil {
			return s.giveUp(ctx, out), false
		}
	}
	return nil, s.migrate(ctx)
}

// openTunnel makes this side's end.
func (s *sender) openTunnel(ctx context.Context) *agentv1.TaskOutcome {
	uid, gid := 0, 0 // libvirtd connects, for one stream of memory
	var err error
	if s.spec.GetParallelConnections() > 0 || len(s.disks.only(copyLive)) > 0 {
		if uid, gid, err = s.hypervisor().QEMUOwner(ctx); err != nil {
			return refused(codeTunnel, err)
		}
	}
	found := s.tunnel
	s.tunnel, err = s.m.cfg.Tunnels.Open(ctx, tunnel.Config{
		Role: tunnel.Source, TaskID: s.taskID, RightID: s.right.GetId(), ExpiresAt: time.Unix(s.right.GetExpiresAt(), 0),
		VMUUID: s.right.GetVmUuid(), VMName: s.right.GetVmName(), Cluster: s.m.cfg.Cluster, Peer: s.right.GetTargetNode(),
		Certificates: s.m.cfg.Files, Address: s.spec.GetTunnelAddress(),
		QEMUUser: uid, QEMUGroup: gid, Offline: s.offline,
	})
	if err != nil {
		s.tunnel = found
		return refused(codeTunnel, err)
	}
	if err := s.hypervisor().DisableAutostart(ctx, s.right.GetVmUuid()); err != nil {
		return refused(codeInternal, err)
	}
	return nil
}

// noteFiles has the journal know which files go when the VM has gone.
func (s *sender) noteFiles(ctx context.Context) *agentv1.TaskOutcome {
	for _, d := range s.disks.leftovers() {
		if zvol.Is(d) {
			if err := s.noteVolume(ctx, d); err != nil {
				return refused(codeDisk, err)
			}
			continue
		}
		mark, err := fileMark(d)
		if err != nil {
			return refused(codeDisk, err)
		}
		if err := s.run.Mark(ctx, mark); err != nil {
			return journalBroken()
		}
	}
	return nil
}

// ready looks once more before libvirt is asked.
func (s *sender) ready(ctx context.Context) *agentv1.TaskOutcome {
	if s.offline {
		seen, ok := s.look(ctx)
		if ok && seen.State != shutoff {
			return failure(codeStarted, "VM %s was started while its disks were copied", s.right.GetVmName())
		}
	}
	if s.cancelled() {
		return cancelled()
	}
	if err := s.run.Mark(ctx, markStarted); err != nil {
		return journalBroken()
	}
	return nil
}

// refuse tells why the migration is not begun.
func (s *sender) refuse(ctx context.Context) *agentv1.TaskOutcome {
	if s.run.Marked(markGivenUp) {
		return broken(codeInterrupted, "the source's agent was restarted while it gave up")
	}
	if s.cancelled() {
		return cancelled()
	}
	seen, ok := s.look(ctx)
	if !ok {
		return nil
	}
	if seen.State != absent && !seen.Persistent {
		// When such a guest ends it is absent, which must only ever mean that
		// libvirt has handed it over.
		return failure(codeTransient, "VM %s has no persistent definition: define it first (virsh define)", s.right.GetVmName())
	}
	if !s.asOrdered(seen.State) {
		return failure(codeNotRunning, "VM %s is not as it was when the migration was ordered (%s)", s.right.GetVmName(), seen.State)
	}
	if !s.offline {
		return nil
	}
	switch saved, err := s.hypervisor().Saved(ctx, s.right.GetVmUuid()); {
	case err != nil:
		return refused(codeInternal, err)
	case saved:
		return failure(codeSaved, "the memory of VM %s was saved on the source and would be lost: start it there first, or drop it (virsh managedsave-remove)", s.right.GetVmName())
	}
	return nil
}

// asOrdered tells whether a VM is as the order has it, or as a former process of
// this agent left it.
func (s *sender) asOrdered(state agentv1.SideState) bool {
	switch state {
	case running:
		return s.resume
	case paused:
		return !s.resume && !s.offline
	case shutoff:
		return s.offline && (!s.resume || s.run.Marked(markShutting))
	default:
		return false
	}
}

// giveUp ends a migration that libvirt was never asked for: as nothing will come
// of it, the side has ended. A guest that was shut down for it is started again:
// nothing of it can be at the target.
func (s *sender) giveUp(ctx context.Context, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if s.offline && s.resume && s.run.Marked(markShutting) {
		if err := s.run.Mark(ctx, markGivenUp); err != nil {
			return nil
		}
		if !s.startAgain(ctx, out) {
			return nil
		}
	}
	if !s.close(ctx) {
		return nil
	}
	seen, ok := s.look(ctx)
	if !ok {
		return nil
	}
	s.tell(s.side(seen.State, true, out.GetErrorMessage()))
	return out
}

// startAgain has a guest run that was shut down; it is false when ctx has ended.
// That it does not start is added to the outcome.
func (s *sender) startAgain(ctx context.Context, out *agentv1.TaskOutcome) bool {
	resumed := false
	for try := 1; ; try++ {
		seen, ok := s.look(ctx)
		if !ok {
			return false
		}
		switch {
		case resumed && seen.State == paused:
			return true // it ran: something else has it stand still, such as a full disk
		case seen.State == incoming: // it starts
			if !s.await(ctx, nil, resumeAgain) {
				return false
			}
			continue
		case seen.State != shutoff && seen.State != paused, seen.State == shutoff && s.run.Marked(markLetRun):
			return true
		}
		err := s.startStep(ctx, seen)
		if err == nil {
			resumed = seen.State == paused
			continue
		}
		s.log.Error("the guest cannot be started again", "error", err)
		if try >= resumeTries && !errdefs.Is(err, errdefs.Unavailable) {
			out.ErrorMessage += "; and it could not be started again: " + err.Error()
			return true
		}
		if !s.await(ctx, nil, resumeAgain) {
			return false
		}
	}
}

// side is what is told of this side.
func (s *sender) side(state agentv1.SideState, ended bool, reason string) *agentv1.Side {
	side := &agentv1.Side{State: state, Ended: ended, Reason: reason, Held: s.held, Last: s.last}
	if was := s.cell.get(); was.GetState() == state && was.GetEnded() == ended {
		side.StillMs = was.GetStillMs() // as it was first said
	} else if !s.off.IsZero() && state == absent {
		side.StillMs = uint64(time.Since(s.off).Milliseconds())
	}
	return side
}

// recall is what the journal knows of the guest.
func (s *sender) recall() {
	for s.run.Marked(heldMark(s.heldMarks + 1)) {
		s.heldMarks++
	}
	s.held = s.heldMarks%2 == 1
	s.paused = s.run.Marked(markPaused)
	for _, code := range []string{codeDeadline, codeStalled} {
		if s.run.Marked(markEnding + code) {
			s.end = endOf(code, s.spec)
		}
	}
}

func heldMark(n int) string { return "held-" + strconv.Itoa(n) }

func (s *sender) move() hypervisor.Move {
	s.speed = s.limit()
	live := s.disks.only(copyLive)
	return hypervisor.Move{
		LibvirtURI: s.tunnel.LibvirtURI(), DataURI: s.tunnel.DataURI(), BandwidthMiB: s.speed,
		MaxDowntime: time.Duration(s.spec.GetMaxDowntimeMs()) * time.Millisecond, Offline: s.offline,
		Disks: live.targets(), DisksURI: s.tunnel.DisksURI(),
		Parallel: s.spec.GetParallelConnections(), AutoConverge: s.spec.GetAutoConverge(),
	}
}

// limit is how fast this migration may go now, MiB/s; 0: no limit.
func (s *sender) limit() uint64 {
	return share(s.spec.GetBandwidthMib(), s.spec.GetNodeBandwidthMib(), s.m.leaving.count())
}
