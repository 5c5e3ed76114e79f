package hypervisor

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Instance is a domain as who starts and stops it sees it.
type Instance struct {
	Sighting
	// ID is libvirt's number of the QEMU that it has now, which is another one
	// after each start; 0: it has none.
	ID uint
	// Ending: its guest has shut down, and libvirt has still to notice.
	Ending bool
}

// Instance tells how a domain stands and which QEMU it has.
func (h *Hypervisor) Instance(ctx context.Context, uuid string) (Instance, error) {
	absent := Instance{Sighting: Sighting{State: agentv1.SideState_SIDE_STATE_ABSENT, Why: "no such domain"}}
	return onDomain(ctx, h, "looking at domain "+uuid, uuid, func(d *libvirt.Domain) (Instance, error) {
		s, err := sight(d)
		if err != nil {
			return Instance{}, err
		}
		state, reason, err := d.GetState()
		if err != nil {
			return Instance{}, err
		}
		i := Instance{Sighting: s}
		i.Ending = state == libvirt.DOMAIN_SHUTDOWN ||
			state == libvirt.DOMAIN_PAUSED && libvirt.DomainPausedReason(reason) == libvirt.DOMAIN_PAUSED_SHUTTING_DOWN
		if i.ID, err = d.GetID(); err != nil {
			i.ID = 0 // libvirt's way to say that it is not active
		}
		return i, nil
	}, absent)
}

// StartPaused starts a domain whose CPUs stand still until Resume: a guest that
// was not resumed has not run. libvirt refuses a domain that is active already.
// It returns when libvirt has answered, however long that takes, or when ctx
// ends; an Unavailable error means that it may still start.
func (h *Hypervisor) StartPaused(ctx context.Context, uuid string) error {
	return h.alone(ctx, "starting domain "+uuid, uuid, func(d *libvirt.Domain) error {
		return d.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
	})
}

// AskToShutDown asks the guest to shut down: its agent where it has one that
// answers, else by ACPI; with acpi by ACPI only. That it was asked is all that
// nil says. A domain that is not active need not be asked.
func (h *Hypervisor) AskToShutDown(ctx context.Context, uuid string, acpi bool) error {
	how := libvirt.DOMAIN_SHUTDOWN_DEFAULT
	if acpi {
		how = libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN
	}
	return h.act(ctx, "asking domain "+uuid+" to shut down", uuid, func(d *libvirt.Domain) error {
		return unlessInactive(d, d.ShutdownFlags(how))
	})
}

// Destroy ends the domain's QEMU; definition and disks stay. Gracefully, QEMU
// is asked to end and writes out what it holds; that it does not in libvirt's
// time is an error, and it goes on. Otherwise it is killed. A domain that is
// not active, or not there, is no error. It returns when libvirt has answered
// or ctx ends, as StartPaused does.
func (h *Hypervisor) Destroy(ctx context.Context, uuid string, gracefully bool) error {
	how := libvirt.DOMAIN_DESTROY_DEFAULT
	if gracefully {
		how = libvirt.DOMAIN_DESTROY_GRACEFUL
	}
	return h.alone(ctx, "ending domain "+uuid, uuid, func(d *libvirt.Domain) error {
		err := unlessInactive(d, d.DestroyFlags(how))
		if has(err, libvirt.ERR_NO_DOMAIN) {
			return nil
		}
		return err
	})
}

// TakeAutostart turns libvirt's autostart off for a domain and has it looked at
// anew, since libvirt has no event for that.
func (h *Hypervisor) TakeAutostart(ctx context.Context, uuid string) error {
	if err := h.DisableAutostart(ctx, uuid); err != nil {
		return err
	}
	h.tell(uuid)
	return nil
}

// unlessInactive passes over an error about a domain that is not active.
func unlessInactive(d *libvirt.Domain, err error) error {
	if err == nil {
		return nil
	}
	if active, asked := d.IsActive(); asked == nil && !active {
		return nil
	}
	return err
}

// alone does something long to a domain, on a connection and a thread of its
// own, so that no other call has to wait for it. When ctx ends it goes on.
func (h *Hypervisor) alone(ctx context.Context, doing, uuid string, f func(*libvirt.Domain) error) error {
	if err := h.Ready(ctx); err != nil {
		return err
	}
	ctx, span := spanOf(ctx, doing, uuid)
	done := make(chan error, 1)
	go func() { done <- h.aside(doing, uuid, f) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = unavailable(fmt.Errorf("%s: %w", doing, ctx.Err()))
	}
	span.End(err)
	return err
}

func (h *Hypervisor) aside(doing, uuid string, f func(*libvirt.Domain) error) error {
	conn, err := libvirt.NewConnect(h.cfg.URI)
	if err != nil {
		return unavailable(fmt.Errorf("%s: connecting: %w", doing, err))
	}
	defer func() { _, _ = conn.Close() }()
	if err := conn.SetKeepAlive(keepaliveSeconds, keepaliveCount); err != nil && !has(err, libvirt.ERR_NO_SUPPORT) {
		return unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	d, err := conn.LookupDomainByUUIDString(uuid)
	if err == nil {
		defer func() { _ = d.Free() }()
		err = f(d)
	}
	if err == nil {
		return nil
	}
	if alive, dead := conn.IsAlive(); dead != nil || !alive {
		return unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	return translate(doing, err)
}
