package migration

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/tunnel"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// open makes the tunnel, or finds it. That it cannot be made is no end yet:
// settle ends what the source may have begun through a former one.
func (r *receiver) open(ctx context.Context) bool {
	err := r.tryOpen(ctx)
	if err == nil {
		err = r.take(ctx)
	}
	if err == nil {
		r.tell(&agentv1.Side{State: absent})
		r.report()
		return true
	}
	r.log.Error("the tunnel could not be made", "error", err)
	r.fault = refused(codeTunnel, err)
	return r.seal(ctx)
}

func (r *receiver) tryOpen(ctx context.Context) error {
	uid, gid, err := r.hypervisor().QEMUOwner(ctx)
	if err != nil {
		return err
	}
	places, err := r.places(ctx)
	if err != nil {
		return err
	}
	cfg := r.m.cfg
	r.tunnel, err = cfg.Tunnels.Open(ctx, tunnel.Config{
		Role: tunnel.Target, TaskID: r.taskID, RightID: r.right.GetId(), ExpiresAt: time.Unix(r.right.GetExpiresAt(), 0),
		VMUUID: r.right.GetVmUuid(), VMName: r.right.GetVmName(), Cluster: cfg.Cluster, Peer: r.right.GetSourceNode(),
		Certificates: cfg.Files, Host: cfg.TunnelHost, FirstPort: cfg.FirstPort, LastPort: cfg.LastPort,
		LibvirtSocket: cfg.LibvirtSocket, QEMUUser: uid, QEMUGroup: gid,
		Offline: r.offline, CopyDisks: r.disks.only(copyLive).targets(), Parallel: r.spec.GetParallelConnections() > 0, DiskPaths: places,
	})
	if err != nil {
		r.tunnel = cfg.Tunnels.Find(r.right.GetId())
		return err
	}
	r.address = r.tunnel.Address()
	return nil
}

// seal closes the tunnel: what is absent then stays so, once libvirtd has
// answered what it was asked.
func (r *receiver) seal(ctx context.Context) bool {
	for !r.sealed {
		err := r.tunnel.Stop()
		if r.sealed = err == nil; r.sealed {
			if r.tunnel.Pending() {
				r.log.Warn("libvirtd may still make the copy: waiting for it")
				r.pending = time.Now().Add(lateWithin)
			}
			break
		}
		r.log.Error("the tunnel does not close", "error", err)
		if !r.await(ctx, nil, lookEvery) {
			return false
		}
	}
	return true
}

// final tells whether an absent copy will not appear any more.
func (r *receiver) final() bool { return r.sealed && time.Now().After(r.pending) }
