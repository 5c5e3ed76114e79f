package worker

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A worker whose loop goes round answers; one whose loop does not, does not.
func TestPing(t *testing.T) {
	w, err := Open(Config{Path: filepath.Join(t.TempDir(), "journal.db"), Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a worker that does not run answers: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	long, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Ping(long); err != nil {
		t.Errorf("a worker that runs: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
