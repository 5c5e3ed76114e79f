package ceph

import (
	"testing"

	"github.com/debvisor/debvisor/integration/scratch"
)

// Scratch makes a directory for a cluster of tests. Cleanups of a test whose program is killed, or runs out of time, never come: what it
// leaves is removed by the next that asks for one.
func Scratch() (*scratch.Dir, error) { return scratch.Make("debvisor-ceph-") }

// New starts a cluster for a test, in a directory of its own unless one is named, and takes it away at the test's end.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		dir, err := Scratch() // t.TempDir's paths are too long for sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := dir.Remove(); err != nil {
				t.Error(err)
			}
		})
		o.Dir = dir.Path
	}
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, d := range c.daemons() {
				t.Logf("%s said: %s", d.Name, d.Said())
			}
		}
	})
	return c
}
