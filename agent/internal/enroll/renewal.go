package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Renewer renews the agent's certificate with whichever replica answers.
type Renewer struct {
	Home     Home
	Reloader *certs.Reloader
	// Servers gives the agents' listeners of the replicas, host:port, the
	// likeliest first.
	Servers func() []string
	Log     hclog.Logger

	mu sync.Mutex // one renewal, or change of the CAs, at a time
}

// callLimit bounds the renewal with one replica.
const callLimit = 15 * time.Second

// Run renews at two thirds of each certificate's life, at once where the
// present one is older, until the context ends; it then returns nil. Standing
// connections go on, new ones use the new certificate; the session moves to one by
// itself.
func (r *Renewer) Run(ctx context.Context) error {
	return certs.Renewal{Leaf: r.Reloader.Leaf, Renew: r.Renew, Log: r.Log}.Run(ctx)
}

// Renew renews now: it asks one replica after the other, puts the new
// certificate and the CAs in place and loads them.
func (r *Renewer) Renew(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, err := r.Home.pair().NextKey()
	if err != nil {
		return err
	}
	csr, err := certs.NewRequest(key, r.Reloader.Leaf().Subject.CommonName)
	if err != nil {
		return err
	}
	resp, err := r.ask(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew the agent's certificate: %w", err)
	}
	// The CAs first: the new certificate may come from one that is new.
	if _, err := certs.ParseCertificates(resp.GetCa()); err != nil {
		return fmt.Errorf("renew the agent's certificate: the answer's CA %w", err)
	}
	if err := certs.WriteFile(r.Home.Files().CA, resp.GetCa(), certs.PublicMode); err != nil {
		return err
	}
	if err := r.Home.pair().Install(resp.GetCertificate()); err != nil {
		return err
	}
	return r.Reloader.Reload()
}

func (r *Renewer) ask(ctx context.Context, csr []byte) (*agentv1.RenewResponse, error) {
	failure := errors.New("no replica answers")
	for _, server := range r.Servers() {
		resp, err := r.askOne(ctx, server, csr)
		if err == nil {
			return resp, nil
		}
		if ctx.Err() != nil || errdefs.Is(err, errdefs.Unauthenticated) {
			return nil, fmt.Errorf("%s: %w", server, err) // no other replica would say otherwise
		}
		failure = fmt.Errorf("%w; %s: %w", failure, server, err)
	}
	return nil, failure
}

func (r *Renewer) askOne(ctx context.Context, server string, csr []byte) (*agentv1.RenewResponse, error) {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(server, r.Reloader.ReplicaClient(host))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	resp, err := agentv1.NewEnrollServiceClient(conn).Renew(ctx, &agentv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, errdefs.FromStatus(err)
	}
	return resp, nil
}

// EnsureValid renews a certificate that has expired before anything else is
// done with it: no replica serves more than a renewal to an agent without a
// valid one. It tries until the context ends, and gives up at once when it is
// refused for good.
func (r *Renewer) EnsureValid(ctx context.Context) error {
	for wait := time.Second; certs.Expired(r.Reloader.Leaf(), time.Now()); wait = min(2*wait, time.Minute) {
		r.Log.Warn("the agent's certificate has expired and is renewed before anything else",
			"not_after", r.Reloader.Leaf().NotAfter.UTC())
		err := r.Renew(ctx)
		if err == nil {
			return nil
		}
		if errdefs.Is(err, errdefs.Unauthenticated) {
			return err
		}
		r.Log.Error("certificate not renewed", "error", err, "next_try_in", wait.String())
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
	return nil
}
