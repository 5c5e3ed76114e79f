package replication

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestASilentSide: a side that says nothing is given up; one that says little is
// not, nor is one that nobody reads from.
func TestASilentSide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer func() { _ = theirs.Close() }()
		l := newLink(ours)
		go l.in.watch(t.Context())
		go func() {
			for range 5 {
				time.Sleep(quiet * 9 / 10)
				_ = newLink(theirs).send(frameHeld, nil)
			}
		}()
		buf := make([]byte, maxControl)
		for i := range 5 {
			if kind, _, err := l.next(buf); err != nil || kind != frameHeld {
				t.Fatalf("frame %d: %q, %v", i, kind, err)
			}
			if i == 2 {
				time.Sleep(quiet * 9 / 5) // zfs takes its time
			}
		}
		began := time.Now()
		_, _, err := l.next(buf)
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took < quiet || took > quiet*5/4 {
			t.Errorf("after %s: %v", took, err)
		}
	})
}
