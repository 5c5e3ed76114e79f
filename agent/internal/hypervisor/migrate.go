package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// migrateFlags: live, driven by the source's libvirtd, which finishes it alone
// if its asker dies; the definition moves with it; the copy arrives paused, so
// that libvirt alone never makes it run twice. Never VIR_MIGRATE_UNSAFE.
const migrateFlags = libvirt.MIGRATE_LIVE | libvirt.MIGRATE_PEER2PEER | libvirt.MIGRATE_PERSIST_DEST |
	libvirt.MIGRATE_UNDEFINE_SOURCE | libvirt.MIGRATE_PAUSED | libvirt.MIGRATE_ABORT_ON_ERROR

// offlineFlags: the definition alone, in one step, of a domain that is not
// active; libvirt removes the source's only if it still is not.
const offlineFlags = libvirt.MIGRATE_OFFLINE | libvirt.MIGRATE_PEER2PEER | libvirt.MIGRATE_PERSIST_DEST | libvirt.MIGRATE_UNDEFINE_SOURCE

// Move is where a domain goes, and how fast.
type Move struct {
	// LibvirtURI is the target's libvirtd as the source's reaches it.
	LibvirtURI string
	// Offline: only the definition moves, of a domain that is not active. All
	// below is without meaning then.
	Offline bool
	// DataURI is where the target's QEMU listens, the same for both hosts.
	DataURI string
	// Disks are the guest's names ("vda") of those that are copied while it runs,
	// to DisksURI, where the target's QEMU listens for them. Files must be there.
	Disks    []string
	DisksURI string
	// BandwidthMiB is MiB/s, of memory and of each disk; 0: no limit.
	BandwidthMiB uint64
	// MaxDowntime is how long the switch-over may take; 0: libvirt's default.
	MaxDowntime time.Duration
	// Parallel is in how many streams memory goes; 0: one, without their protocol.
	Parallel uint32
	// AutoConverge slows the guest down where it dirties memory faster than that
	// is copied.
	AutoConverge bool
}

// flags and parameters are libvirt's words for a Move.
func (m Move) flags() libvirt.DomainMigrateFlags {
	if m.Offline {
		return offlineFlags
	}
	flags := migrateFlags
	if len(m.Disks) > 0 {
		flags |= libvirt.MIGRATE_NON_SHARED_DISK
	}
	if m.Parallel > 0 {
		flags |= libvirt.MIGRATE_PARALLEL
	}
	if m.AutoConverge {
		flags |= libvirt.MIGRATE_AUTO_CONVERGE
	}
	return flags
}

func (m Move) parameters() *libvirt.DomainMigrateParameters {
	if m.Offline {
		return &libvirt.DomainMigrateParameters{}
	}
	p := &libvirt.DomainMigrateParameters{URISet: true, URI: m.DataURI}
	if m.BandwidthMiB > 0 {
		p.BandwidthSet, p.Bandwidth = true, m.BandwidthMiB
	}
	if len(m.Disks) > 0 {
		p.MigrateDisksSet, p.MigrateDisks = true, m.Disks
		p.DisksURISet, p.DisksURI = true, m.DisksURI
	}
	if m.Parallel > 0 {
		p.ParallelConnectionsSet, p.ParallelConnections = true, int(m.Parallel)
	}
	return p
}

// Migrate moves a domain and returns when libvirt has ended doing so, however
// long that takes. An Unavailable error means that it may still go on, whatever
// became of the asking: Look tells. It has a connection and a thread of its own
// and does not end with ctx; ctx only bounds connecting.
func (h *Hypervisor) Migrate(ctx context.Context, uuid string, m Move) error {
	if err := h.Ready(ctx); err != nil {
		return err
	}
	_, span := spanOf(ctx, "migrating domain", uuid)
	done := make(chan error, 1)
	go func() { done <- h.migrate(uuid, m) }()
	err := <-done
	span.End(err)
	return err
}

func (h *Hypervisor) migrate(uuid string, m Move) error {
	doing := "migrating domain " + uuid
	conn, err := libvirt.NewConnect(h.cfg.URI)
	if err != nil {
		return unavailable(fmt.Errorf("%s: connecting: %w", doing, err))
	}
	defer func() { _, _ = conn.Close() }()
	if err := conn.SetKeepAlive(keepaliveSeconds, keepaliveCount); err != nil && !has(err, libvirt.ERR_NO_SUPPORT) {
		return unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	d, err := conn.LookupDomainByUUIDString(uuid)
	if err != nil {
		return translate(doing, err)
	}
	defer func() { _ = d.Free() }()
	if m.MaxDowntime > 0 && !m.Offline {
		if err := d.MigrateSetMaxDowntime(uint64(m.MaxDowntime.Milliseconds()), 0); err != nil {
			return translate(doing, err)
		}
	}
	err = d.MigrateToURI3(m.LibvirtURI, m.parameters(), m.flags())
	if err == nil {
		return nil
	}
	if alive, dead := conn.IsAlive(); dead != nil || !alive {
		return unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	return migrationError(doing, err)
}

// migrationError keeps apart what libvirt refused and what broke on the way to
// the target: the latter has the code CodeBroken.
func migrationError(doing string, err error) error {
	out := translate(doing, err)
	var e libvirt.Error
	var ours *errdefs.Error
	if !errors.As(err, &e) || !errors.As(out, &ours) {
		return out
	}
	if e.Domain == libvirt.FROM_RPC || e.Domain == libvirt.FROM_REMOTE || e.Domain == libvirt.FROM_STREAMS ||
		e.Code == libvirt.ERR_RPC || e.Code == libvirt.ERR_NO_CONNECT || e.Code == libvirt.ERR_SYSTEM_ERROR && e.Domain == libvirt.FROM_NONE {
		ours.Code = CodeBroken
	}
	return out
}

// CodeBroken is the code of a migration that failed because the connection
// between the two libvirtds did.
const CodeBroken = "CONNECTION_BROKEN"

// Job is how far an outgoing migration is. Sizes are bytes.
type Job struct {
	// Total, Done and Remaining are of memory and of the disks that are copied.
	Total, Done, Remaining uint64
	// MemoryDone and MemoryRemaining are of them what is memory.
	MemoryDone, MemoryRemaining uint64
	// PerSecond is how fast memory is copied, DirtyPerSecond how fast the guest
	// dirties it.
	PerSecond, DirtyPerSecond uint64
	// Iteration counts the rounds over the memory, from 1; 0: it has not begun.
	Iteration uint64
	Elapsed   time.Duration
	// Throttle is how much the guest is slowed down, percent.
	Throttle uint32
}

// OutgoingJob tells how far the domain's outgoing migration is; nil: there is
// none.
func (h *Hypervisor) OutgoingJob(ctx context.Context, uuid string) (*Job, error) {
	return onDomain(ctx, h, "asking for the job of domain "+uuid, uuid, func(d *libvirt.Domain) (*Job, error) {
		job, err := d.GetJobStats(0)
		if has(err, libvirt.ERR_OPERATION_INVALID) || has(err, libvirt.ERR_OPERATION_UNSUPPORTED) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if !active(job) || job.Operation != libvirt.DOMAIN_JOB_OPERATION_MIGRATION_OUT {
			return nil, nil
		}
		return jobOf(job), nil
	}, nil)
}

func jobOf(job *libvirt.DomainJobInfo) *Job {
	return &Job{
		Total: job.DataTotal, Done: job.DataProcessed, Remaining: job.DataRemaining,
		MemoryDone: job.MemProcessed, MemoryRemaining: job.MemRemaining,
		PerSecond: job.MemBps, DirtyPerSecond: job.MemDirtyRate * job.MemPageSize,
		Iteration: job.MemIteration, Elapsed: time.Duration(job.TimeElapsed) * time.Millisecond,
		Throttle: uint32(max(job.AutoConvergeThrottle, 0)),
	}
}

// MaxSpeed tells how fast the domain's memory may leave, MiB/s.
func (h *Hypervisor) MaxSpeed(ctx context.Context, uuid string) (uint64, error) {
	return onDomain(ctx, h, "asking for the speed limit of domain "+uuid, uuid, func(d *libvirt.Domain) (uint64, error) {
		return d.MigrateGetMaxSpeed(0)
	}, 0)
}

// SetMaxSpeed limits how fast the domain's memory leaves, MiB/s, in the migration
// that goes on and in later ones that say nothing else.
func (h *Hypervisor) SetMaxSpeed(ctx context.Context, uuid string, mib uint64) error {
	return h.act(ctx, "limiting the speed of domain "+uuid, uuid, func(d *libvirt.Domain) error {
		return d.MigrateSetMaxSpeed(mib, 0)
	})
}

// Downtime tells how long the guest stood still in the migration that brought
// it here, by libvirt's own count to the moment it was complete; ok is false
// where libvirt does not know (any more).
func (h *Hypervisor) Downtime(ctx context.Context, uuid string) (downtime time.Duration, ok bool, err error) {
	flags := libvirt.DOMAIN_JOB_STATS_COMPLETED | libvirt.DOMAIN_JOB_STATS_KEEP_COMPLETED
	job, err := onDomain(ctx, h, "asking for the past job of domain "+uuid, uuid, func(d *libvirt.Domain) (*libvirt.DomainJobInfo, error) {
		return d.GetJobStats(flags)
	}, nil)
	if err != nil || job == nil || !job.DowntimeSet {
		return 0, false, err
	}
	return time.Duration(job.Downtime) * time.Millisecond, true, nil
}
