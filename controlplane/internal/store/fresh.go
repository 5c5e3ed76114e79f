package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// staleAfter is the age at which a snapshot may no longer be relied on: five
	// seconds, but for the time that it takes to end what is open by then.
	staleAfter = 4500 * time.Millisecond
	// probeEvery is how often the age is measured, and probeTimeout how long a
	// measurement may take.
	probeEvery   = time.Second
	probeTimeout = 2 * time.Second
)

// Fresh is nil while the snapshot is known to hold everything that had been
// committed 5 s ago, and Unavailable (STALE_SNAPSHOT) otherwise: a revoked key
// might still look good in it. The clock is monotonic, so that a process that
// was stopped finds its snapshot stale when it wakes.
func (v *View) Fresh() error {
	at := v.trueAt.Load()
	if at < 0 {
		return errdefs.New(errdefs.Unavailable, "STALE_SNAPSHOT",
			"this replica has not read the cluster's state yet").WithRetry(time.Second)
	}
	age := v.now() - time.Duration(at)
	if age <= staleAfter {
		return nil
	}
	return errdefs.New(errdefs.Unavailable, "STALE_SNAPSHOT",
		"this replica has not heard from the cluster's store for %s", age.Truncate(100*time.Millisecond)).
		With("age", age.Truncate(time.Millisecond).String()).WithRetry(time.Second)
}

// probe measures the snapshot's age until ctx ends.
func (v *View) probe(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			v.confirm(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// confirm asks a quorum for the latest revision. Once the watch has come that
// far, the snapshot held everything at the moment of asking. That a watch is
// merely alive would not do: a member cut off from the others keeps its
// watches for seconds and knows nothing new. Where the revision grew by keys
// that are not watched, a progress notification brings the watch along.
func (v *View) confirm(ctx context.Context) {
	select {
	case <-v.ready:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	sent := v.now()
	latest, err := v.client.Get(ctx, EpochKey(), clientv3.WithCountOnly())
	if err != nil {
		v.log.Debug("the store does not answer", "error", err)
		return
	}
	if v.Current().Revision < latest.Header.Revision {
		if err := v.client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
			v.log.Debug("the watch does not answer", "error", err)
			return
		}
	}
	if v.Await(ctx, latest.Header.Revision) == nil {
		v.wasTrueAt(sent)
	}
}

// now is the view's monotonic clock.
func (v *View) now() time.Duration { return time.Since(v.born) }

// wasTrueAt notes that the snapshot held everything at a moment.
func (v *View) wasTrueAt(moment time.Duration) {
	for {
		known := v.trueAt.Load()
		if int64(moment) <= known || v.trueAt.CompareAndSwap(known, int64(moment)) {
			return
		}
	}
}
