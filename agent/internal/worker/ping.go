package worker

import (
	"context"
	"fmt"
)

// Ping asks Run's loop for a sign of life and waits for it, as long as ctx
// lasts. What tasks do meanwhile it does not tell.
func (w *Worker) Ping(ctx context.Context) error {
	answer := make(chan struct{})
	w.mu.Lock()
	w.inbox = append(w.inbox, call{ping: answer})
	w.mu.Unlock()
	ring(w.bell)
	select {
	case <-answer:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the worker does not answer: %w", ctx.Err())
	}
}
