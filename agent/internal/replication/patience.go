package replication

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

// patiently repeats what zfs may be ready for later.
func patiently(ctx context.Context, log hclog.Logger, do func(context.Context) error) error {
	for wait := again; ; wait = min(2*wait, againLate) {
		err := do(ctx)
		if err == nil || final(err) {
			return err
		}
		log.Warn("not ready yet", "error", err)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// pause is false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
