package lab

import (
	"context"
	"fmt"
	"time"
)

// pollEvery is how often Eventually looks.
const pollEvery = 50 * time.Millisecond

// Eventually calls f again and again until it returns nil, and fails with its last error when ctx is done first. What names
// the condition in the error.
func Eventually(ctx context.Context, what string, f func() error) error {
	return EventuallyEvery(ctx, pollEvery, what, f)
}

// EventuallyEvery is Eventually for what costs something each time.
func EventuallyEvery(ctx context.Context, every time.Duration, what string, f func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		// A look that ctx itself cut short says less than the one before.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q: %w: last: %w", what, ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// Within is Eventually with a time limit instead of a context's.
func Within(limit time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return Eventually(ctx, what, f)
}
