package ceph

import (
	"os"
	"testing"
)

// New starts a cluster for a test, in a directory of its own unless one is named, and takes it away at the test's end.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		dir, err := os.MkdirTemp("/var/tmp", "debvisor-ceph-") // t.TempDir's paths are too long for sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		o.Dir = dir
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
