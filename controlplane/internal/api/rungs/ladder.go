package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/shared/rpc"
)

// The names of the rungs, in their order.
const (
	plaintext = "plaintext"
	mtls      = "mtls"
	whole     = "chain"
)

// rung is a server before it listens.
type rung struct {
	name   string
	server *grpc.Server
}

// ladder makes the servers: two that are bare, as users of grpc-go set them up,
// then ours with one stage more each, and last the chain itself, which has also
// trace ids, recovery, a guard and errors with details.
func (h *house) ladder() ([]rung, error) {
	creds, err := h.bareTLS()
	if err != nil {
		return nil, err
	}
	rungs := []rung{{plaintext, grpc.NewServer()}, {mtls, grpc.NewServer(grpc.Creds(creds))}}
	var stages []stage
	for _, next := range []struct {
		name  string
		stage stage
	}{
		{"authn", h.authenticate}, {"authz", h.authorize}, {"limit", h.count}, {"validate", h.validate}, {"audit", h.record},
	} {
		stages = append(stages, next.stage)
		server, err := h.server(rpc.ServerConfig{Unary: interceptor(stages), Stream: h.chain.Stream})
		if err != nil {
			return nil, err
		}
		rungs = append(rungs, rung{next.name, server})
	}
	server, err := h.server(rpc.ServerConfig{Unary: h.chain.Unary, Stream: h.chain.Stream, Tap: h.chain.Tap})
	return append(rungs, rung{whole, server}), err
}

func (h *house) server(cfg rpc.ServerConfig) (*grpc.Server, error) {
	cfg.TLS, cfg.Age = h.tls, true
	server, err := rpc.NewServer(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a server: %w", err)
	}
	return server, nil
}

// passing is one call on its way through stages.
type passing struct {
	ctx    context.Context
	method string
	began  time.Time
	caller *authn.Caller
	req    any
	// last is done when the handler has answered.
	last func()
}

// stage is what one rung adds.
type stage func(*passing) error

func interceptor(stages []stage) grpc.UnaryServerInterceptor {
	stages = append([]stage(nil), stages...)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		p := passing{ctx: ctx, method: info.FullMethod, began: time.Now(), req: req}
		for _, s := range stages {
			if err := s(&p); err != nil {
				return nil, err
			}
		}
		resp, err := handler(p.ctx, req) //nolint:contextcheck // it is ctx with what the stages added
		if p.last != nil {
			p.last()
		}
		return resp, err
	}
}

func (h *house) authenticate(p *passing) error {
	caller, _, err := h.authn.Authenticate(p.ctx, h.view.Snapshot, p.began)
	if err != nil {
		return err
	}
	p.caller, p.ctx = caller, authn.With(p.ctx, caller)
	return h.authn.Check(caller, h.view.Snapshot, p.began)
}

func (h *house) authorize(p *passing) error {
	return h.authz.Authorize(h.view.Snapshot, p.caller, p.method, p.began)
}

func (h *house) count(p *passing) error {
	perMinute, burst, unlimited := h.authz.Grant(h.view.Snapshot, p.caller).Limit()
	return h.limit.Take(p.caller.Name, limit.Rate{PerMinute: perMinute, Burst: burst, Unlimited: unlimited}, p.began)
}

func (h *house) validate(p *passing) error { return h.check.Check(p.req) }

func (h *house) record(p *passing) error {
	peer := rpc.Address(p.ctx)
	h.trail.Add(&audit.Event{Time: p.began, Kind: audit.Call, Principal: p.caller.Name, Peer: peer, Method: p.method})
	p.last = func() {
		now := time.Now()
		h.trail.Add(&audit.Event{
			Time: now, Kind: audit.Result, Principal: p.caller.Name, Peer: peer, Method: p.method, Code: "OK", Duration: now.Sub(p.began),
		})
	}
	return nil
}
