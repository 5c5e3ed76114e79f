package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestADiskThatFills(t *testing.T) {
	var left uint64
	var broken error
	d := NewDisk(t.TempDir(), func(string) (uint64, error) { return left, broken })
	for _, c := range []struct {
		left   uint64
		broken error
		full   bool
	}{
		{left: 100 << 20},
		{left: 64 << 20},
		{left: 63 << 20, full: true},
		{left: 70 << 20, full: true}, // it does not flap
		{broken: errors.New("it does not say"), full: true},
		{left: 80 << 20},
		{left: 70 << 20},
		{broken: errors.New("it does not say")},
		{left: 0, full: true},
	} {
		left, broken = c.left, c.broken
		why, refusal := d.Look(), d.Full()
		if (why != nil) != c.full || (refusal != nil) != c.full {
			t.Errorf("%d MiB left (%v): %v, %v", c.left>>20, c.broken, why, refusal)
		}
		if e := errdefs.Of(refusal); c.full && (e.Kind != errdefs.Unavailable || e.Code != "DISK_FULL" || !strings.Contains(e.Message, "disk of this replica's data directory")) {
			t.Errorf("the refusal: %v", refusal)
		}
	}
}
