package hypervisor

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// dirtySeconds is for how long QEMU looks at a guest's pages.
	dirtySeconds = 1
	dirtyPoll    = 250 * time.Millisecond
	// dirtyLeast is told of a guest that dirtied less than a MiB, which is
	// QEMU's unit: 0 would mean that it is not known.
	dirtyLeast = 512 << 10
)

// errNotMeasured is why a dirty rate is not known though it was asked for.
var errNotMeasured = errors.New("QEMU has not measured it")

// DirtyRate measures how many bytes of memory a running domain dirties in a
// second; it takes a little more than that. QEMU samples pages: its other ways
// need KVM, and under TCG (7.2) they end the guest. 0: libvirt cannot tell.
func (h *Hypervisor) DirtyRate(ctx context.Context, uuid string) (uint64, error) {
	doing := "measuring the dirty rate of domain " + uuid
	err := h.act(ctx, doing, uuid, func(d *libvirt.Domain) error {
		return d.StartDirtyRateCalc(dirtySeconds, libvirt.DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING)
	})
	if has(err, libvirt.ERR_NO_SUPPORT) || has(err, libvirt.ERR_OPERATION_UNSUPPORTED) || has(err, libvirt.ERR_CONFIG_UNSUPPORTED) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	wait(ctx, dirtySeconds*time.Second)
	for range 20 {
		rate, err := call(ctx, h, doing, func(c *libvirt.Connect) (uint64, error) { return measured(c, uuid) })
		if !errors.Is(err, errNotMeasured) {
			return rate, err
		}
		wait(ctx, dirtyPoll)
	}
	return 0, errdefs.New(errdefs.Unavailable, "DIRTY_RATE_UNKNOWN", "the dirty rate of domain %s was not measured in time", uuid)
}

// Written tells how much a running domain has written to its disks since its QEMU
// was started, bytes.
func (h *Hypervisor) Written(ctx context.Context, uuid string) (uint64, error) {
	return onDomain(ctx, h, "asking what domain "+uuid+" has written", uuid, func(d *libvirt.Domain) (uint64, error) {
		stats, err := d.BlockStats("") // of all its disks
		if err != nil || !stats.WrBytesSet {
			return 0, err
		}
		return uint64(max(stats.WrBytes, 0)), nil
	}, 0)
}

func measured(c *libvirt.Connect, uuid string) (uint64, error) {
	d, err := c.LookupDomainByUUIDString(uuid)
	if err != nil {
		return 0, err
	}
	defer func() { _ = d.Free() }()
	all, err := c.GetAllDomainStats([]*libvirt.Domain{d}, libvirt.DOMAIN_STATS_DIRTYRATE, libvirt.CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
	if err != nil {
		return 0, err
	}
	for _, s := range all {
		defer func() { _ = s.Domain.Free() }()
	}
	if len(all) == 0 || all[0].DirtyRate == nil || !all[0].DirtyRate.MegabytesPerSecondSet ||
		all[0].DirtyRate.CalcStatus != int(libvirt.DOMAIN_DIRTYRATE_MEASURED) {
		return 0, errNotMeasured
	}
	return max(uint64(max(all[0].DirtyRate.MegabytesPerSecond, 0))<<20, dirtyLeast), nil
}
