package controlplane

import (
	"context"
	"fmt"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/gateway"
)

// openGateway makes the gateway in front of the callers' server, and binds its
// socket, where there is to be one.
func (r *replica) openGateway(ctx context.Context) error {
	if r.cfg.GatewayListen == "" {
		return nil
	}
	var err error
	r.gateway, err = gateway.Listen(ctx, gateway.Config{
		Address: r.cfg.GatewayListen, TLS: r.own.CallersServer(), Server: r.callers.server,
		Strangers: api.NewStrangers(), Ready: r.health.ReadyHandler(), Log: r.cfg.Log.Named("gateway"),
	})
	if err != nil {
		return fmt.Errorf("--gateway-listen %s: %w", r.cfg.GatewayListen, err)
	}
	return nil
}
