package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/integration/lab"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// hold keeps a process at a failpoint until it is killed; milliseconds, longer than any case takes.
	hold = "sleep(120000)"
	// holdShort keeps one there while another is struck.
	holdShort = "sleep(2000)"
	// standing is how long a stopped process stands still.
	standing = 15 * time.Second
)

// TestMatrix strikes everything that a move depends on, at every moment of it. See covering for what of the matrix is run.
func TestMatrix(t *testing.T) {
	t.Parallel() // after all others that use its labs
	todo := campaignOf(t)
	t.Logf("%d cases, seed %d", len(todo.faults), todo.seed)
	inTwoLabs(t, todo.faults, todo.until, func(c *cluster, f fault) { f.run(c, todo.delay(f)) })
}

// inTwoLabs runs cases that wait more than they work, two at a time. None begins after until, unless that is zero.
func inTwoLabs[T fmt.Stringer](t *testing.T, cases []T, until time.Time, run func(*cluster, T)) {
	t.Helper()
	next := make(chan T, len(cases))
	for _, one := range cases {
		next <- one
	}
	close(next)
	for _, s := range []*shared{faulty, faultyToo} {
		t.Run("lab", func(t *testing.T) {
			t.Parallel()
			for one := range next {
				if !until.IsZero() && time.Now().After(until) {
					t.Skip("no time is left")
				}
				if !t.Run(one.String(), func(t *testing.T) { run(s.use(t), one) }) {
					s.renew() // what is broken in this one is not the next case's
				}
			}
		})
	}
}

// struck is one case at work.
type struck struct {
	*mover
	f       fault
	v       victim
	ask     *api
	begun   time.Time
	said    int // lines of the console
	watched watchers
}

// run moves a guest, strikes when the phase has come, and checks what came of it.
func (f fault) run(c *cluster, delay time.Duration) {
	c.t.Helper()
	g := c.matrixGuest(f.disk)
	ask, leader := c.follower()
	s := &struck{mover: g, f: f, v: f.victimOf(g, leader), ask: ask, begun: time.Now(), said: len(g.Console())}
	if f.phase == copying {
		c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	}
	s.watched = g.neverTwo()
	id := s.strike(delay)
	op := c.ended(2*time.Minute, ask, id)
	ended := time.Now()
	if f.victim == theLeader && f.signal == killed && !s.startsAtOnce() {
		c.must(s.v.start())
	}
	c.must(s.watched.stop())
	s.check(op)
	c.t.Logf("outcome: %v %s, attempt %d; %.1f s, %.1f s of it for the checks; downtime %d ms: %s", op.GetState(),
		op.GetError().GetCode(), op.GetMigration().GetAttempt(), time.Since(s.begun).Seconds(), time.Since(ended).Seconds(),
		op.GetMigration().GetDowntimeMs(), op.GetError().GetMessage())
}

// startsAtOnce says whether a killed leader is there again while the next one is elected.
func (s *struck) startsAtOnce() bool { return s.f.phase == copying || s.f.phase == concluding }

// strike begins the move, waits for the phase and strikes; it gives the operation's id.
func (s *struck) strike(delay time.Duration) string {
	c, f, v := s.c, s.f, s.v
	point, points := f.failpoint(v), v.at.Failpoints()
	terms := holdShort
	if v.own && f.signal == killed {
		terms = hold
	}
	c.must(points.Arm(c.within(10*time.Second), point, terms))
	id := s.begin(s.ask)
	if err := points.AwaitHit(c.within(45*time.Second), point); err != nil {
		c.t.Fatal(err)
	}
	// What has begun to sleep goes on to.
	c.must(points.Disarm(c.within(10*time.Second), point))
	c.pause(delay)
	switch f.signal {
	case killed:
		c.must(v.kill())
		if v.start != nil && (f.victim != theLeader || s.startsAtOnce()) {
			c.must(v.start())
		}
		if f.phase == copying && v.replaced != nil {
			v.replaced()
		}
	case stopped:
		c.must(v.stop(c.within(10 * time.Second)))
		c.pause(standing)
		c.must(v.cont())
	}
	if f.phase == copying {
		s.unbrake()
	}
	return id
}

// unbrake ends what slow began, for what is copied now and for the next attempts, so that they are soon over. It is done again and
// again until the test ends, as libvirt puts back the speed of before when an attempt fails.
func (m *mover) unbrake() {
	m.c.t.Helper()
	m.c.play(func(ctx context.Context) {
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			_ = m.from.SetMigrateSpeed(m.UUID, full) // it need not be there any more
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
}

// pause lets time go by, which is part of what a case does.
func (c *cluster) pause(d time.Duration) {
	c.t.Helper()
	select {
	case <-time.After(d):
	case <-c.t.Context().Done():
		c.t.Fatal(c.t.Context().Err())
	}
}

// causes are what an operation may say when it fails though no process of ours was struck: its codes, and what of its message
// names the true cause.
var causes = map[string]struct{ code, message *regexp.Regexp }{
	sourceLibvirtd: {regexp.MustCompile(`^(MIGRATION_FAILED|INTERRUPTED)$`), regexp.MustCompile(`libvirt`)},
	targetLibvirtd: {regexp.MustCompile(`^(MIGRATION_FAILED|INTERRUPTED)$`), regexp.MustCompile(`libvirt`)},
	sourceQEMU:     {regexp.MustCompile(`^(MIGRATION_FAILED|PLAN_REFUSED|GUEST_STOPPED)$`), regexp.MustCompile(`(?i)stopped|shut ?off|not running|qemu`)},
	// The last is what libvirt says of a QEMU that it has only just started.
	targetQEMU: {regexp.MustCompile(`^(MIGRATION_FAILED|INTERRUPTED)$`), regexp.MustCompile(`(?i)stopped|shut ?off|not running|qemu|process exited while connecting to monitor`)},
}

// check holds an operation's end against the truth.
func (s *struck) check(op *debvisorv1.Operation) {
	c := s.c
	c.t.Helper()
	done := op.GetState() == debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
	if !done {
		if s.v.ours || op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED {
			c.t.Fatalf("the operation is %v: %v", op.GetState(), op.GetError())
		}
		cause := causes[s.f.victim]
		if e := op.GetError(); !cause.code.MatchString(e.GetCode()) || !cause.message.MatchString(e.GetMessage()) {
			c.t.Errorf("%s was struck, and the operation says %s: %s", s.f.victim, e.GetCode(), e.GetMessage())
		}
	}
	at, runs := s.only()
	switch other := s.other(at); {
	case done && at != s.to:
		c.t.Fatalf("the operation succeeded, and the guest is on %s", at.Name)
	case !done && strings.Contains(op.GetError().GetMessage(), "stays on "+other.Name):
		c.t.Errorf("the guest is on %s, and the operation says: %s", at.Name, op.GetError().GetMessage())
	case !runs && (s.f.signal != killed || s.f.victim != sourceQEMU && s.f.victim != targetQEMU):
		c.t.Fatalf("the guest runs nowhere: %s", s.ConsoleText())
	}
	if runs {
		s.goesOn()
	}
	c.must(s.saidOnce(s.said))
	h, err := s.History()
	c.must(err)
	if err := h.Check(s.before); err != nil {
		c.t.Fatalf("the guest's disk: %v", err)
	}
	if !done && at == s.to && s.f.disk == copiedDisk {
		s.removeLeft(op.GetError().GetMessage())
	}
	c.eventually(20*time.Second, "nothing is left of the move", func() error {
		return errors.Join(c.clean(), s.tasksEnded(op.GetId()), s.disksOnly(at))
	})
	if !runs { // for the next case
		c.must(errors.Join(at.Boot(s.UUID), s.Ticks(c.within(time.Minute))))
	}
	c.must(s.known(c.within(45*time.Second), at))
	c.must(s.runsOnly(at))
}

func (m *mover) other(n *lab.Node) *lab.Node {
	if n == m.from {
		return m.to
	}
	return m.from
}

// only waits until exactly one node has the guest, running with one process or shut off with none, and gives it.
func (m *mover) only() (at *lab.Node, runs bool) {
	m.c.t.Helper()
	m.c.eventually(20*time.Second, "one node alone has the guest", func() error {
		var has []string
		var failed []error
		for _, n := range m.c.Nodes {
			d, err := n.Domain(m.UUID)
			qemus, err2 := n.QEMUs(m.UUID)
			failed = append(failed, err, err2)
			if d.State == lab.DomainAbsent && len(qemus) == 0 {
				continue
			}
			at, runs = n, d.State == lab.DomainRunning
			has = append(has, fmt.Sprintf("%s %+v with %d processes", n.Name, d, len(qemus)))
			if want := map[lab.DomainState]int{lab.DomainRunning: 1, lab.DomainShutOff: 0}; !d.Persistent || len(qemus) != want[d.State] || d.State == lab.DomainPaused {
				failed = append(failed, fmt.Errorf("%s has it %+v with %d processes", n.Name, d, len(qemus)))
			}
		}
		if len(has) != 1 {
			failed = append(failed, fmt.Errorf("it is on %q", has))
		}
		return errors.Join(failed...)
	})
	return at, runs
}

// tasksEnded says which tasks of an operation have not.
func (m *mover) tasksEnded(operation string) error {
	got, err := m.c.etcd(m.c.running()).Get(m.c.within(10*time.Second), keyPrefix+"tasks/"+operation, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(got.Kvs) == 0 {
		return fmt.Errorf("operation %s has no tasks", operation)
	}
	for _, kv := range got.Kvs {
		task := &storev1.Task{}
		if err := proto.Unmarshal(kv.Value, task); err != nil {
			return err
		}
		if task.GetEndedAt() == nil {
			return fmt.Errorf("task %s is in state %v", task.GetId(), task.GetState())
		}
	}
	return nil
}

// removeLeft removes the files of a guest's disks from where it was, as an operator does who was told of them: the source keeps them
// unless it has seen the guest run on the target.
func (s *struck) removeLeft(told string) {
	s.c.t.Helper()
	for _, d := range s.Disks {
		if err := os.Remove(d.On(s.from)); err == nil && !strings.Contains(told, "may be left on "+s.from.Name) {
			s.c.t.Errorf("%s is left on %s, and the operation says only %s", d.On(s.from), s.from.Name, told)
		}
	}
}

// disksOnly says what is wrong unless the guest's files are where it is, and nowhere else: neither its own nor half-made ones.
func (m *mover) disksOnly(at *lab.Node) error {
	want := map[string]bool{} // by the host's path
	for _, d := range m.Disks {
		want[d.On(at)] = true
	}
	var failed []error
	dirs := map[string]bool{}
	for _, n := range m.c.Nodes {
		for _, d := range m.Disks {
			dirs[filepath.Dir(d.On(n))] = true
		}
	}
	for dir := range dirs {
		entries, err := os.ReadDir(dir)
		failed = append(failed, err)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if strings.Contains(e.Name(), m.Name) && !strings.HasSuffix(e.Name(), ".console") && !want[path] {
				failed = append(failed, fmt.Errorf("%s is left", path))
			}
			delete(want, path)
		}
	}
	for path := range want {
		failed = append(failed, fmt.Errorf("%s is gone", path))
	}
	return errors.Join(failed...)
}

// matrixGuest is a guest with that disk.
func (c *cluster) matrixGuest(disk string) *mover {
	c.t.Helper()
	if disk == sharedDisk {
		return c.guest("web")
	}
	return c.guestLike(lab.GuestSpec{Name: "copied", Disks: []lab.DiskSpec{{Kind: lab.DiskLocal}}})
}
