package hypervisor

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Codes of what keeps a guest from being frozen.
const (
	// CodeNoGuestAgent: the guest has no QEMU guest agent that answers.
	CodeNoGuestAgent = "NO_GUEST_AGENT"
	// CodeFreezeFailed: the agent answered that it could not, or libvirt did.
	CodeFreezeFailed = "FREEZE_FAILED"
)

// FreezeGuest has the guest agent freeze all of the guest's file systems, and
// returns when they are, or at ctx's end: then they may become so later.
// NotFound, FailedPrecondition with one of the codes above.
func (h *Hypervisor) FreezeGuest(ctx context.Context, uuid string) error {
	return h.agent(ctx, "freezing the file systems of domain "+uuid, uuid, func(d *libvirt.Domain) error { return d.FSFreeze(nil, 0) })
}

// ThawGuest lets them go on. That none is frozen is no error, nor that the guest
// does not run: nothing of it is frozen then.
func (h *Hypervisor) ThawGuest(ctx context.Context, uuid string) error {
	return h.agent(ctx, "thawing the file systems of domain "+uuid, uuid, func(d *libvirt.Domain) error {
		err := d.FSThaw(nil, 0)
		if err == nil || has(err, libvirt.ERR_NO_DOMAIN) {
			return nil
		}
		if active, asked := d.IsActive(); has(asked, libvirt.ERR_NO_DOMAIN) || asked == nil && !active {
			return nil
		}
		return err
	})
}

// GuestFilesystems counts the file systems that the guest has mounted, as its
// agent tells.
func (h *Hypervisor) GuestFilesystems(ctx context.Context, uuid string) (n int, err error) {
	err = h.agent(ctx, "asking for the file systems of domain "+uuid, uuid, func(d *libvirt.Domain) error {
		mounted, err := d.GetFSInfo(0)
		n = len(mounted)
		return err
	})
	return n, err
}

// agent calls what waits for the guest's agent, for as long as ctx allows.
func (h *Hypervisor) agent(ctx context.Context, doing, uuid string, f func(*libvirt.Domain) error) error {
	most := h.cfg.CallTimeout
	if end, ok := ctx.Deadline(); ok {
		most = time.Until(end)
	}
	_, err := patient(ctx, h, most, doing, func(c *libvirt.Connect) (struct{}, error) {
		d, err := c.LookupDomainByUUIDString(uuid)
		if err != nil {
			return struct{}{}, err
		}
		defer func() { _ = d.Free() }()
		return struct{}{}, f(d)
	})
	var told *errdefs.Error
	switch {
	case err == nil || errdefs.KindOf(err) == errdefs.NotFound:
		return err
	case has(err, libvirt.ERR_AGENT_UNRESPONSIVE), has(err, libvirt.ERR_ARGUMENT_UNSUPPORTED), has(err, libvirt.ERR_AGENT_UNSYNCED), has(err, libvirt.ERR_AGENT_COMMAND_TIMEOUT):
		return errdefs.New(errdefs.FailedPrecondition, CodeNoGuestAgent, "no QEMU guest agent answers in the guest: it needs one that runs, and a virtio channel org.qemu.guest_agent.0").WithCause(err)
	case errors.As(err, &told) && told.Code == CodeLibvirt:
		return errdefs.New(errdefs.FailedPrecondition, CodeFreezeFailed, "%s", told.Message).WithCause(err)
	}
	return err
}
