package session

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// queueLength is how many messages may wait for the worker's disk before the
// session is given up (a new one begins with all of them).
const queueLength = 256

const defaultInterval = 2 * time.Second

// link is one open stream. serve sends; one goroutine receives, another hands
// on to the worker what was received, and only that one waits for a disk.
type link struct {
	cfg      Config
	shown    *x509.Certificate // what the connection was dialled with
	stream   agentv1.SessionService_ConnectClient
	interval time.Duration
	cancel   context.CancelCauseFunc
	queue    chan *agentv1.LeaderMessage
	watchdog *time.Timer
	pulse    pulse
	asked    *asked
	trust    Trust  // nil: the leader does not understand it
	seq      uint64 // of inventories
}

func newLink(cfg Config, shown *x509.Certificate, stream agentv1.SessionService_ConnectClient, interval time.Duration, cancel context.CancelCauseFunc) *link {
	if interval <= 0 {
		interval = defaultInterval
	}
	return &link{
		cfg: cfg, shown: shown, stream: stream, interval: interval, cancel: cancel,
		queue: make(chan *agentv1.LeaderMessage, queueLength), asked: newAsked(cfg.Answers),
	}
}

// serve keeps the stream until it breaks, and tells why. When it returns,
// nothing of the stream runs any more.
func (l *link) serve(ctx context.Context) error {
	l.watchdog = time.AfterFunc(ackTimeout, func() { l.cancel(fmt.Errorf("no heartbeat was answered for %s", ackTimeout)) })
	defer l.watchdog.Stop()
	var group sync.WaitGroup
	group.Go(l.receive)
	group.Go(func() { l.obey(ctx) })
	l.send(ctx)
	group.Wait()
	l.asked.group.Wait()
	return context.Cause(ctx)
}

// send sends what is due until ctx ends.
func (l *link) send(ctx context.Context) {
	beat := time.NewTimer(0)
	defer beat.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	l.sendInventory(true)
	var trusts <-chan struct{}
	if l.trust != nil {
		l.sendTrust()
		trusts = l.trust.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			l.sendHeartbeat(beat)
		case <-l.cfg.Host.Changed():
			l.sendInventory(false)
		case <-trusts:
			l.sendTrust()
		case <-l.cfg.Work.Wake():
			l.sendReports(due)
		case <-due.C:
			l.sendReports(due)
		case a := <-l.asked.answers:
			select { // a heartbeat that is due does not wait for parts of answers
			case <-beat.C:
				l.sendHeartbeat(beat)
			default:
			}
			l.up(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Answer{Answer: a}})
		}
	}
}

// sendHeartbeat sends one and has the next one due.
func (l *link) sendHeartbeat(beat *time.Timer) {
	l.cfg.rounds.mark()
	if !l.cfg.Leaf().Equal(l.shown) {
		l.cancel(errRenewed)
		return
	}
	l.up(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Heartbeat{Heartbeat: &agentv1.Heartbeat{
		Seq: l.pulse.sent(time.Now()), Health: l.cfg.Host.Health(l.pulse.rtt()),
	}}})
	beat.Reset(jittered(l.interval, 0.1))
}

func (l *link) sendTrust() {
	l.up(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Trust{Trust: l.trust.Tell()}})
}

func (l *link) sendInventory(complete bool) {
	inv := l.cfg.Host.Inventory(complete)
	if inv == nil {
		return
	}
	l.seq++
	inv.Seq = l.seq
	l.up(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: inv}})
}

func (l *link) sendReports(due *time.Timer) {
	reports, next := l.cfg.Work.Due()
	for _, r := range reports {
		l.up(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Report{Report: r}})
	}
	due.Stop()
	if !next.IsZero() {
		due.Reset(time.Until(next))
	}
}

// up sends one message. It may wait for the network, no longer than the
// watchdog lets it. Why a send failed is for receive to tell.
func (l *link) up(m *agentv1.AgentMessage) {
	if err := l.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		l.cancel(fmt.Errorf("sending to the leader: %w", err))
	}
}

// receive takes what comes down until the stream ends.
func (l *link) receive() {
	for {
		m, err := l.stream.Recv()
		if err != nil {
			l.cancel(fmt.Errorf("the stream ended: %w", errdefs.FromStatus(err)))
			return
		}
		if m.GetLeaving() != nil {
			l.cancel(errLeaving)
			return
		}
		if ack := m.GetHeartbeatAck(); ack != nil {
			if term := task.TermOf(m.GetTerm()); term.Less(l.cfg.Work.HighestTerm()) {
				l.cancel(fmt.Errorf("the leader of term %s has been replaced", term))
				return
			}
			l.pulse.answered(ack.GetSeq(), time.Now())
			l.watchdog.Reset(ackTimeout)
			continue
		}
		select {
		case l.queue <- m:
		default:
			l.cancel(errors.New("the journal does not keep up with the leader"))
			return
		}
	}
}

// obey hands on what was received, in its order, until ctx ends.
func (l *link) obey(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-l.queue:
			if ctx.Err() != nil {
				return
			}
			if err := l.hand(ctx, m); err != nil {
				l.cancel(err)
				return
			}
		}
	}
}

func (l *link) hand(ctx context.Context, m *agentv1.LeaderMessage) error {
	if err := l.cfg.Work.Admit(task.TermOf(m.GetTerm())); err != nil {
		l.cfg.Log.Warn("message refused", "kind", fmt.Sprintf("%T", m.GetKind()), "error", err)
		return err
	}
	switch k := m.GetKind().(type) {
	case *agentv1.LeaderMessage_Task:
		return l.cfg.Work.Accept(k.Task)
	case *agentv1.LeaderMessage_ReportAck:
		return l.cfg.Work.Acknowledge(k.ReportAck.GetTaskId())
	case *agentv1.LeaderMessage_CancelTask:
		l.cfg.Work.Cancel(k.CancelTask.GetTaskId())
	case *agentv1.LeaderMessage_Ask:
		l.asked.ask(ctx, k.Ask)
	case *agentv1.LeaderMessage_AskNext:
		l.asked.next(k.AskNext)
	case *agentv1.LeaderMessage_PeerSide:
		l.cfg.Work.Relay(k.PeerSide.GetTaskId(), k.PeerSide.GetSide())
	case *agentv1.LeaderMessage_TrustBundle:
		if l.trust != nil {
			l.trust.Take(k.TrustBundle)
		}
	default:
		l.cfg.Log.Warn("message of an unknown kind ignored; the leader may be newer than this agent")
	}
	return nil
}
