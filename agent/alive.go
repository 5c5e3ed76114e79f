package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/debvisor/debvisor/agent/internal/session"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/shared/obs"
)

// leaderless is what the service manager is told while there is no session.
const leaderless = "looking for the leader"

// watchOver keeps the agent's pulse, by which the service manager is told that
// it is ready and that it works: the worker's loop and the session's go round,
// and the listener for other agents takes connections. It is the last that is
// started and the first that stops.
func watchOver(cfg Config, work *worker.Worker, link *session.Session, others *peers, self *tls.Config) func(context.Context) error {
	log := cfg.Log.Named("watchdog")
	pulse := &obs.Pulse{
		Notify: cfg.Notify,
		Check: func(ctx context.Context) error {
			return errors.Join(work.Ping(ctx), link.Alive(), others.answer(ctx, self))
		},
		Failed: func(err error) { log.Error("this agent does not do its work", "error", err) },
	}
	cfg.Notify.Status(leaderless)
	return func(ctx context.Context) error {
		err := pulse.Run(ctx, nil)
		cfg.Notify.Stopping("stopping")
		return err
	}
}

// answer tells whether the listener takes connections. That it refuses our own
// certificate, which may have ended, is an answer, too.
func (p *peers) answer(ctx context.Context, self *tls.Config) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.listener.Addr().String())
	if err != nil {
		return fmt.Errorf("the listener for other agents does not answer: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := tls.Client(conn, self).HandshakeContext(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("the listener for other agents does not answer: %w", err)
	}
	return nil
}
