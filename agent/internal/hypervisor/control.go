package hypervisor

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/shared/obs"
)

// errRuns keeps a running guest from being discarded.
var errRuns = errors.New("its guest runs")

// AbortJob asks libvirt to give up the domain's migration. That there is none
// (any more) is no error.
func (h *Hypervisor) AbortJob(ctx context.Context, uuid string) error {
	return h.act(ctx, "aborting the job of domain "+uuid, uuid, (*libvirt.Domain).AbortJob)
}

// Resume lets the domain's CPUs run. That it runs already is no error.
func (h *Hypervisor) Resume(ctx context.Context, uuid string) error {
	return h.act(ctx, "resuming domain "+uuid, uuid, func(d *libvirt.Domain) error {
		err := d.Resume()
		if err == nil {
			return nil
		}
		if state, _, asked := d.GetState(); asked == nil && state == libvirt.DOMAIN_RUNNING {
			return nil
		}
		return err
	})
}

// Suspend stops the domain's CPUs, also while it is being migrated. That they
// stand still already is no error.
func (h *Hypervisor) Suspend(ctx context.Context, uuid string) error {
	return h.act(ctx, "pausing domain "+uuid, uuid, func(d *libvirt.Domain) error {
		err := d.Suspend()
		if err == nil {
			return nil
		}
		if state, _, asked := d.GetState(); asked == nil && state == libvirt.DOMAIN_PAUSED {
			return nil
		}
		return err
	})
}

// Discard ends the domain's QEMU, if any, and forgets its definition; its disks
// and its NVRAM stay. That it is gone is no error. A guest whose CPUs run is
// never discarded, whatever was seen a moment ago: that is an error.
func (h *Hypervisor) Discard(ctx context.Context, uuid string) error {
	return h.act(ctx, "discarding domain "+uuid, uuid, func(d *libvirt.Domain) error {
		if state, _, err := d.GetState(); err != nil || state == libvirt.DOMAIN_RUNNING || state == libvirt.DOMAIN_BLOCKED {
			return cmp.Or(err, errRuns)
		}
		if err := d.Destroy(); err != nil && !has(err, libvirt.ERR_OPERATION_INVALID) {
			return err
		}
		return undefine(d)
	})
}

// Undefine forgets the definition of a domain that is not active; its disks and
// its NVRAM stay. That it is gone is no error.
func (h *Hypervisor) Undefine(ctx context.Context, uuid string) error {
	return h.act(ctx, "undefining domain "+uuid, uuid, func(d *libvirt.Domain) error {
		if active, err := d.IsActive(); err != nil || active {
			return err
		}
		return undefine(d)
	})
}

// undefine keeps the NVRAM: on shared storage it is the other side's as well.
func undefine(d *libvirt.Domain) error {
	persistent, err := d.IsPersistent()
	if err != nil || !persistent {
		return err
	}
	return d.UndefineFlags(libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE |
		libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
}

// Changed has whoever subscribed look at a domain of which libvirt may have told
// nothing: that a definition left by an offline migration has no event.
func (h *Hypervisor) Changed(uuid string) { h.tell(uuid) }

// Saved tells whether the domain's memory was saved, to go on from at its next
// start (virsh managedsave).
func (h *Hypervisor) Saved(ctx context.Context, uuid string) (bool, error) {
	return onDomain(ctx, h, "looking at domain "+uuid, uuid, func(d *libvirt.Domain) (bool, error) {
		saved, err := d.HasManagedSaveImage(0)
		if has(err, libvirt.ERR_NO_SUPPORT) {
			return false, nil
		}
		return saved, err
	}, false)
}

// DisableAutostart has libvirt not start the domain by itself at a boot: only
// the leader's word does that.
func (h *Hypervisor) DisableAutostart(ctx context.Context, uuid string) error {
	return h.act(ctx, "turning autostart off for domain "+uuid, uuid, func(d *libvirt.Domain) error {
		if on, err := d.GetAutostart(); err != nil || !on {
			return err
		}
		return d.SetAutostart(false)
	})
}

// act does something to a domain; that it is not there, or has nothing of the
// kind to end, is no error.
func (h *Hypervisor) act(ctx context.Context, doing, uuid string, f func(*libvirt.Domain) error) error {
	ctx, span := spanOf(ctx, doing, uuid)
	_, err := onDomain(ctx, h, doing, uuid, func(d *libvirt.Domain) (struct{}, error) {
		return struct{}{}, f(d)
	}, struct{}{})
	span.End(err)
	return err
}

// spanOf begins the span of something that is done to a domain.
func spanOf(ctx context.Context, doing, uuid string) (context.Context, obs.Span) {
	ctx, span := obs.Start(ctx, "libvirt: "+strings.Replace(doing, " "+uuid, "", 1))
	span.Set("debvisor.vm", uuid)
	return ctx, span
}
