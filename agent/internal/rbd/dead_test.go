//go:build ceph_preview

package rbd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// threads of a process and of its children.
func threads(t testing.TB) int {
	t.Helper()
	pids := []string{strconv.Itoa(os.Getpid())}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for _, pid := range strings.Fields(string(children)) {
			if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(line), "\x00--lane\x00") {
				pids = append(pids, pid)
			}
		}
	}
	n := 0
	for _, pid := range pids {
		tasks, _ := os.ReadDir("/proc/" + pid + "/task")
		n += len(tasks)
	}
	return n
}

// A dead cluster costs callers the time they have, and the host a few threads; when
// it lives again so does all.
func TestADeadClusterIsBounded(t *testing.T) {
	cluster := ceph.New(t, ceph.Options{Store: ceph.Bluestore, Pools: []string{"vms"}})
	osd, mon := cluster.OSDs[0], cluster.Mon
	faults := []struct {
		name       string
		begin, end func() error
	}{
		{"osd paused", func() error { return osd.Pause(t.Context()) }, osd.Resume},
		{"osd killed", osd.Kill, osd.Start},
		{"mon paused", func() error { return mon.Pause(t.Context()) }, mon.Resume},
		{"mon stopped", func() error { return mon.Shutdown(t.Context()) }, mon.Start},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			r := enter(t, cluster)
			disk := r.disk("disk")
			template := r.snapshot(disk, "v1", "op-0")
			if _, _, err := r.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("vms", "clone"), Operation: "op-1"}); err != nil {
				t.Fatal(err)
			}
			flattened := r.clones(template, "flattened", "shared")
			r.flattens(flattened[0]) // what takes long has a connection of its own, which is to survive it, too
			alive := threads(t)
			if err := fault.begin(); err != nil {
				t.Fatal(err)
			}
			most := r.hundredCalls(disk, template, fault.name)
			t.Logf("%d threads alive, at most %d dead", alive, most)
			if most-alive > 16 {
				t.Errorf("%d threads while alive, %d while dead", alive, most)
			}
			began := time.Now()
			_, _, err := r.Image(t.Context(), disk, false)
			refused(t, err, CodeDown)
			if took := time.Since(began); took > time.Second {
				t.Errorf("what is known to be dead was asked for %s", took)
			}
			if err := fault.end(); err != nil {
				t.Fatal(err)
			}
			ready := time.Now()
			r.cephIsBack(disk)
			t.Logf("Ceph itself was back after %s", time.Since(ready))
			r.recovered(disk)
			r.flattens(flattened[1])
		})
	}
}

// clones makes clones.
func (r *room) clones(template *agentv1.RbdSnapshotID, names ...string) []*agentv1.RbdImageID {
	r.t.Helper()
	var made []*agentv1.RbdImageID
	for _, name := range names {
		id, _, err := r.Clone(r.t.Context(), CloneSpec{Template: template, Image: r.id("vms", name), Operation: "op-" + name})
		if err != nil {
			r.t.Fatal(err)
		}
		made = append(made, id)
	}
	return made
}

// flattens copies what the clone shares with its parent, as soon as Ceph lets it.
func (r *room) flattens(clone *agentv1.RbdImageID) {
	r.t.Helper()
	r.soon("it is not flattened", func() (bool, error) {
		ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
		defer cancel()
		err := r.Flatten(ctx, clone, "op-"+clone.GetName(), func(_, _ uint64) {})
		if err != nil && !silent(err) {
			r.t.Fatal(err)
		}
		return err == nil, err
	})
}

// BenchmarkDeadThreads tells by how many threads an agent and its children grow
// while the only OSD is dead and a hundred calls are asked of it.
func BenchmarkDeadThreads(b *testing.B) {
	cluster := ceph.New(b, ceph.Options{Store: ceph.Bluestore, Pools: []string{"vms"}})
	r := enter(b, cluster)
	disk := r.disk("disk")
	template := r.snapshot(disk, "v1", "op-0")
	most := 0
	for range b.N {
		alive := threads(b)
		if err := cluster.OSDs[0].Pause(b.Context()); err != nil {
			b.Fatal(err)
		}
		most = max(most, r.hundredCalls(disk, template, "osd paused")-alive)
		if err := cluster.OSDs[0].Resume(); err != nil {
			b.Fatal(err)
		}
		r.cephIsBack(disk)
		r.recovered(disk)
	}
	b.ReportMetric(float64(most), "threads-more")
}

// hundredCalls asks for all kinds of things at once and tells how many threads that
// took at most.
func (r *room) hundredCalls(disk *agentv1.RbdImageID, template *agentv1.RbdSnapshotID, fault string) (most int) {
	r.t.Helper()
	const within = 20 * time.Second
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			most = max(most, threads(r.t))
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	var calls sync.WaitGroup
	for n := range 100 {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(r.t.Context(), within)
			defer cancel()
			began := time.Now()
			var err error
			switch n % 5 {
			case 0:
				_, _, err = r.Image(ctx, disk, true)
			case 1:
				_, err = r.CreateSnapshot(ctx, SnapshotSpec{Image: disk, Name: fmt.Sprint("s", n), Operation: fmt.Sprint("op-", n)})
			case 2:
				_, _, err = r.Clone(ctx, CloneSpec{Template: template, Image: r.id("vms", fmt.Sprint("c", n)), Operation: fmt.Sprint("op-", n)})
			case 3:
				err = r.List(ctx, &agentv1.ListRbd{Images: []*agentv1.RbdImageID{r.id("vms", "")}, Snapshots: true}, func(*agentv1.RbdListing) error { return nil })
			case 4:
				_, err = r.Fence(ctx, []*agentv1.RbdImageID{disk}, "x", time.Minute)
			}
			if took := time.Since(began); took > within+2*time.Second {
				r.t.Errorf("%s: call %d took %s", fault, n, took)
			}
			// With the monitors alone dead, what OSDs know is still told.
			if err != nil && !silent(err) && !has(err, CodeOtherCluster) {
				r.t.Errorf("%s: call %d: %v", fault, n, err)
			}
		})
	}
	calls.Wait()
	close(stop)
	watching.Wait()
	return most
}

// cephIsBack waits until Ceph's own tools reach every snapshot of an image again. An
// OSD that stood still longer than its read lease may keep placement groups waiting
// for ever (16.2, a lone OSD: its own log has the slow operations): it is restarted.
func (r *room) cephIsBack(disk *agentv1.RbdImageID) {
	r.t.Helper()
	for try := 0; ; try++ {
		if err := r.cluster.Ready(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		_, err := r.cluster.Admin(ctx, "rbd", "snap", "create", fmt.Sprintf("%s@back-%d", Shown(disk), try))
		cancel()
		if err == nil {
			return
		}
		if try == 3 {
			r.t.Fatalf("Ceph is not back: %v", err)
		}
		r.t.Logf("Ceph is not back, its OSD is restarted: %v", err)
		osd := r.cluster.OSDs[0]
		if err := osd.Kill(); err != nil {
			r.t.Fatal(err)
		}
		if err := osd.Start(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// recovered waits until all works again, and checks that nothing was done twice.
func (r *room) recovered(disk *agentv1.RbdImageID) {
	r.t.Helper()
	r.soon("it does not recover", func() (bool, error) {
		_, err := r.CreateSnapshot(r.t.Context(), SnapshotSpec{Image: disk, Name: "after", Operation: "op-after"})
		if err != nil && !silent(err) {
			r.t.Fatal(err)
		}
		return err == nil, err
	})
	_, snapshots, err := r.Image(r.t.Context(), disk, true)
	if err != nil {
		r.t.Fatal(err)
	}
	seen := map[string]int{}
	for _, s := range snapshots {
		if strings.HasPrefix(s.GetSnapshot().GetName(), "back-") {
			continue
		}
		seen[s.GetOperation()]++
		if seen[s.GetOperation()] > 1 || s.GetOperation() == "" {
			r.t.Errorf("snapshots %v", snapshots)
		}
	}
}
