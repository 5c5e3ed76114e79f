package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/debvisor/debvisor/agent/internal/pace"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// markRounds is in the journal once the snapshots were sent that are sent while
	// the guest runs.
	markRounds = "volumes-sent"
	// mostRounds is how many these are at most; the last of them left littleLeft
	// to be sent, or not much less than the one before.
	mostRounds = 12
	littleLeft = 8 << 20
	shrinks    = 0.7
	// partBytes is how much of a stream is in one message.
	partBytes = 256 << 10
	// streamAgain is between two tries, streamPatience for how long they may bring
	// nothing before libvirt is asked.
	streamAgain    = time.Second
	streamPatience = time.Minute
)

// replicate sends snapshots of the volumes while the guest runs, until what is left
// is little or does not shrink. Of a VM that is off there is only the last one.
func (s *sender) replicate(ctx context.Context) *agentv1.TaskOutcome {
	if len(s.volumes()) == 0 || s.offline && !s.resume || s.run.Marked(markRounds) {
		return nil
	}
	s.progress.Phase = phaseVolumes
	var before uint64
	for n := 1; n <= mostRounds; n++ {
		if out := s.round(ctx, nil); out != nil || ctx.Err() != nil {
			return out
		}
		// gofail: var sendAfterRound struct{}
		left, err := s.written(ctx)
		if err != nil {
			return refused(codeDisk, err)
		}
		if left <= littleLeft || n > 1 && float64(left) > shrinks*float64(before) {
			break
		}
		before = left
	}
	if err := s.run.Mark(ctx, markRounds); err != nil {
		return journalBroken()
	}
	return nil
}

// sendOff sends the last snapshots of a VM that is off, before libvirt is asked for
// its definition.
func (s *sender) sendOff(ctx context.Context) *agentv1.TaskOutcome {
	if !s.offline || len(s.volumes()) == 0 {
		return nil
	}
	s.progress.Phase = phaseLast
	if err := s.snap(ctx); err != nil {
		return refused(codeDisk, err)
	}
	out := s.round(ctx, func() *agentv1.TaskOutcome {
		if seen, ok := s.look(ctx); ok && seen.State != shutoff {
			return failure(codeStarted, "VM %s was started while its disks were copied", s.right.GetVmName())
		}
		return nil
	})
	if out == nil && ctx.Err() == nil {
		s.delivered = true
		s.tell(s.side(s.cell.get().GetState(), false, ""))
	}
	return out
}

// round sends a snapshot of each volume: those of s.last, or new ones. also tells
// why it is to end; nil: nothing besides.
func (s *sender) round(ctx context.Context, also func() *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	p := &posting{sender: s, begun: time.Now(), patience: streamPatience, limit: &pace.Pace{Limit: func() uint64 { return s.limit() << 20 }}}
	return p.run(ctx, func(ctx context.Context) error {
		if s.last == nil {
			return p.sendNew(ctx)
		}
		return p.sendAll(ctx, s.last)
	}, also)
}

func (s *sender) volumes() []zvol.Volume {
	var out []zvol.Volume
	for _, d := range s.disks.only(increments) {
		out = append(out, s.volume(d))
	}
	return out
}

func (s *sender) written(ctx context.Context) (uint64, error) {
	var sum uint64
	for _, v := range s.volumes() {
		n, err := v.Written(ctx)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// snap takes the last snapshots, of a guest that has stopped: new ones in each
// process, as nobody knows what was written since those of another.
func (s *sender) snap(ctx context.Context) error {
	last, err := snapAll(ctx, s.volumes())
	if err == nil {
		s.last = last
	}
	return err
}

func snapAll(ctx context.Context, volumes []zvol.Volume) ([]*agentv1.ZfsSnapshotID, error) {
	var out []*agentv1.ZfsSnapshotID
	for _, v := range volumes {
		ref, err := v.Snap(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, &agentv1.ZfsSnapshotID{Dataset: ref.Dataset, Name: ref.Name, Guid: ref.GUID})
	}
	return out, nil
}

// snapLast is snap for a source that is gone, for the first time that it is seen to be.
func (s *sender) snapLast(ctx context.Context) {
	if len(s.volumes()) == 0 || s.last != nil || s.nobodyWaits() {
		return
	}
	// gofail: var sendBeforeLastSnapshots struct{}
	s.act("taking the last snapshots", s.snap(ctx))
}

// nobodyWaits tells that the target has no copy to which anything is owed.
func (s *sender) nobodyWaits() bool {
	switch s.other.GetState() {
	case running:
		return true
	case absent:
		return s.other.GetEnded()
	case paused, shutoff:
		if s.other.GetEnded() && !s.other.GetBehind() {
			return true // it told so once it had all, perhaps to a former process
		}
		fallthrough
	default:
		return s.cancelled() && s.other.GetReason() != "" // it has given up
	}
}

// deliverLast sends what the target's copy must have before it may run. It is true
// once the target has it, or once nothing is owed any more.
func (s *sender) deliverLast(ctx context.Context) bool {
	if len(s.volumes()) == 0 || s.delivered || s.nobodyWaits() {
		return true
	}
	if s.last == nil {
		if !s.act("taking the last snapshots", s.snap(ctx)) {
			return false
		}
		was := s.cell.get()
		s.tell(s.side(was.GetState(), was.GetEnded(), was.GetReason()))
	}
	s.progress.Phase = phaseLast
	p := &posting{sender: s, begun: time.Now(), final: true}
	if out := p.run(ctx, func(ctx context.Context) error { return p.sendAll(ctx, s.last) }, nil); out != nil || ctx.Err() != nil {
		s.log.Error("the last of the disks was not sent", "error", out.GetErrorMessage())
		s.progress.Phase = phaseLast + ": " + out.GetErrorMessage()
		s.report(true)
		return false
	}
	s.delivered = true
	// gofail: var sendAfterLastSnapshots struct{}
	return true
}

// clearVolumes destroys the snapshots that the migration has made here, once it has
// ended.
func (s *sender) clearVolumes(ctx context.Context) {
	for _, v := range s.volumes() {
		for try := 1; ; try++ {
			if s.act("removing snapshots of "+v.Disk.GetZfsDataset(), v.Clear(ctx)) || try == resumeTries || !s.await(ctx, nil, resumeAgain) {
				break
			}
		}
	}
}

// posting is streams of volumes on their way.
type posting struct {
	*sender
	begun time.Time
	limit *pace.Pace
	// patience is how long it may be tried in vain; 0: the caller tries again.
	patience time.Duration
	// final: nothing but the end of the task breaks it off.
	final       bool
	done, total atomic.Uint64
}

// run does work beside the watch over all else; the outcome is why it came to
// nothing.
func (p *posting) run(ctx context.Context, work func(context.Context) error, also func() *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = work(ctx)
	}()
	defer func() {
		cancel()
		<-done
		p.sent += p.done.Load()
	}()
	for {
		if !p.await(ctx, done, statsEvery) {
			return nil
		}
		select {
		case <-done:
			if err != nil {
				return refused(codeDisk, err)
			}
			return nil
		default:
		}
		p.tellFigures()
		switch {
		case p.final && p.nobodyWaits():
			return failure(codeForsaken, "the target waits for nothing any more")
		case p.final:
		case p.cancelled():
			return cancelled()
		case p.other.GetEnded():
			return p.forsaken()
		case p.spec.GetDeadlineMs() > 0 && time.Since(p.begun) > time.Duration(p.spec.GetDeadlineMs())*time.Millisecond:
			return endOf(codeDeadline, p.spec)
		}
		if also != nil {
			if out := also(); out != nil {
				return out
			}
		}
	}
}

func (p *posting) tellFigures() {
	done, total := p.done.Load(), p.total.Load()
	elapsed := time.Since(p.begun)
	g := p.progress
	g.BytesDone, g.BytesTotal = done, max(done, total)
	g.BytesRemaining, g.ElapsedMs = g.GetBytesTotal()-done, uint64(elapsed.Milliseconds())
	g.BytesPerSecond = uint64(float64(done) / elapsed.Seconds())
	p.report(false)
}

func (p *posting) sendNew(ctx context.Context) error {
	refs, err := snapAll(ctx, p.volumes())
	if err != nil {
		return err
	}
	return p.sendAll(ctx, refs)
}

// sendAll sends until the target has those snapshots. What a cut connection has
// brought is gone on with.
func (p *posting) sendAll(ctx context.Context, refs []*agentv1.ZfsSnapshotID) error {
	for i, v := range p.volumes() {
		progress := time.Now()
		for {
			before := p.done.Load()
			has, err := p.sendOne(ctx, v, refs[i])
			if has {
				break
			}
			if p.done.Load() > before {
				progress = time.Now()
			}
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil:
				continue
			case !errdefs.Is(err, errdefs.Unavailable) || time.Since(progress) >= p.patience:
				return err
			}
			p.log.Warn("a stream of a volume broke off, and is tried again", "dataset", v.Disk.GetZfsDataset(), "error", err)
			timer := time.NewTimer(streamAgain)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
	}
	return nil
}

// sendOne asks the target what it has of a volume and sends one stream; has: there
// was nothing left to send.
func (p *posting) sendOne(ctx context.Context, v zvol.Volume, to *agentv1.ZfsSnapshotID) (has bool, err error) {
	conn, err := p.m.peers.conn(p.right.GetTargetNode(), p.spec.GetTargetPeerAddress())
	if err != nil {
		return false, err
	}
	peer := agentv1.NewPeerServiceClient(conn)
	there, err := peer.LookVolume(ctx, &agentv1.LookVolumeRequest{TaskId: p.right.GetReceiveTaskId(), Target: v.Disk.GetTarget()})
	if err != nil {
		return false, ofPeer(err)
	}
	next, has, err := v.Next(ctx, there, refOf(to))
	if err != nil || has {
		return has, err
	}
	if n, err := v.Bytes(ctx, next); err == nil {
		p.total.Store(p.done.Load() + n)
	}
	return false, p.stream(ctx, peer, v, next)
}

func (p *posting) stream(ctx context.Context, peer agentv1.PeerServiceClient, v zvol.Volume, next zvol.Stream) (err error) {
	ctx, cancel := context.WithCancel(ctx) // the target keeps what has come of one that is cut
	defer cancel()
	from, err := v.Send(ctx, next)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			cancel()
			_ = from.Close() // it is broken off
		}
	}()
	call, err := peer.TakeVolume(ctx)
	if err != nil {
		return ofPeer(err)
	}
	part := &agentv1.VolumePart{
		TaskId: p.right.GetReceiveTaskId(), Target: v.Disk.GetTarget(),
		FromGuid: next.From, ToGuid: next.To.GUID, To: next.To.Name, Resumed: next.Token != "",
	}
	for {
		switch err := call.Send(part); {
		case errors.Is(err, io.EOF): // the target has said why
			_, err = call.CloseAndRecv()
			return ofPeer(err)
		case err != nil:
			return ofPeer(err)
		}
		p.done.Add(uint64(len(part.GetData())))
		buffer := make([]byte, p.limit.Piece(partBytes)) // gRPC may still have the one before
		n, err := io.ReadFull(from, buffer)
		if n > 0 {
			if err := p.limit.Wait(ctx, n); err != nil {
				return err
			}
			part = &agentv1.VolumePart{Data: buffer[:n]}
			continue
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the stream of %s: %w", v.Disk.GetZfsDataset(), err)
		}
		break
	}
	closed = true
	if err := from.Close(); err != nil {
		return err
	}
	_, err = call.CloseAndRecv()
	return ofPeer(err)
}

// ofPeer is what the target's agent answered. One that was just restarted does not
// know the task yet.
func ofPeer(err error) error {
	if err == nil {
		return nil
	}
	e := errdefs.FromStatus(err)
	if e.Kind == errdefs.NotFound || e.Kind == errdefs.Cancelled {
		return errdefs.New(errdefs.Unavailable, e.Code, "%s", e.Message)
	}
	return e
}
