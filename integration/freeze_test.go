package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	heldLine   = "tick held"
	goesOnLine = "tick goes on"
)

// quiet is the guest on images as tests of freezes ask about it: what it has said before does not count.
type quiet struct {
	*mover
	past int
}

func (c *cluster) quietGuest() *quiet {
	c.t.Helper()
	g := c.onImages()
	c.eventually(time.Minute, "the guest agent answers", func() error {
		_, err := g.from.Run(c.within(10*time.Second), "virsh", "guestinfo", "--filesystem", g.UUID)
		return err
	})
	return &quiet{mover: g, past: len(g.ConsoleText())}
}

// said counts a line of the guest's console since the test began.
func (q *quiet) said(line string) int { return strings.Count(q.ConsoleText()[q.past:], line) }

// thaws waits until the guest goes on, and gives how long it has been frozen as far as was seen.
func (q *quiet) thaws(limit time.Duration) time.Duration {
	q.c.t.Helper()
	begun := time.Now()
	q.c.eventually(limit, "the guest goes on", func() error {
		if held, on := q.said(heldLine), q.said(goesOnLine); held == 0 || on < held {
			return fmt.Errorf("held %d times, went on %d times", held, on)
		}
		return nil
	})
	took := time.Since(begun)
	q.c.must(q.Ticks(q.c.within(30 * time.Second)))
	return took
}

// begin asks for a set of snapshots of the guest's disks and does not wait.
func (q *quiet) begin(id string, consistency debvisorv1.Consistency, budget time.Duration) string {
	q.c.t.Helper()
	ctx := metadata.AppendToOutgoingContext(withRequestID(q.c.within(time.Minute), id), "debvisor-wait", "none")
	answer, err := q.c.api(q.c.running()).storage.CreateSnapshotSet(ctx, &debvisorv1.SnapshotSetRequest{
		Vm: vmRef(q.UUID), Label: id, Consistency: consistency, FreezeBudgetMs: uint32(budget.Milliseconds()),
	})
	q.c.must(err)
	return answer.GetOperationId()
}

// sets are the group's snapshots of the guest's images, by image, as Ceph has them now.
func (q *quiet) sets() (all []string) {
	q.c.t.Helper()
	for _, d := range q.Disks {
		var found []struct {
			Name      string
			Namespace struct{ Type string }
		}
		q.c.rbdJSON(&found, "snap", "ls", "--all", d.Path)
		for _, s := range found {
			all = append(all, fmt.Sprintf("%s@%s (%s)", d.Path, s.Name, s.Namespace.Type))
		}
	}
	return all
}

// TestFreeze: snapshots of a frozen guest are all of one moment of the guest's own, and no guest stays frozen, whoever dies.
func TestFreeze(t *testing.T) {
	const application = debvisorv1.Consistency_CONSISTENCY_APPLICATION
	t.Run("a set of a frozen guest", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		answer, err := c.api(c.running()).storage.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{Vm: vmRef(q.UUID), Consistency: application})
		c.must(err)
		if f := answer.GetFreeze(); !f.GetFrozen() || f.GetFilesystems() != 1 || f.GetFrozenMs() == 0 || f.GetReason() != "" || len(answer.GetSnapshots()) != 2 {
			t.Errorf("it answers %v", answer)
		}
		t.Logf("frozen for %d ms", answer.GetFreeze().GetFrozenMs())
		q.thaws(10 * time.Second)
		if q.said(heldLine) != 1 {
			t.Errorf("it was held %d times", q.said(heldLine))
		}
		histories := q.snapshotted(answer.GetSnapshots())
		if a, b := histories[0].Last(), histories[1].Last(); a.Counter != b.Counter || a.Counter == 0 {
			t.Errorf("the disks' snapshots end with %d and %d", a.Counter, b.Counter)
		}
		q.drop(answer.GetSnapshots())
	})
	t.Run("a set as if the power had failed", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		answer, err := c.api(c.running()).storage.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{Vm: vmRef(q.UUID)})
		c.must(err)
		if answer.GetFreeze().GetFrozen() || q.said(heldLine) != 0 {
			t.Errorf("it answers %v; held %d times", answer.GetFreeze(), q.said(heldLine))
		}
		histories := q.snapshotted(answer.GetSnapshots())
		c.must(inStep(histories[0], histories[1]))
		q.drop(answer.GetSnapshots())
	})
	t.Run("the agent is killed while the guest is frozen", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		before := q.sets()
		points := q.from.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "freezeFrozen", hold))
		id := q.begin("frozen-agent-dies", application, 20*time.Second)
		c.must(points.AwaitHit(c.within(30*time.Second), "freezeFrozen"))
		c.must(q.from.Agent.Kill())
		if took := q.thaws(10 * time.Second); took > 5*time.Second {
			t.Errorf("it went on %v after the agent's death", took)
		}
		c.must(q.from.Agent.Start())
		op := c.ended(time.Minute, c.api(c.running()), id)
		if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
			t.Fatalf("it is %v: %v", op.GetState(), op.GetError())
		}
		made := slices.DeleteFunc(q.sets(), func(s string) bool { return slices.Contains(before, s) })
		if len(made) != 2 {
			t.Errorf("one set was to be made of two images: %q", made)
		}
		q.thaws(10 * time.Second)
	})
	t.Run("the agent is killed when the snapshots are taken and nobody knows of what guest", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		before := q.sets()
		points := q.from.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "freezeTaken", hold))
		id := q.begin("taken-agent-dies", application, 20*time.Second)
		c.must(points.AwaitHit(c.within(30*time.Second), "freezeTaken"))
		unsure := q.sets()
		c.must(q.from.Agent.Kill())
		q.thaws(10 * time.Second)
		c.must(q.from.Agent.Start())
		op := c.ended(time.Minute, c.api(c.running()), id)
		made := slices.DeleteFunc(q.sets(), func(s string) bool { return slices.Contains(before, s) })
		if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED || len(made) != 2 || len(unsure) != len(before)+2 {
			t.Errorf("it is %v, %v: first made %q, in the end %q", op.GetState(), op.GetError(), unsure, made)
		}
		if q.said(heldLine) < 2 {
			t.Errorf("the guest was held %d times: the snapshots were not taken anew", q.said(heldLine))
		}
	})
	t.Run("the snapshots take longer than the budget", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		before := q.sets()
		points := q.from.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "freezeTaken", "sleep(4000)"))
		id := q.begin("too-long", application, time.Second)
		c.must(points.AwaitHit(c.within(30*time.Second), "freezeTaken"))
		if took := q.thaws(10 * time.Second); took > 3*time.Second {
			t.Errorf("with a budget of 1 s it was seen frozen for %v", took)
		}
		op := c.ended(time.Minute, c.api(c.running()), id)
		if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED || op.GetError().GetCode() != "FREEZE_EXPIRED" {
			t.Errorf("it is %v: %v", op.GetState(), op.GetError())
		}
		c.must(points.Disarm(c.within(10*time.Second), "freezeTaken"))
		if after := q.sets(); !slices.Equal(after, before) {
			t.Errorf("snapshots before %q, after %q", before, after)
		}
	})
	t.Run("whoever holds the freeze is killed", func(t *testing.T) {
		c := cephed.use(t)
		q := c.quietGuest()
		before := q.sets()
		points := q.from.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "freezeTaken", "sleep(2000)"))
		id := q.begin("holder-dies", application, 20*time.Second)
		c.must(points.AwaitHit(c.within(30*time.Second), "freezeTaken"))
		q.killHolder()
		q.thaws(15 * time.Second)
		op := c.ended(time.Minute, c.api(c.running()), id)
		if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED || op.GetError().GetCode() != "FREEZE_EXPIRED" {
			t.Errorf("it is %v: %v", op.GetState(), op.GetError())
		}
		c.must(points.Disarm(c.within(10*time.Second), "freezeTaken"))
		if after := q.sets(); !slices.Equal(after, before) {
			t.Errorf("snapshots before %q, after %q", before, after)
		}
	})
	t.Run("a guest without an agent", func(t *testing.T) {
		c := cephed.use(t)
		g := c.guestLike(lab.GuestSpec{Name: "deaf", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}}})
		ask := c.api(c.running()).storage
		_, err := ask.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{Vm: vmRef(g.UUID), Consistency: application})
		if got := errdefs.FromStatus(err); got == nil || got.Code != "NO_GUEST_AGENT" {
			t.Errorf("required: %v", err)
		}
		answer, err := ask.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{
			Vm: vmRef(g.UUID), Consistency: debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION,
		})
		if err != nil || answer.GetFreeze().GetFrozen() || !strings.Contains(answer.GetFreeze().GetReason(), "agent") || len(answer.GetSnapshots()) != 1 {
			t.Errorf("preferred: %v, %v", answer, err)
		}
	})
}

// killHolder kills the child that holds the guest's freeze.
func (q *quiet) killHolder() {
	q.c.t.Helper()
	all, err := q.from.Tasks()
	q.c.must(err)
	killed := 0
	for _, p := range all {
		if slices.Contains(p.Args, "freeze") && slices.Contains(p.Args, q.UUID) {
			q.c.must(p.Kill())
			killed++
		}
	}
	if killed != 1 {
		q.c.t.Fatalf("%d processes held the freeze", killed)
	}
}

// snapshotted reads what the snapshots of the guest's disks hold, in the disks' order.
func (q *quiet) snapshotted(made []*debvisorv1.SnapshotRef) (all []lab.History) {
	q.c.t.Helper()
	for _, d := range q.Disks {
		i := slices.IndexFunc(made, func(s *debvisorv1.SnapshotRef) bool {
			return s.GetDataset().GetPool()+"/"+s.GetDataset().GetName() == d.Path
		})
		if i < 0 {
			q.c.t.Fatalf("no snapshot of %s among %v", d.Path, made)
		}
		h, err := q.c.HistoryIn(q.c.within(30*time.Second), d.Path+"@"+made[i].GetSnapshotName())
		q.c.must(err)
		all = append(all, h)
	}
	return all
}

func (q *quiet) drop(made []*debvisorv1.SnapshotRef) {
	q.c.t.Helper()
	_, err := q.c.api(q.c.running()).storage.DeleteSnapshots(q.c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: made})
	q.c.must(err)
}
