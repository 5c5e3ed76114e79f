package image

import (
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestASnapshotOutlivesADeadCluster: it waits, says for what, and is taken once
// when the cluster is back; also when the agent died meanwhile.
func TestASnapshotOutlivesADeadCluster(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		s := newSite(t)
		a := s.image("rbd/a")
		op := operation()
		order := snapshotTask(op, 1, &agentv1.RbdSnapshotCreate{Images: []*agentv1.RbdImageID{a}, Name: "dv-1"})
		if err := s.cluster.OSDs[0].Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := s.start(order)
		p.until(t, "that Ceph is waited for", func() bool { return p.said("waiting for Ceph") })
		if killed {
			_ = p.cmd.Process.Kill()
			<-p.done
			p = s.start(order)
			p.until(t, "that Ceph is waited for", func() bool { return p.said("waiting for Ceph") })
		}
		if err := s.cluster.OSDs[0].Resume(); err != nil {
			t.Fatal(err)
		}
		if out := p.end(t); out.GetErrorCode() != "" || len(out.GetRbd().GetMade()) != 1 {
			t.Errorf("killed=%v: %v", killed, out)
		}
		if got := s.snapshots("rbd/a", "--all"); len(got) != 1 {
			t.Errorf("killed=%v: snapshots %v", killed, got)
		}
	}
}

// TestTasksOfADeadClusterEnd: cancelled ones soon, others when they have waited long
// enough; what may have been done is told of, and found by another attempt.
func TestTasksOfADeadClusterEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	golden := s.template()
	spec := &agentv1.RbdSnapshotCreate{Images: []*agentv1.RbdImageID{golden.GetImage()}, Name: "dv-1"}
	op, image := operation(), &agentv1.RbdImageID{Pool: "rbd", Name: "vm1"}
	if err := s.cluster.OSDs[0].Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	impatient := func(c *agentConfig) { c.Patience = time.Second }
	for name, c := range map[string]struct {
		task *agentv1.Task
		edit func(*agentConfig)
	}{
		"snapshot": {snapshotTask(op, 1, spec), impatient},
		"clone":    {cloneTask(op, 1, golden, image), impatient},
		"remove":   {removeTask(operation(), golden), impatient},
		"fence":    {s.fenceTask(operation(), 1, golden.GetImage()), impatient},
		"flatten":  {flattenTask(operation(), 1, golden.GetImage(), op), impatient},
		"delete":   {deleteTask(operation(), 1, golden.GetImage(), op), impatient},
	} {
		if out := s.do(c.task, c.edit); !out.GetInterrupted() || out.GetErrorCode() != "CEPH_UNKNOWN" && out.GetErrorCode() != "CEPH_DOWN" {
			t.Errorf("%s: %v", name, out)
		}
	}
	for name, order := range map[string]*agentv1.Task{
		"snapshot": snapshotTask(op, 2, spec), "clone": cloneTask(op, 2, golden, image), "flatten": flattenTask(operation(), 1, golden.GetImage(), op),
	} {
		p := s.start(order, cancelAt("start"))
		if out := p.end(t); out.GetErrorCode() != "CANCELLED" && out.GetErrorCode() != "CEPH_UNKNOWN" || out.GetInterrupted() {
			t.Errorf("%s, cancelled: %v", name, out)
		}
	}
	if err := s.cluster.OSDs[0].Resume(); err != nil {
		t.Fatal(err)
	}
	for attempt := 3; attempt < 5; attempt++ {
		for name, order := range map[string]*agentv1.Task{"snapshot": snapshotTask(op, attempt, spec), "clone": cloneTask(op, attempt, golden, image)} {
			if out := s.do(order); out.GetErrorCode() != "" {
				t.Errorf("%s: %v", name, out)
			}
		}
	}
	s.only("rbd", "base", "vm1")
	if got := s.snapshots("rbd/base", "--all"); len(got) != 2 {
		t.Errorf("snapshots %v", got)
	}
}
