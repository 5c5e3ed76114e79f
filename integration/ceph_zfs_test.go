package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// besideDead is how many questions about ZFS an agent answers at least while as many about Ceph hang as it takes, which is for 3 s. They
	// are asked after those, so that one is proof; an idle host answers many.
	besideDead = 1
	// cephAtOnce is how many about Ceph an agent takes at a time, and the leader asks; it passes cephAsked with each.
	cephAtOnce = 16
	cephAsked  = "cephAsked"
	// zfsAnswer is how long such an answer may take, and slower how much longer than before all else, as CI's hosts have moods.
	zfsAnswer = 10 * time.Second
	slower    = 15 * time.Second
)

// threadsInMachine is threads of a machine, all counted in one look.
func threadsInMachine(ctx context.Context, n *lab.Node) (sum int) {
	out, err := n.Run(ctx, "ps", "-e", "-ww", "-o", "pid=,nlwp=,args=")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		count, err := strconv.Atoi(f[1])
		if args := f[2:]; err == nil && (speaksToCeph(args) || filepath.Base(args[0]) == "debvisor-agent" && args[1] == "run") {
			sum += count
		}
	}
	return sum
}

// TestZFSBesideDeadCeph: whatever is wrong with Ceph, what the very same agent does with ZFS goes on: questions are answered while those
// about images hang, and snapshots, pruning and replication come to their ends before a task on an image does.
func TestZFSBesideDeadCeph(t *testing.T) {
	c := pooled.use(t)
	c.rbd("create", "--size", "16M", "vms/lone")
	c.rbd("create", "--size", "16M", "vms/held-up")
	both := c.Machines[0] // the only node with Ceph
	c.must(both.GiveCeph())
	t.Cleanup(func() {
		if err := both.TakeCeph(); err != nil {
			t.Error(err)
		}
	})
	r := c.replicated("beside")
	c.write(r.from, r.path, 4)
	r.run()
	c.seesImages("lone")
	before := r.worked()
	t.Logf("snapshot, pruning, replication: %.1f s", before.Seconds())
	osd, mon := c.Ceph.OSDs[0], c.Ceph.Mon
	for _, fault := range []struct {
		name       string
		begin, end func() error
		mute       bool
	}{
		{"OSD paused", func() error { return osd.Pause(t.Context()) }, osd.Resume, true},
		{"monitor stopped", func() error { return mon.Shutdown(t.Context()) }, mon.Start, false},
	} {
		t.Run(fault.name, func(t *testing.T) {
			r := r.in(t)
			c := r.c
			c.seesImages("lone")
			snapshots, idle := len(c.snapshotsOf("vms/lone")), c.idleThreads(both)
			task := c.heldUp(both, fault.begin)
			ended := false
			t.Cleanup(func() {
				if !ended {
					_ = fault.end()
				}
			})
			points := both.Failpoints()
			c.must(points.Arm(c.within(10*time.Second), cephAsked, "sleep(1)"))
			t.Cleanup(func() { _ = points.Disarm(context.Background(), cephAsked) })
			id := c.askDead(map[*lab.Node]int{both: idle}, fault.mute, func(w *wave) {
				if fault.mute {
					r.answeredBeside(w, points)
				}
				took := r.worked()
				t.Logf("beside a dead Ceph: %.1f s", took.Seconds())
				if took > 2*before+slower {
					t.Errorf("snapshot, pruning and replication took %v beside a dead Ceph, %v before", took, before)
				}
			})
			op, err := c.api(c.running()).operations.GetOperation(c.within(10*time.Second), &debvisorv1.OperationRef{Id: task})
			c.must(err)
			if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_RUNNING {
				t.Errorf("the snapshot of an image did not outlast the work on ZFS: it is %v, %q: %v", op.GetState(), op.GetStep(), op.GetError())
			}
			t.Logf("meanwhile the snapshot of an image: %q", op.GetStep())
			ended = true
			c.must(fault.end())
			c.recovered(id, snapshots)
			c.succeeded(90*time.Second, c.api(c.running()), task)
		})
	}
}

// heldUp has an agent's task on an image meet a fault: it is asked for before, and goes to Ceph only after. It gives the operation's id.
func (c *cluster) heldUp(n *lab.Node, begin func() error) string {
	c.t.Helper()
	const point = "imageSnapshotBefore"
	ctx, points := c.within(time.Minute), n.Failpoints()
	c.must(points.Arm(ctx, point, "sleep(3000)"))
	asked := metadata.AppendToOutgoingContext(withRequestID(ctx, requestID()), "debvisor-wait", "none")
	made, err := c.api(c.running()).storage.CreateSnapshot(asked, &debvisorv1.SnapshotRequest{Dataset: image("vms", "held-up")})
	c.must(err)
	c.must(points.AwaitHit(ctx, point))
	c.must(begin())
	c.must(points.Disarm(ctx, point))
	return made.GetOperationId()
}

// answeredBeside asks about ZFS for as long as the questions about Ceph hang.
func (r *replica) answeredBeside(w *wave, points *lab.Failpoints) {
	r.c.t.Helper()
	ask, n := r.c.api(r.c.running()).storage, 0
	ctx := r.c.within(zfsAnswer)
	r.c.eventually(zfsAnswer, "as much is asked about Ceph as the agent takes", func() error {
		asked, err := points.Hits(ctx, cephAsked)
		if err == nil && asked < cephAtOnce {
			err = fmt.Errorf("%d questions are", asked)
		}
		return err
	})
	for begun := time.Now(); w.hangs() && time.Since(begun) < deadAnswer; {
		at := time.Now()
		list, err := ask.ListSnapshots(r.c.within(zfsAnswer), &debvisorv1.SnapshotFilter{Dataset: r.ref})
		if err != nil || len(list.GetSnapshots()) == 0 {
			r.c.t.Fatalf("beside a dead Ceph, %v was answered about ZFS after %v: %v", list, time.Since(at), err)
		}
		if w.hangs() {
			n++
		}
	}
	r.c.t.Logf("%d questions about ZFS were answered before the first about Ceph", n)
	if n < besideDead {
		r.c.t.Errorf("%d questions about ZFS were answered while those about Ceph hung, at least %d should be", n, besideDead)
	}
}

// worked has a snapshot taken, what is too old pruned and the rest replicated, and tells how long all of that took.
func (r *replica) worked() time.Duration {
	r.c.t.Helper()
	begun := time.Now()
	ask := r.c.api(r.c.running()).storage
	for range 2 {
		_, err := ask.CreateSnapshot(r.c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: r.ref})
		r.c.must(err)
	}
	pruned, err := ask.PruneSnapshots(r.c.within(time.Minute), &debvisorv1.PruneRequest{Dataset: r.ref, Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}})
	r.c.must(err)
	if pruned.GetRemovedCount() == 0 {
		r.c.t.Errorf("nothing was pruned: %v", pruned)
	}
	r.c.write(r.from, r.path, 2)
	r.run()
	return time.Since(begun)
}
