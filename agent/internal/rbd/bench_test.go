//go:build ceph_preview

package rbd

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// rates measures two ways of doing the same by turns, A B B A, each n times by so
// many at once, and tells the second's rate over the first's.
func rates(b *testing.B, n, atOnce int, direct, ours func(number int) error) {
	var took [2]time.Duration
	number := 0
	for range b.N {
		for _, way := range []int{0, 1, 1, 0} {
			f := direct
			if way == 1 {
				f = ours
			}
			began := time.Now()
			var workers sync.WaitGroup
			for worker := range atOnce {
				first := number + worker
				workers.Go(func() {
					for i := first; i < first-worker+n; i += atOnce {
						if err := f(i); err != nil {
							b.Error(err)
						}
					}
				})
			}
			workers.Wait()
			took[way] += time.Since(began)
			number += n
		}
	}
	b.ReportMetric(float64(took[0])/float64(took[1]), "ours/direct")
	b.ReportMetric(float64(2*n*b.N)/took[1].Seconds(), "a-second")
}

// bench is a cluster, a client as agents have it, and a connection as it is used
// without one.
func bench(b *testing.B) (*Client, *rados.IOContext) {
	b.Helper()
	cluster := ceph.New(b, ceph.Options{Pools: []string{"vms"}})
	c := New(Config{Conf: cluster.Conf(), User: ceph.Agent, Command: childCommand(b, "")})
	direct, _, err := connect(cluster.Conf(), ceph.Agent)
	if err != nil {
		b.Fatal(err)
	}
	pool, err := direct.conn.OpenIOContext("vms")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		pool.Destroy()
		direct.conn.Shutdown()
	})
	if _, err := cluster.Admin(b.Context(), "rbd", "create", "--size", "1G", "vms/golden"); err != nil {
		b.Fatal(err)
	}
	return c, pool
}

func vms(format string, args ...any) *agentv1.RbdImageID {
	return &agentv1.RbdImageID{Pool: "vms", Name: fmt.Sprintf(format, args...)}
}

func benchmarkClone(b *testing.B, atOnce int) {
	c, pool := bench(b)
	template, err := c.CreateSnapshot(b.Context(), SnapshotSpec{Image: vms("golden"), Name: "v1", Operation: "op", Template: true})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	rates(b, 64, atOnce, func(n int) error {
		options := rbd.NewRbdImageOptions()
		defer options.Destroy()
		if err := options.SetUint64(rbd.ImageOptionCloneFormat, 2); err != nil {
			return err
		}
		return rbd.CloneImage(pool, "golden", "v1", pool, fmt.Sprint("direct-", n), options)
	}, func(n int) error {
		_, _, err := c.Clone(b.Context(), CloneSpec{Template: template, Image: vms("ours-%d", n), Operation: fmt.Sprint("op-", n), MaxDepth: 8})
		return err
	})
}

func BenchmarkClone1(b *testing.B) { benchmarkClone(b, 1) }

func BenchmarkClone8(b *testing.B) { benchmarkClone(b, 8) }

func BenchmarkSnapshot(b *testing.B) {
	c, pool := bench(b)
	for _, name := range []string{"direct", "ours"} {
		if err := rbd.CreateImage(pool, name, 1<<30, rbd.NewRbdImageOptions()); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	rates(b, 32, 1, func(n int) error {
		image, err := rbd.OpenImage(pool, "direct", rbd.NoSnapshot)
		if err != nil {
			return err
		}
		if _, err := image.CreateSnapshot(fmt.Sprint("s-", n)); err != nil {
			return err
		}
		return image.Close()
	}, func(n int) error {
		_, err := c.CreateSnapshot(b.Context(), SnapshotSpec{Image: vms("ours"), Name: fmt.Sprint("s-", n), Operation: fmt.Sprint("op-", n)})
		return err
	})
}
