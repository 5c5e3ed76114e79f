package integration

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestMigration moves a guest because hvctl asked a replica that does not lead.
func TestMigration(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.runsOnly(g.from))

	begin := time.Now()
	out, err := c.Hvctl(c.within(time.Minute), a.replica, "-o", "json", "migrate", "run", g.Name, "--to", g.to.Name)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	op := &debvisorv1.Operation{}
	c.must(protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(out), op))
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		t.Fatalf("hvctl says %s", out)
	}
	// At the moment of success it must be true already.
	c.must(g.runsOnly(g.to))
	g.arrived()
	downtime := time.Duration(op.GetMigration().GetDowntimeMs()) * time.Millisecond
	silence := g.LongestSilence(begin)
	t.Logf("downtime %v, the console was silent for %v at most", downtime, silence)
	if downtime <= 0 || silence > downtime+3*time.Second { // a busy machine runs a guest late
		t.Errorf("the console was silent for %v, the reported downtime is %v", silence, downtime)
	}
	c.saysEverywhere(op.GetId(), debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED)
}

// saysEverywhere checks that every replica tells the same end of an operation.
func (c *cluster) saysEverywhere(id string, want debvisorv1.OperationState) {
	c.t.Helper()
	for _, r := range c.Replicas {
		op := c.ended(10*time.Second, c.api(r), id)
		if op.GetState() != want {
			c.t.Errorf("%s says that operation %s is %v, want %v", r.Name, id, op.GetState(), want)
		}
	}
}

// TestProgress watches a move that takes some seconds.
func TestProgress(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, steady))
	id := g.begin(a)

	type point struct {
		at   time.Time
		done uint64
	}
	var points []point
	ctx := c.within(time.Minute)
	all, err := c.watch(ctx, a, id, func(op *debvisorv1.Operation) bool {
		p := op.GetProgress()
		if n := len(points); p.GetBytesDone() > 0 && (n == 0 || points[n-1].done != p.GetBytesDone()) {
			points = append(points, point{time.Now(), p.GetBytesDone()})
		}
		return false
	})
	c.must(err)
	if got := all.last().GetState(); got != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		t.Fatalf("it ended %v: %v", got, all.last().GetError())
	}
	g.arrived()
	if len(points) < 4 {
		t.Fatalf("only %d points of progress: %v", len(points), points)
	}
	before := points[:len(points)-1] // the last one may come at once, with the end
	for i := 1; i < len(before); i++ {
		gap := before[i].at.Sub(before[i-1].at)
		if before[i].done < before[i-1].done || gap < 500*time.Millisecond || gap > 5*time.Second {
			t.Errorf("after %d bytes came %d, %v later", before[i-1].done, before[i].done, gap)
		}
	}
	// A busy machine may delay one; it is about one a second all the same.
	if mean := before[len(before)-1].at.Sub(before[0].at) / time.Duration(len(before)-1); mean > 2*time.Second {
		t.Errorf("%d points of progress came %v apart", len(before), mean)
	}
	for i, op := range all {
		if i > 0 && op.GetState() < all[i-1].GetState() {
			t.Errorf("the state went from %v to %v", all[i-1].GetState(), op.GetState())
		}
	}
}

// copying waits until libvirt itself is at the guest's memory.
func (m *mover) copying() {
	m.c.t.Helper()
	m.c.eventually(30*time.Second, "memory is copied", func() error {
		active, err := m.from.Migrating(m.UUID)
		if err == nil && !active {
			err = errors.New("libvirt has no job")
		}
		return err
	})
}

// TestCancel cancels a move before its switch-over, and another too late.
func TestCancel(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	for _, n := range c.Nodes { // so that it means something that they are gone later
		if carried, err := tunnels(n); err != nil || len(carried) == 0 {
			t.Errorf("%s has no tunnel while memory is copied: %v", n.Name, err)
		}
	}
	op, err := c.api(leader).operations.CancelOperation(c.within(30*time.Second), &debvisorv1.OperationRef{Id: id})
	c.must(err)
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_CANCELLED {
		t.Errorf("cancelling gave %v", op)
	}
	c.saysEverywhere(id, debvisorv1.OperationState_OPERATION_STATE_CANCELLED)
	g.stayed()
	// A second time it is still cancelled, and no error.
	if _, err := a.operations.CancelOperation(c.within(10*time.Second), &debvisorv1.OperationRef{Id: id}); err != nil {
		t.Errorf("cancelling again: %v", err)
	}

	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	late := g.begin(a)
	c.succeeded(time.Minute, a, late)
	_, err = a.operations.CancelOperation(c.within(10*time.Second), &debvisorv1.OperationRef{Id: late})
	refused(t, err, codes.FailedPrecondition)
	g.arrived()
}

// TestOneMoveAtATime asks for two moves of one VM at once, of two replicas.
func TestOneMoveAtATime(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	first, second := c.api(c.Replicas[0]), c.api(c.Replicas[1])
	results := atOnce(c.within(time.Minute), g.spec(), first, second)
	var done, lost *answer
	for i, r := range results {
		if r.err == nil {
			done = &results[i]
		} else {
			lost = &results[i]
		}
	}
	if done == nil || lost == nil {
		t.Fatalf("one should have succeeded: %v, %v", results[0].err, results[1].err)
	}
	d := refused(t, lost.err, codes.Aborted)
	if id := done.result.GetOperationId(); id == "" || d.GetContext()["operation"] != id {
		t.Errorf("the refusal names %v, the operation is %q", d.GetContext(), id)
	}
	g.arrived()
}

// TestOneRequestIDIsOneOperation sends one request to two replicas at once.
func TestOneRequestIDIsOneOperation(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	starts := g.starts(g.to)
	id := requestID()
	results := atOnce(withRequestID(c.within(time.Minute), id), g.spec(), c.api(c.Replicas[0]), c.api(c.Replicas[1]))
	for _, r := range results {
		c.must(r.err)
	}
	if a, b := results[0].result.GetOperationId(), results[1].result.GetOperationId(); a != b || a == "" {
		t.Errorf("two operations: %q, %q", a, b)
	}
	// Much later as well, and of a third one.
	again, err := c.api(c.Replicas[2]).migrations.MigrateVM(withRequestID(c.within(time.Minute), id), g.spec())
	c.must(err)
	if again.GetOperationId() != results[0].result.GetOperationId() {
		t.Errorf("asked again it is operation %q", again.GetOperationId())
	}
	g.arrived()
	if now := g.starts(g.to); now != starts+1 {
		t.Errorf("QEMU was started %d times on %s", now-starts, g.to.Name)
	}
	// The same id for another request is refused.
	other := g.spec()
	other.Source, other.Target = other.GetTarget(), other.GetSource()
	_, err = c.api(c.Replicas[0]).migrations.MigrateVM(withRequestID(c.within(time.Minute), id), other)
	refused(t, err, codes.InvalidArgument)
}

// answer is what came of a call.
type answer struct {
	result *debvisorv1.MigrationResult
	err    error
}

// atOnce sends one request to two replicas at the same time and waits for both.
func atOnce(ctx context.Context, spec *debvisorv1.VMMigrateSpec, first, second *api) [2]answer {
	var results [2]answer
	done := make(chan struct{})
	go func() {
		defer close(done)
		results[0].result, results[0].err = first.migrations.MigrateVM(ctx, spec)
	}()
	results[1].result, results[1].err = second.migrations.MigrateVM(ctx, spec)
	<-done
	return results
}

// TestTooLateToCancel cancels a move between its switch-over and its end.
func TestTooLateToCancel(t *testing.T) {
	c := faulty.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	points, ctx := g.to.Failpoints(), c.within(time.Minute)
	c.must(points.Arm(ctx, "receiveAfterSwitchover", "sleep(3000)"))
	id := g.begin(a)
	c.must(points.AwaitHit(ctx, "receiveAfterSwitchover"))
	c.must(points.Disarm(ctx, "receiveAfterSwitchover"))
	all, err := c.watch(ctx, a, id, func(op *debvisorv1.Operation) bool { return op.GetMigration().GetSwitchedOver() })
	c.must(err)
	if got := all.last().GetState(); got != debvisorv1.OperationState_OPERATION_STATE_RUNNING {
		t.Errorf("between the switch-over and the end the operation is %v", got)
	}
	_, err = a.operations.CancelOperation(ctx, &debvisorv1.OperationRef{Id: id})
	refused(t, err, codes.FailedPrecondition)
	c.succeeded(time.Minute, a, id)
	g.arrived()
}
