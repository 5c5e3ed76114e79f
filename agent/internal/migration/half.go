package migration

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// lookEvery is how often the domain is looked at though no event said so.
const lookEvery = 2 * time.Second

// half is one task at work: what sending and receiving have in common.
type half struct {
	m      *Migration
	log    hclog.Logger
	run    worker.Run
	right  *agentv1.MigrationRight
	taskID string
	// operation is what migrates.
	operation string
	resume    bool // the guest is to run in the end
	offline   bool // the VM is off while it moves
	disks     diskset
	observe   bool // another journal's task: begin nothing

	cell   *sideCell
	tunnel *tunnel.Tunnel
	bell   chan struct{} // the domain may have changed
	kick   chan struct{} // ask the other agent now
	news   chan *agentv1.Side
	other  *agentv1.Side // what was last heard of the other side
	heard  time.Time     // when

	upsets int // of libvirtd, when this began
	stop   func()
}

// begin makes half a task. Whatever it starts ends with h.stop.
func (m *Migration) begin(ctx context.Context, t *agentv1.Task, right *agentv1.MigrationRight, run worker.Run, peer, address, peerTask string, first agentv1.SideState) *half {
	ctx, cancel := context.WithCancel(ctx)
	bell, unwatch := m.watch(right.GetVmUuid())
	h := &half{
		m: m, run: run, right: right, taskID: t.GetId(), operation: t.GetOperationId(), observe: t.GetObserveOnly(),
		log:    worker.IDs(t).Logger(m.cfg.Log).With("vm", right.GetVmName()),
		cell:   m.sides.begin(t.GetId(), peer, &agentv1.Side{State: first}),
		tunnel: m.cfg.Tunnels.Find(right.GetId()),
		bell:   bell, kick: make(chan struct{}, 1), news: make(chan *agentv1.Side),
		other: &agentv1.Side{}, upsets: m.upset(),
	}
	a := &asker{peers: m.peers, node: peer, address: address, taskID: peerTask, log: h.log, news: h.news, kick: h.kick}
	var group sync.WaitGroup
	group.Go(func() { a.run(ctx) })
	h.stop = func() {
		cancel()
		group.Wait()
		unwatch()
		h.cell.end(m.sides.now())
	}
	return h
}

// hear takes what was said of the other side. What has ended does not begin
// again: an answer that says so is an old one that was overtaken.
func (h *half) hear(side *agentv1.Side) {
	if h.other.GetEnded() && !side.GetEnded() {
		return
	}
	if viewOf(h.other) != viewOf(side) {
		h.log.Info("the other side", "state", side.GetState(), "ended", side.GetEnded(), "reason", side.GetReason())
	}
	h.other, h.heard = side, time.Now()
}

// await waits for something to look at: the domain, the other side, an end of
// the task, extra, or some time. It is false when ctx has ended.
func (h *half) await(ctx context.Context, extra <-chan struct{}, atMost time.Duration) bool {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	cancelled := h.run.Cancelled()
	if h.cancelled() {
		cancelled = nil // known: it would not wait any more
	}
	select {
	case <-ctx.Done():
		return false
	case <-h.bell:
	case side := <-h.news:
		h.hear(side)
	case side := <-h.run.Relayed():
		h.hear(side)
	case <-cancelled:
	case <-extra:
	case <-timer.C:
	}
	return true
}

func (h *half) cancelled() bool {
	select {
	case <-h.run.Cancelled():
		return true
	default:
		return false
	}
}

// libvirtLost tells whether libvirtd went away while this was at work.
func (h *half) libvirtLost() bool { return h.m.upset() != h.upsets }

// look looks at the domain until libvirt answers; ok is false when ctx ended
// before it did.
func (h *half) look(ctx context.Context) (s hypervisor.Sighting, ok bool) {
	for {
		s, err := h.m.cfg.Hypervisor.Look(ctx, h.right.GetVmUuid())
		if err == nil {
			return s, true
		}
		h.log.Warn("cannot look at the VM", "error", err)
		if !h.await(ctx, nil, lookEvery) {
			return s, false
		}
	}
}

// close ends this side's tunnel for good. While that fails nothing may be
// concluded from what is not there.
func (h *half) close(ctx context.Context) bool {
	for {
		err := h.tunnel.Close()
		if err == nil {
			return true
		}
		h.log.Error("the tunnel does not close", "error", err)
		if !h.await(ctx, nil, lookEvery) {
			return false
		}
	}
}

// verdict is settle's, or settleOffline's.
func (h *half) verdict(source, target view, resume bool) action {
	if h.offline {
		return settleOffline(source, target, resume)
	}
	return settle(source, target, resume)
}

// startStep is the next step of starting a VM that is off, or was started and not
// let run: a guest whose CPUs stood still all the time has not run.
func (h *half) startStep(ctx context.Context, seen hypervisor.Sighting) error {
	if seen.State == shutoff {
		if !worker.OfThisBoot(h.run, h.m.cfg.BootID) {
			// Somebody may have said that this node is off, and had the VM brought back elsewhere.
			return errdefs.New(errdefs.FailedPrecondition, "HOST_RESTARTED", "the host was restarted while VM %s was moved: it is not started without a new order", h.right.GetVmName())
		}
		return h.hypervisor().StartPaused(ctx, h.right.GetVmUuid())
	}
	if err := h.run.Mark(ctx, markLetRun); err != nil {
		return err
	}
	return h.hypervisor().Resume(ctx, h.right.GetVmUuid())
}

func (h *half) act(doing string, err error) (done bool) {
	if err != nil {
		h.log.Error("left to be done", "what", doing, "error", err)
	}
	return err == nil
}

func (h *half) hypervisor() *hypervisor.Hypervisor { return h.m.cfg.Hypervisor }
