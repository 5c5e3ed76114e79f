package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// migrateFlags: live, driven by the source's libvirtd, which finishes it alone
// if its asker dies; the definition moves with it; the copy arrives paused, so
// that libvirt alone never makes it run twice. Never VIR_MIGRATE_UNSAFE.
const migrateFlags = libvirt.MIGRATE_LIVE | libvirt.MIGRATE_PEER2PEER | libvirt.MIGRATE_PERSIST_DEST |
	libvirt.MIGRATE_UNDEFINE_SOURCE | libvirt.MIGRATE_PAUSED | libvirt.MIGRATE_ABORT_ON_ERROR

// Move is where a domain goes, and how fast.
type Move struct {
	// LibvirtURI is the target's libvirtd as the source's reaches it.
	LibvirtURI string
	// DataURI is where the target's QEMU listens, the same for both hosts.
	DataURI string
	// BandwidthMiB is MiB/s; 0: no limit.
	BandwidthMiB uint64
	// MaxDowntime is how long the switch-over may take; 0: libvirt's default.
	MaxDowntime time.Duration
}

// Migrate moves a domain and returns when libvirt has ended doing so, however
// long that takes. An Unavailable error means that it may still go on, whatever
// became of the asking: Look tells. It has a connection and a thread of its own
// and does not end with ctx; ctx only bounds connecting.
func (h *Hypervisor) Migrate(ctx context.Context, uuid string, m Move) error {
	if err := h.Ready(ctx); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- h.migrate(uuid, m) }()
	return <-done
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
	if m.MaxDowntime > 0 {
		if err := d.MigrateSetMaxDowntime(uint64(m.MaxDowntime.Milliseconds()), 0); err != nil {
			return translate(doing, err)
		}
	}
	params := &libvirt.DomainMigrateParameters{URISet: true, URI: m.DataURI}
	if m.BandwidthMiB > 0 {
		params.BandwidthSet, params.Bandwidth = true, m.BandwidthMiB
	}
	err = d.MigrateToURI3(m.LibvirtURI, params, migrateFlags)
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

// JobStats tells how far the domain's outgoing migration is; nil: there is none.
func (h *Hypervisor) JobStats(ctx context.Context, uuid string) (*agentv1.MigrateSendProgress, error) {
	return onDomain(ctx, h, "asking for the job of domain "+uuid, uuid, func(d *libvirt.Domain) (*agentv1.MigrateSendProgress, error) {
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
		return progressOf(job), nil
	}, nil)
}

func progressOf(job *libvirt.DomainJobInfo) *agentv1.MigrateSendProgress {
	return &agentv1.MigrateSendProgress{
		BytesTotal: job.DataTotal, BytesDone: job.DataProcessed, BytesRemaining: job.DataRemaining,
		BytesPerSecond: job.MemBps, DirtyBytesPerSecond: job.MemDirtyRate * job.MemPageSize,
		Iteration: job.MemIteration, ElapsedMs: job.TimeElapsed,
	}
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
