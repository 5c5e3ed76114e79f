package store

import (
	"context"
	"fmt"
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

// Age is for how long the snapshot has not been known to hold everything; ok is
// false before there is one.
func (v *View) Age() (age time.Duration, ok bool) {
	at := v.trueAt.Load()
	return v.now() - time.Duration(at), at >= 0
}

// probe measures the snapshot's age until ctx ends.
func (v *View) probe(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			v.confirm(ctx)
			v.wentRound.Store(int64(v.now()))
		case <-ctx.Done():
			return
		}
	}
}

const (
	// stuckAfter is far longer than a look at the age takes, whatever etcd does.
	stuckAfter = 15 * time.Second
	// lostAfter is far longer than all of the cluster takes to be listed anew.
	lostAfter = time.Minute
)

// Alive tells whether the view still looks at its age, and comes along with an
// etcd that answers: a process that hangs does not. Whether etcd answers it does
// not tell.
func (v *View) Alive() error {
	if at := time.Duration(v.behind.Load()); at >= 0 && v.now()-at > v.lostAfter {
		return fmt.Errorf("the view of the cluster's state has not come along with etcd for %s", (v.now() - at).Truncate(time.Second))
	}
	if since := v.now() - time.Duration(v.wentRound.Load()); since > stuckAfter {
		return fmt.Errorf("the view of the cluster's state has stood still for %s", since.Truncate(time.Second))
	}
	return nil
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
		v.behind.Store(-1)
		return
	}
	// From now on it is for the watch to come along; while it comes at all, it does.
	v.behind.CompareAndSwap(-1, int64(sent))
	before := v.Current().Revision
	defer func() {
		if v.Current().Revision > before {
			v.behind.Store(-1)
		}
	}()
	if before < latest.Header.Revision {
		if err := v.client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
			v.log.Debug("the watch does not answer", "error", err)
			return
		}
	}
	if v.Await(ctx, latest.Header.Revision) == nil {
		v.wasTrueAt(sent)
		v.behind.Store(-1)
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
