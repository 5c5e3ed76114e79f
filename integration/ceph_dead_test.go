package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// deadCalls are asked at once while Ceph is dead, and each is answered within deadAnswer.
	deadCalls  = 30
	deadAnswer = 30 * time.Second
	// deadThreads is how many more threads an agent and its children may have then.
	deadThreads = 16
)

// speaksToCeph tells of a process by its arguments whether it speaks to Ceph for an agent.
func speaksToCeph(args []string) bool {
	return len(args) > 1 && args[1] == "ceph" && (filepath.Base(args[0]) == "debvisor-agent" || args[0] == "/proc/self/exe")
}

// cephProcesses are a node's processes that speak to Ceph for its agent.
func cephProcesses(n *lab.Node) ([]lab.Task, error) {
	all, err := n.Tasks()
	return slices.DeleteFunc(all, func(t lab.Task) bool { return !speaksToCeph(t.Args) }), err
}

// threads counts those of a node's agent and of the processes that speak to Ceph for it; 0: they cannot be counted at this moment.
func threads(ctx context.Context, n *lab.Node) (sum int) {
	if n.Machine != nil {
		return threadsInMachine(ctx, n)
	}
	pids := []int{n.Agent.Process.Pid}
	children, err := cephProcesses(n)
	if err != nil {
		return 0 // somebody ended while we looked
	}
	for _, t := range children {
		pids = append(pids, t.Pid)
	}
	for _, pid := range pids {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err == nil { // else it has ended
			sum += len(threads)
		}
	}
	return sum
}

// sees waits until every node tells that Ceph answers it, and the leader that it lists images.
func (c *cluster) seesImages(want ...string) {
	c.t.Helper()
	c.eventually(time.Minute, "images are listed", func() error {
		list, err := c.api(c.running()).storage.ListImages(c.within(10*time.Second), &debvisorv1.ImageFilter{Pool: "vms"})
		if err != nil {
			return err
		}
		said := fmt.Sprint(list)
		for _, name := range want {
			if !strings.Contains(said, name) {
				return fmt.Errorf("%s is not among %s", name, said)
			}
		}
		return nil
	})
}

// TestDeadCeph: whatever is wrong with the cluster, every call comes back, agents have few threads more, guests on other storage are
// moved and started meanwhile, and all goes on by itself when the cluster does.
func TestDeadCeph(t *testing.T) {
	c := cephed.use(t)
	c.guest("plain-file")
	c.rbd("create", "--size", "16M", "vms/lone")
	osd, mon := c.Ceph.OSDs[0], c.Ceph.Mon
	for _, fault := range []struct {
		name       string
		begin, end func() error
		mute       bool // nobody can be answered: who is connected to an OSD needs no monitor
	}{
		{"OSD paused", func() error { return osd.Pause(t.Context()) }, osd.Resume, true},
		{"OSD killed", osd.Kill, osd.Start, true},
		{"monitor stopped", func() error { return mon.Shutdown(t.Context()) }, mon.Start, false},
	} {
		t.Run(fault.name, func(t *testing.T) {
			c := c.inPart(t)
			c.seesImages("lone")
			g := c.guest("plain-file")
			snapshots := len(c.snapshotsOf("vms/lone"))
			before := map[*lab.Node]int{}
			for _, n := range c.Nodes {
				before[n] = c.idleThreads(n)
			}
			c.must(fault.begin())
			ended := false
			t.Cleanup(func() {
				if !ended {
					_ = fault.end()
				}
			})
			id := c.askDead(before, fault.mute, func(*wave) {
				g.moves(debvisorv1.MoveMethod_MOVE_METHOD_LIVE)
				c.must(g.runsOnly(g.to))
				g.goesOn()
			})
			ended = true
			c.must(fault.end())
			c.recovered(id, snapshots)
			g.arrived()
		})
	}
}

// idleThreads are those of a node before anything is wrong.
func (c *cluster) idleThreads(n *lab.Node) int {
	c.t.Helper()
	count := threads(c.within(10*time.Second), n)
	if count == 0 {
		c.t.Fatalf("the threads of %s cannot be counted", n.Name)
	}
	return count
}

// wave is what is asked of a dead cluster at once.
type wave struct{ answered atomic.Bool }

// hangs tells that none of it has been answered yet.
func (w *wave) hangs() bool { return !w.answered.Load() }

// askDead asks much of a dead cluster, and something of the rest, and gives the id of the request for a snapshot.
func (c *cluster) askDead(before map[*lab.Node]int, mute bool, rest func(*wave)) string {
	c.t.Helper()
	ask := c.api(c.running()).storage
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*deadAnswer)
	defer cancel()
	id := requestID()
	asked := metadata.AppendToOutgoingContext(withRequestID(ctx, id), "debvisor-wait", "none")
	var group sync.WaitGroup
	var w wave
	for i := range deadCalls {
		group.Go(func() {
			at := time.Now()
			var err error
			switch i {
			case 0:
				_, err = ask.CreateSnapshot(asked, &debvisorv1.SnapshotRequest{Dataset: image("vms", "lone")})
			case 1, 2, 3, 4, 5, 6, 7:
				_, err = ask.ListSnapshots(ctx, &debvisorv1.SnapshotFilter{Dataset: image("vms", "lone")})
			default:
				_, err = ask.ListImages(ctx, &debvisorv1.ImageFilter{Pool: "vms"})
			}
			w.answered.Store(true)
			if took := time.Since(at); took > deadAnswer {
				c.t.Errorf("call %d came back after %v: %v", i, took, err)
			}
			if mute && i > 0 && err == nil {
				c.t.Errorf("call %d of a dead cluster was answered", i)
			}
		})
	}
	most := map[*lab.Node]int{}
	watch, stop := context.WithCancel(ctx)
	pace := 100 * time.Millisecond
	if len(c.Machines) > 0 {
		pace = 500 * time.Millisecond // in a machine, to look is work
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-watch.Done():
				return
			case <-tick.C:
				for n := range before {
					most[n] = max(most[n], threads(watch, n))
				}
			}
		}
	})
	rest(&w)
	group.Wait()
	stop()
	watching.Wait()
	for n, was := range before {
		c.t.Logf("%s: %d threads before, at most %d while Ceph was dead", n.Name, was, most[n])
		if most[n] > was+deadThreads {
			c.t.Errorf("%s: the agent and its children had %d threads, %d before", n.Name, most[n], was)
		}
	}
	return id
}

// recovered checks that all goes on by itself, and that the snapshot asked for by the request is one, however often that is asked; or
// that there is none, where the operation says that it failed.
func (c *cluster) recovered(id string, before int) {
	c.t.Helper()
	c.seesImages("lone")
	var made *debvisorv1.SnapshotStatus
	var failed error
	c.eventually(90*time.Second, "the snapshot's request has an end", func() error {
		ctx, cancel := context.WithTimeout(withRequestID(c.t.Context(), id), 20*time.Second)
		defer cancel()
		made, failed = c.api(c.running()).storage.CreateSnapshot(ctx, &debvisorv1.SnapshotRequest{Dataset: image("vms", "lone")})
		if !hasEnded(failed) {
			return failed
		}
		return nil
	})
	all := c.snapshotsOf("vms/lone")
	c.t.Logf("the snapshot that was asked for of the dead cluster: %v, %v", made.GetSnapshot().GetSnapshotName(), failed)
	if failed == nil && (len(all) != before+1 || all[before].Name != made.GetSnapshot().GetSnapshotName()) || failed != nil && len(all) != before {
		c.t.Errorf("%d snapshots were there, now %v", before, all)
	}
	c.must(c.whole(c.within(time.Minute)))
}
