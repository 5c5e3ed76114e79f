package replication

import (
	"fmt"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestFullAndIncrements: a copy is made, and brought up to date from a snapshot and
// from a bookmark, for every sort of dataset.
func TestFullAndIncrements(t *testing.T) {
	for name, c := range map[string]struct{ volume, encrypted bool }{
		"file system": {false, false}, "volume": {true, false}, "encrypted": {false, true}, "encrypted volume": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "dst", c.volume, c.encrypted).agents()
			j.write(8, "1")
			j.snapshot("s1")
			out := j.must(j.steps("", "s1"))
			if out.GetBytes() < 8<<20 || out.GetCursor().GetName() != "s1" {
				t.Errorf("outcome %v", out)
			}
			j.atRest("s1")
			j.write(2, "22")
			j.snapshot("s2")
			j.must(j.steps("s1", "s2"))
			j.atRest("s2")
			j.write(1, "333")
			j.snapshot("s3")
			mark := fmt.Sprintf("#debvisor-%s-%x", j.id, guid(t, j.source+"@s2"))
			steps := j.steps(mark, "s3")
			release(j.source)
			sh(t, "zfs", "destroy", j.source+"@s2")
			j.must(steps)
			j.atRest("s3")
		})
	}
}

// TestJobsOfLikeNames: neither a run of a job nor its end touches what another keeps
// of the same dataset, though the one's name begins the other's.
func TestJobsOfLikeNames(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	other := fmt.Sprintf("%s#debvisor-%s-1-%x", j.source, j.id, guid(t, j.source+"@s1"))
	sh(t, "zfs", "bookmark", j.source+"@s1", other)
	j.must(j.steps("", "s1"))
	end := &agentv1.Task{Id: "op-end/source-1/replication-release", Term: &agentv1.Term{Epoch: 1, Revision: 9}, Resource: "replication/" + j.id, Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicationRelease{
		ReplicationRelease: &agentv1.ReplicationRelease{JobId: j.id, Dataset: j.source},
	}}}
	j.from.accept(end)
	if out := j.from.outcome(end); out.GetErrorCode() != "" {
		t.Fatal(out)
	}
	if marks := sh(t, "zfs", "list", "-H", "-o", "name", "-t", "bookmark", j.source); marks != other {
		t.Errorf("bookmarks %q; want that of the other job, %s", marks, other)
	}
}

// TestManySteps: snapshots in between are all there afterwards.
func TestManySteps(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	names := []string{""}
	const many = 16
	for i := range many {
		name := fmt.Sprintf("s%02d", i)
		sh(t, "sh", "-c", "echo "+name+" > /mnt/"+j.source+"/file")
		j.snapshot(name)
		names = append(names, name)
	}
	j.must(j.steps(names...))
	j.atRest(fmt.Sprintf("s%02d", many-1))
	for _, name := range names[1:] {
		if guid(t, j.source+"@"+name) != guid(t, j.target+"@"+name) {
			t.Errorf("@%s differs", name)
		}
	}
}

// TestEverySendersPoint and TestEveryReceiversPoint kill one of the agents with SIGKILL
// at every step of increments: each run goes on by itself, what is left is as if nobody
// had died, and while somebody is dead the chain holds.
func TestEverySendersPoint(t *testing.T) {
	everyPoint(t, pointSendHold, pointSendHeld, pointSendBegin, pointSendStream, pointSendLast, pointSendStreamed, pointSendWhole,
		pointSendBookmark, pointSendMarked, pointSendReleasing, pointSendSettled, pointSendDone)
}

func TestEveryReceiversPoint(t *testing.T) {
	everyPoint(t, pointReceiveListen, pointReceiveBegin, pointReceiveStream, pointReceiveWhole, pointReceiveChecked, pointReceiveHold,
		pointReceiveHeld, pointReceiveReleasing, pointReceiveReleased)
}

func everyPoint(t *testing.T, points ...string) {
	t.Helper()
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "0")
	j.snapshot("s0")
	j.must(j.steps("", "s0"))
	last := "s0"
	for i, point := range points {
		deaths := j.from.deaths() + j.to.deaths()
		j.dieAt(point, 0)
		j.eachDeath(func() { j.chained(point) })
		a, b := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
		j.write(3, fmt.Sprint(i))
		j.snapshot(a)
		j.write(1, fmt.Sprint(i, "b"))
		j.snapshot(b)
		j.must(j.steps(last, a, b))
		if j.from.deaths()+j.to.deaths() != deaths+2 {
			t.Errorf("%s: nobody died", point)
		}
		j.eachDeath(nil)
		j.kept(b)
		if guid(t, j.source+"@"+a) != guid(t, j.target+"@"+a) {
			t.Errorf("%s: the first step's snapshot is another", point)
		}
		if last = b; t.Failed() {
			t.Fatalf("at %s", point)
		}
	}
	j.atRest(last)
}

// eachDeath has something done whenever one of the agents is dead.
func (j *job) eachDeath(do func()) {
	for _, a := range []*agent{j.from, j.to} {
		a.mu.Lock()
		a.dead = do
		a.mu.Unlock()
	}
}

// TestFirstCopyKilled kills the agents in the middle of a first copy, where nothing
// is whole yet: it is resumed.
func TestFirstCopyKilled(t *testing.T) {
	for _, point := range []string{pointSendStream, pointSendLast, pointReceiveBegin, pointReceiveStream, pointReceiveWhole} {
		j := newJob(t, "dst", point == pointReceiveStream, point == pointSendStream).agents()
		j.write(24, "1")
		j.snapshot("s1")
		j.mib = 8
		after := 0
		if point == pointSendStream || point == pointReceiveStream {
			after = 20
		}
		j.dieAt(point, after)
		out := j.must(j.steps("", "s1"))
		if after > 0 && out.GetResumes() == 0 {
			t.Errorf("%s: not resumed: %v", point, out)
		}
		j.atRest("s1")
	}
}

// dieAt has the agent of that failpoint killed, and once more when it has passed
// that point so often.
func (j *job) dieAt(point string, after int) {
	a := j.of(point)
	a.mu.Lock()
	a.nextDieAt, a.cfg.DieAfter = point, after
	a.mu.Unlock()
	before := a.deaths()
	a.kill()
	j.until("the restart", func() bool { return a.deaths() > before })
}

// of is the agent that has the failpoint; both have those of a job's end.
func (j *job) of(point string) *agent {
	if strings.HasPrefix(point, "replicationReceive") || strings.HasPrefix(point, "replicationRelease") {
		return j.to
	}
	return j.from
}

// dieAtBoth has the agent of two failpoints killed at the one, and the next process at
// the other.
func (j *job) dieAtBoth(one, other string) {
	j.dieAt(one, 0)
	a := j.of(one)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nextDieAt = other
}

// TestOneRequestOneSnapshot: the same operation twice is one set of snapshots, also
// when the agent died right after it was taken.
func TestOneRequestOneSnapshot(t *testing.T) {
	for _, point := range []string{"", pointSnapshotBefore, pointSnapshotTaken} {
		j := newJob(t, "dst", false, false)
		a := startAgent(t, "a", func(c *agentConfig) { c.DieAt = point })
		task := &agentv1.Task{
			Id: "op-" + j.id + "/1/zfs-snapshot", Resource: "zfs/" + j.source, Term: &agentv1.Term{Epoch: 1, Revision: 1},
			Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
				Datasets: []string{j.source}, Name: "dv-1", Operation: "op-" + j.id, Label: "nightly", Set: "set-1",
			}}},
		}
		for attempt := range 2 {
			task.Id = fmt.Sprintf("op-%s/%d/zfs-snapshot", j.id, attempt)
			out := a.outcome(task)
			if out.GetErrorCode() != "" || len(out.GetZfs().GetMade()) != 1 || out.GetZfs().GetMade()[0].GetGuid() != guid(t, j.source+"@dv-1") {
				t.Errorf("%q: %v", point, out)
			}
		}
		if got := sh(t, "zfs", "get", "-H", "-o", "value", "org.debvisor:label,org.debvisor:set,org.debvisor:operation", j.source+"@dv-1"); got != "nightly\nset-1\nop-"+j.id {
			t.Errorf("properties %q", got)
		}
		task.Id = fmt.Sprintf("op-%s/9/zfs-snapshot", j.id)
		task.GetSpec().GetZfsSnapshotCreate().Operation = "another"
		if out := a.outcome(task); out.GetErrorCode() != "SNAPSHOT_EXISTS" {
			t.Errorf("another's: %v", out)
		}
	}
}

// TestDestroy: what is gone is done; what is held, or is another, stays.
func TestDestroy(t *testing.T) {
	j := newJob(t, "dst", false, false)
	a := startAgent(t, "a", func(c *agentConfig) { c.DieAt = pointDestroyBatch })
	spec := &agentv1.ZfsSnapshotDestroy{}
	for _, name := range []string{"a", "b", "held", "other"} {
		j.snapshot(name)
		spec.Snapshots = append(spec.Snapshots, &agentv1.ZfsSnapshotID{Dataset: j.source, Name: name, Guid: guid(t, j.source+"@"+name)})
	}
	spec.Snapshots[3].Guid++
	sh(t, "zfs", "destroy", j.source+"@b")
	sh(t, "zfs", "hold", "mine", j.source+"@held")
	out := a.outcome(&agentv1.Task{
		Id: "op-" + j.id + "/1/zfs-destroy", Resource: "zfs/" + j.source, Term: &agentv1.Term{Epoch: 1, Revision: 1},
		Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotDestroy{ZfsSnapshotDestroy: spec}},
	})
	if out.GetErrorCode() != "" || out.GetZfs().GetDestroyed() != 2 || len(out.GetZfs().GetKept()) != 2 {
		t.Fatalf("%v", out)
	}
	for i, code := range []string{"SNAPSHOT_HELD", "DATASET_CHANGED"} {
		if k := out.GetZfs().GetKept()[i]; k.GetCode() != code {
			t.Errorf("%v; want %s", k, code)
		}
	}
}

// TestRelease takes all away that a job keeps.
func TestRelease(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	j.must(j.steps("", "s1"))
	j.dieAtBoth(pointReleaseHolds, pointReleaseMark)
	deaths := j.to.deaths()
	for _, target := range []bool{false, true} {
		a, dataset := j.from, j.source
		if target {
			a, dataset = j.to, j.target
		}
		out := a.outcome(&agentv1.Task{
			Id: fmt.Sprintf("op-%s/1/replication-release", j.id+dataset), Resource: "replication/" + dataset, Term: &agentv1.Term{Epoch: 1, Revision: 1},
			Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicationRelease{ReplicationRelease: &agentv1.ReplicationRelease{JobId: j.id, Dataset: dataset, Target: target}}},
		})
		if got := holds(t, dataset); out.GetErrorCode() != "" || len(got) > 0 {
			t.Errorf("%v; holds %v", out, got)
		}
	}
	if n := j.to.deaths() - deaths; n != 2 {
		t.Errorf("the target's agent died %d times", n)
	}
	if marks := sh(t, "zfs", "list", "-H", "-o", "name", "-t", "bookmark", j.source); marks != "" {
		t.Errorf("bookmarks %s", marks)
	}
	if got := sh(t, "zfs", "get", "-H", "-o", "value", "readonly,org.debvisor:job", j.target); got != "off\n-" {
		t.Errorf("the copy: %q", got)
	}
}

// TestCancelled: a first copy that is cancelled leaves nothing, an increment leaves
// the former cursor, also where the target's agent dies at it.
func TestCancelled(t *testing.T) {
	for _, full := range []bool{true, false} {
		j := newJob(t, "dst", false, false).agents()
		from := ""
		if !full {
			j.write(1, "0")
			j.snapshot("s0")
			j.must(j.steps("", "s0"))
			from = "s0"
		}
		j.write(16, "1")
		j.snapshot("s1")
		j.mib = 1
		j.dieAtBoth(pointReceiveDiscard, pointReceiveDiscarded)
		deaths := j.to.deaths()
		receive, send := j.tasks(j.steps(from, "s1"))
		j.begin(receive, send)
		j.from.await(send, "progress", func(r *agentv1.TaskReport) bool { return r.GetProgress().GetReplicateSend().GetBytesDone() > 1<<20 })
		j.from.say("cancel %s", send.GetId())
		j.until("the target's end", func() bool {
			j.to.say("cancel %s", receive.GetId()) // a leader says so to every process
			return j.to.ended(receive)
		})
		if n := j.to.deaths() - deaths; n != 2 {
			t.Errorf("the target's agent died %d times", n)
		}
		for _, out := range []*agentv1.TaskOutcome{j.from.outcome(send), j.to.outcome(receive)} {
			if out.GetErrorCode() != "CANCELLED" {
				t.Errorf("%v", out)
			}
		}
		j.nothingPartial()
		if !full {
			j.atRest("s0")
			continue
		}
		if got := holds(t, j.source); len(got) > 0 {
			t.Errorf("holds %v", got)
		}
		if got := try("zfs", "list", j.target); got == "" || got[:6] != "cannot" {
			t.Errorf("the target is there: %s", got)
		}
	}
}

// TestPace: the run's own limit is kept, and so are those of all that leave one node
// and of all that arrive on the other.
func TestPace(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	last := ""
	for name, edit := range map[string]func(*agentv1.ReplicateSend, *agentv1.ReplicateReceive){
		"run":      func(out *agentv1.ReplicateSend, _ *agentv1.ReplicateReceive) { out.BandwidthMib = 3 },
		"leaving":  func(out *agentv1.ReplicateSend, _ *agentv1.ReplicateReceive) { out.NodeBandwidthMib = 3 },
		"arriving": func(_ *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) { in.NodeBandwidthMib = 3 },
	} {
		j.edit = edit
		j.write(6, name)
		j.snapshot(name)
		began := time.Now()
		j.must(j.steps(last, name))
		if took := time.Since(began); took < 1700*time.Millisecond {
			t.Errorf("%s: 6 MiB at 3 MiB/s took %s", name, took)
		}
		last = name
	}
}
