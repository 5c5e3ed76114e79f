package zfs

import (
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestCommandsThatHangAreBounded: with as many left to themselves as may be, no
// more are started, until one ends.
func TestCommandsThatHangAreBounded(t *testing.T) {
	z := New(Config{})
	z.left.Store(maxLeft)
	if _, err := z.Pools(t.Context()); !has(err, CodePoolSuspended) || !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("one more: %v", err)
	}
	z.left.Add(-1)
	if _, err := z.Pools(t.Context()); err != nil {
		t.Errorf("once one has ended: %v", err)
	}
}
