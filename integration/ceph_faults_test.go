package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// What befalls a task on RBD at a failpoint, besides killSource (the agent) and killLeader.
const (
	killChild strike = "ceph-child-killed" // the processes that speak to Ceph for the agent
	killOSD   strike = "osd-killed"
	stopMon   strike = "monitor-stopped"
)

// imagePoints are the failpoints of an agent's tasks on images.
var imagePoints = []string{ //nolint:gochecknoglobals // a table, never changed
	"imageSnapshotBefore", "imageSnapshotTaken", "imageRemoveBefore", "imageRemoved", "imageCloneBefore", "imageCloned",
	"imageFlattenBefore", "imageFlattening", "imageFlattened", "imageDeleteBefore", "imageDeleted",
}

// imageFaults is the whole matrix in a campaign, and else what the other tests of RBD leave out.
func imageFaults() []storageFault {
	if os.Getenv("DEBVISOR_MATRIX") != "full" {
		return []storageFault{
			{"imageSnapshotTaken", killLeader},
			{"imageRemoved", killSource},
			{"imageCloneBefore", killOSD},
			{"imageCloned", killChild},
			{"imageFlattened", killSource}, // in the middle of it, half a minute goes until Ceph misses the dead owner of the lock
		}
	}
	var all []storageFault
	for _, point := range imagePoints {
		for _, s := range []strike{killSource, killChild, killLeader, killOSD, stopMon} {
			all = append(all, storageFault{point, s})
		}
	}
	return all
}

// imageJob is a request on images: asked again and again it is done once.
type imageJob struct {
	ask func(ctx context.Context, a *api) error
	// done and undone say what is wrong with it being done once, and not at all.
	done, undone func() error
}

// imageJob gives the request that passes a failpoint.
func (c *cluster) imageJob(point string, golden *debvisorv1.SnapshotRef, name string) imageJob {
	c.t.Helper()
	source, a := "vms/struck@"+golden.GetSnapshotName(), c.api(c.running())
	clone := &debvisorv1.RbdCloneRequest{TemplateSnapshot: golden, NewImage: image("clones", name)}
	ref := &debvisorv1.ImageRef{Image: clone.GetNewImage()}
	made := func() error { _, err := a.storage.CloneRbdFromTemplate(c.within(time.Minute), clone); return err }
	count := func(want int, what string, have []string) error {
		if len(have) != want {
			return fmt.Errorf("%s: %v, want %d", what, have, want)
		}
		return nil
	}
	children := func(n int) func() error {
		return func() error { return count(n, "clones", lines(c.rbd("children", "--all", source))) }
	}
	snapshots := func(n int) func() error {
		return func() error {
			return count(n, "snapshots", lines(c.rbd("snap", "ls", "--all", "vms/"+name))[min(1, n):])
		}
	}
	images := func(n int) func() error {
		return func() error {
			var all []string
			for _, one := range lines(c.rbd("ls", "clones")) {
				if one == name {
					all = append(all, one)
				}
			}
			return count(n, "images", all)
		}
	}
	switch {
	case strings.HasPrefix(point, "imageClone"):
		return imageJob{func(ctx context.Context, a *api) error {
			_, err := a.storage.CloneRbdFromTemplate(ctx, clone)
			return err
		}, children(1), children(0)}
	case strings.HasPrefix(point, "imageFlatten"):
		c.must(made())
		return imageJob{func(ctx context.Context, a *api) error { _, err := a.storage.FlattenImage(ctx, ref); return err }, children(0), children(1)}
	case strings.HasPrefix(point, "imageDelete"):
		c.must(made())
		return imageJob{func(ctx context.Context, a *api) error { _, err := a.storage.DeleteImage(ctx, ref); return err }, images(0), images(1)}
	}
	c.rbd("create", "--size", "8M", "vms/"+name)
	req := &debvisorv1.SnapshotRequest{Dataset: image("vms", name)}
	if strings.HasPrefix(point, "imageSnapshot") {
		return imageJob{func(ctx context.Context, a *api) error { _, err := a.storage.CreateSnapshot(ctx, req); return err }, snapshots(1), snapshots(0)}
	}
	taken, err := a.storage.CreateSnapshot(c.within(time.Minute), req)
	c.must(err)
	gone := &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{taken.GetSnapshot()}}
	return imageJob{func(ctx context.Context, a *api) error { _, err := a.storage.DeleteSnapshots(ctx, gone); return err }, snapshots(0), snapshots(1)}
}

// TestCephFaults strikes tasks on images at their failpoints. The same request, asked again, is done once and leaves nothing over;
// where Ceph itself was dead it may have failed instead, with nothing done.
func TestCephFaults(t *testing.T) {
	todo := campaignOf(t)
	c := cephed.use(t)
	golden := c.template("struck")
	t.Run("lab", func(t *testing.T) {
		for i, f := range left(todo, imageFaults()) {
			if !todo.until.IsZero() && time.Now().After(todo.until) {
				t.Skip("no time is left")
			}
			t.Run(f.String(), func(t *testing.T) {
				c := cephed.use(t) // made whole after the case before
				c.struckImage(f, golden, fmt.Sprintf("struck-%d", i))
			})
		}
	})
}

func (c *cluster) struckImage(f storageFault, golden *debvisorv1.SnapshotRef, name string) {
	begun := time.Now()
	job := c.imageJob(f.point, golden, name)
	_, leader := c.follower()
	asked := c.api(c.others(leader)[0])
	id := requestID()
	none := func() context.Context {
		return metadata.AppendToOutgoingContext(withRequestID(c.within(30*time.Second), id), "debvisor-wait", "none")
	}
	if f.strike == killSource {
		c.struck(f.point, func() { c.must(job.ask(none(), asked)) })
	} else {
		c.strikeImage(f, leader, func() { c.must(job.ask(none(), asked)) })
	}
	var failed error
	c.eventually(2*time.Minute, "the request has an end", func() error {
		ctx, cancel := context.WithTimeout(withRequestID(c.t.Context(), id), 30*time.Second)
		defer cancel()
		if failed = job.ask(ctx, asked); !hasEnded(failed) {
			return failed
		}
		return nil
	})
	check := job.done
	if failed != nil {
		if f.strike != killOSD && f.strike != stopMon {
			c.t.Fatalf("the death of our own processes failed it: %v", failed)
		}
		check = job.undone
	}
	c.must(check())
	c.eventually(30*time.Second, "nothing is left in the trash", func() error {
		if left := c.trash(); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	// What is left of the case itself is not the next one's.
	if strings.HasPrefix(f.point, "imageClone") && failed == nil {
		c.eventually(time.Minute, "the clone is removed", func() error { // Ceph may still be on its way back
			_, err := asked.storage.DeleteImage(c.within(time.Minute), &debvisorv1.ImageRef{Image: image("clones", name)})
			if status.Code(err) == codes.NotFound {
				return nil
			}
			return err
		})
	}
	end, code := debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED, ""
	if failed != nil {
		d, _ := details(failed)
		end, code = debvisorv1.OperationState_OPERATION_STATE_FAILED, d.GetCode()
	}
	c.t.Logf("outcome: %v %s; %.1f s", end, code, time.Since(begun).Seconds())
}

// hasEnded tells whether an answer is of an operation that has come to its end, well or not.
func hasEnded(err error) bool {
	if err == nil {
		return true
	}
	d, _ := details(err)
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Unavailable, codes.Canceled:
		return false
	}
	return d.GetContext()["operation"] != ""
}

// strikeImage has what was asked for held up for a moment at the failpoint, and strikes meanwhile.
func (c *cluster) strikeImage(f storageFault, leader *lab.Replica, ask func()) {
	c.t.Helper()
	ctx := c.within(time.Minute)
	for _, n := range c.Nodes {
		c.must(n.Failpoints().Arm(ctx, f.point, "sleep(3000)"))
	}
	ask()
	var at *lab.Node
	c.eventually(45*time.Second, "an agent is at "+f.point, func() error {
		for _, n := range c.Nodes {
			if hits, err := n.Failpoints().Hits(ctx, f.point); err != nil || hits > 0 {
				at = n
				return err
			}
		}
		return errors.New("none is")
	})
	for _, n := range c.Nodes {
		c.must(n.Failpoints().Disarm(ctx, f.point))
	}
	osd, mon := c.Ceph.OSDs[0], c.Ceph.Mon
	switch f.strike {
	case killLeader:
		c.must(leader.Process.Kill())
		c.must(leader.Start())
	case killChild:
		children, err := cephProcesses(at)
		c.must(err)
		if len(children) == 0 {
			c.t.Fatalf("%s has no process that speaks to Ceph", at.Name)
		}
		for _, child := range children {
			c.must(child.Kill())
		}
	case killOSD:
		c.must(osd.Kill())
		c.deadUntil(osd.Start)
	case stopMon:
		c.must(mon.Shutdown(ctx))
		c.deadUntil(mon.Start)
	}
}

// deadUntil ends Ceph's death once our daemons have met it.
func (c *cluster) deadUntil(end func() error) {
	c.t.Helper()
	c.eventually(40*time.Second, "Ceph is known to be dead", func() error {
		if _, err := c.api(c.running()).storage.ListImages(c.within(35*time.Second), &debvisorv1.ImageFilter{Pool: "vms"}); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
	c.must(end())
}
