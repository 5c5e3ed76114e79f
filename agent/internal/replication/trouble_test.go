package replication

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// proxy is a link that can be cut.
type proxy struct {
	net.Listener
	to string

	passed atomic.Int64 // bytes to the target

	mu    sync.Mutex
	conns []net.Conn
}

// Write counts what has passed.
func (p *proxy) Write(b []byte) (int, error) {
	p.passed.Add(int64(len(b)))
	return len(b), nil
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: to}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() { _, _ = io.Copy(io.MultiWriter(out, p), in); _ = out.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
	})
	return p
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	p.conns = nil
}

// TestCuts cuts the link at random moments: the stream is resumed, not begun anew.
func TestCuts(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(48, "1")
	j.snapshot("s1")
	j.mib = 16
	receive, send := j.tasks(j.steps("", "s1"))
	address := j.to.await(receive, "the address", func(r *agentv1.TaskReport) bool {
		return r.GetProgress().GetReplicateReceive().GetAddress() != ""
	}).GetProgress().GetReplicateReceive().GetAddress()
	p := newProxy(t, address)
	send.GetSpec().GetReplicateSend().TargetAddress = p.Addr().String()
	j.from.accept(send)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 5 {
		end := time.After(time.Minute)
		for until := p.passed.Load() + 4<<20 + rand.Int64N(4<<20); p.passed.Load() < until; {
			select {
			case <-tick.C:
			case <-end:
				t.Fatalf("no more than %d bytes pass", p.passed.Load())
			}
		}
		p.cut()
	}
	sent := j.from.outcome(send)
	if out := j.to.outcome(receive); out.GetErrorCode() != "" || sent.GetErrorCode() != "" {
		t.Fatalf("%v, %v", out, sent)
	}
	if sent.GetZfs().GetResumes() == 0 || sent.GetZfs().GetBytes() > 56<<20 {
		t.Errorf("begun anew: %v", sent)
	}
	j.atRest("s1")
}

// TestFull: a target that is full is tried again, goes on once there is room, and
// leaves nothing where there never is.
func TestFull(t *testing.T) {
	for _, room := range []bool{true, false} {
		j := newJob(t, "tiny", false, false).agents(func(c *agentConfig) { c.Patience = 8 * time.Second })
		sh(t, "zfs", "create", "-o", "compression=off", "tiny/ballast")
		if out := try("sh", "-c", "head -c 40M /dev/urandom > /mnt/tiny/ballast/b && sync"); out != "" {
			t.Fatal(out)
		}
		j.write(30, "1")
		j.snapshot("s1")
		receive, send := j.tasks(j.steps("", "s1"))
		j.begin(receive, send)
		j.from.await(send, "the full pool", func(r *agentv1.TaskReport) bool {
			return strings.HasPrefix(r.GetProgress().GetReplicateSend().GetPhase(), "waiting for the target")
		})
		if room {
			sh(t, "zfs", "destroy", "tiny/ballast")
		}
		sent, received := j.from.outcome(send), j.to.outcome(receive)
		want := ""
		if !room {
			want = "NO_SPACE"
			sh(t, "zfs", "destroy", "tiny/ballast")
		}
		if sent.GetErrorCode() != want || received.GetErrorCode() != want {
			t.Errorf("room: %t: %v, %v", room, sent, received)
		}
		j.nothingPartial()
		if room {
			j.atRest("s1")
		} else if got := holds(t, j.source); len(got) > 0 {
			t.Errorf("holds %v", got)
		}
		release(j.target)
		try("zfs", "destroy", "-r", j.target)
	}
}

// TestSetAside: what is in the way is renamed if it is what the plan says, also
// where the agent dies in between; another dataset is left alone.
func TestSetAside(t *testing.T) {
	for _, point := range []string{"", pointReceiveAside, pointReceiveSetAside, pointReceiveStream} {
		j := newJob(t, "dst", false, false).agents()
		sh(t, "zfs", "create", "-o", "org.debvisor:job="+j.id, j.target)
		sh(t, "zfs", "snapshot", j.target+"@old")
		sh(t, "zfs", "hold", "debvisor:"+j.id, j.target+"@old")
		old := guid(t, j.target)
		j.write(2, "1")
		j.snapshot("s1")
		aside := j.target + ".diverged-20260102030405"
		j.edit = func(_ *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) {
			in.Aside = &agentv1.TargetAside{Guid: old, RenameTo: aside}
		}
		if point != "" {
			j.dieAt(point, 0)
		}
		j.must(j.steps("", "s1"))
		j.atRest("s1")
		if guid(t, aside) != old || len(holds(t, aside)) > 0 {
			t.Errorf("%s: set aside: %v", point, holds(t, aside))
		}
		sh(t, "zfs", "destroy", "-r", aside)
	}
	j := newJob(t, "dst", false, false).agents()
	sh(t, "zfs", "create", j.target)
	j.snapshot("s1")
	j.edit = func(_ *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) {
		in.Aside = &agentv1.TargetAside{Guid: 7, RenameTo: j.target + ".diverged"}
	}
	receive, _ := j.tasks(j.steps("", "s1"))
	if out := j.to.outcome(receive); out.GetErrorCode() != CodeTargetChanged {
		t.Errorf("another dataset: %v", out)
	}
}

// TestRollBack destroys exactly what the plan lists.
func TestRollBack(t *testing.T) {
	for _, c := range []struct {
		name, point, code string
		unplanned, other  bool
	}{
		{name: "as planned"},
		{name: "died before", point: pointReceiveAside},
		{name: "died in the middle", point: pointReceiveRolling},
		{name: "died after", point: pointReceiveSetAside},
		{name: "one that is not planned", unplanned: true, code: CodeTargetChanged},
		{name: "another dataset with the same snapshots", other: true, code: CodeTargetChanged},
	} {
		j := newJob(t, "dst", false, false).agents()
		j.write(1, "1")
		j.snapshot("s1")
		j.must(j.steps("", "s1"))
		sh(t, "zfs", "set", "readonly=off", j.target)
		var lost []*agentv1.ZfsSnapshotID
		for _, name := range []string{"x1", "x2"} {
			sh(t, "zfs", "snapshot", j.target+"@"+name)
			lost = append(lost, &agentv1.ZfsSnapshotID{Dataset: j.target, Name: name, Guid: guid(t, j.target+"@"+name)})
		}
		if c.unplanned {
			lost = lost[:1]
		}
		j.write(1, "22")
		j.snapshot("s2")
		j.edit = func(_ *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) {
			in.Aside = &agentv1.TargetAside{Guid: guid(t, j.target), KeepGuid: guid(t, j.target+"@s1"), Destroy: lost}
			if c.other {
				in.Aside.Guid = guid(t, j.source)
			}
		}
		if c.point != "" {
			j.dieAt(c.point, 0)
		}
		if c.code == "" {
			j.must(j.steps("s1", "s2"))
			j.atRest("s2")
			continue
		}
		receive, _ := j.tasks(j.steps("s1", "s2"))
		if out := j.to.outcome(receive); out.GetErrorCode() != c.code {
			t.Errorf("%s: %v", c.name, out)
		}
		guid(t, j.target+"@x1")
		guid(t, j.target+"@x2")
	}
}

// TestWithoutSteps puts hold and bookmark right, and sends nothing.
func TestWithoutSteps(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	j.must(j.steps("", "s1"))
	j.snapshot("s2")
	release(j.target)
	release(j.source)
	sh(t, "zfs", "hold", "debvisor:"+j.id, j.source+"@s2")
	sh(t, "zfs", "bookmark", j.source+"@s2", fmt.Sprintf("%s#debvisor-%s-%x", j.source, j.id, guid(t, j.source+"@s2")))
	j.edit = func(out *agentv1.ReplicateSend, in *agentv1.ReplicateReceive) {
		out.Cursor = &agentv1.ZfsSnapshotID{Dataset: j.source, Name: "s1", Guid: guid(t, j.source+"@s1")}
		in.Cursor = &agentv1.ZfsSnapshotID{Dataset: j.target, Name: "s1", Guid: guid(t, j.source+"@s1")}
	}
	j.must(nil)
	j.atRest("s1")
}

// TestChanged: a source or a target that is not the plan's is refused.
func TestChanged(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	steps := j.steps("", "s1")
	sh(t, "zfs", "destroy", j.source+"@s1")
	j.snapshot("s1")
	if received, sent := j.tellEnd(steps); sent.GetErrorCode() != CodeSourceChanged || received.GetErrorCode() != "CANCELLED" {
		t.Errorf("another snapshot of that name: %v, %v", received, sent)
	}
	if got := holds(t, j.source); len(got) > 0 {
		t.Errorf("holds %v", got)
	}
	sh(t, "zfs", "create", j.target)
	receive, _ := j.tasks(j.steps("", "s1"))
	if out := j.to.outcome(receive); out.GetErrorCode() != CodeTargetChanged {
		t.Errorf("a dataset in the way: %v", out)
	}
	guid(t, j.target)
}

// tellEnd runs steps whose source fails by itself, then cancels the target.
func (j *job) tellEnd(steps []*agentv1.ReplicationStep) (received, sent *agentv1.TaskOutcome) {
	j.t.Helper()
	receive, send := j.tasks(steps)
	j.begin(receive, send)
	sent = j.from.outcome(send)
	j.to.say("cancel %s", receive.GetId())
	return j.to.outcome(receive), sent
}

// TestExpired: a right that ends in the middle leaves all to be resumed, by another
// attempt with a right of its own.
func TestExpired(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(16, "1")
	j.snapshot("s1")
	j.mib, j.expires = 1, 10*time.Second // a machine that is busy takes seconds to begin
	for _, out := range pairOf(j.run(j.steps("", "s1"))) {
		if out.GetErrorCode() != CodeExpired || !out.GetInterrupted() || !strings.Contains(out.GetErrorMessage(), "this host's clock says") {
			t.Errorf("%v", out)
		}
	}
	j.mib, j.expires = 0, time.Minute
	if out := j.must(j.steps("", "s1")); out.GetResumes() != 1 {
		t.Errorf("%v", out)
	}
	j.atRest("s1")
}

func pairOf(a, b *agentv1.TaskOutcome) []*agentv1.TaskOutcome { return []*agentv1.TaskOutcome{a, b} }

// TestTargetAwayAtTheEnd: a target whose agent was away when the source was done
// does not hear of it, and makes an end by itself when the leader tells it to end.
func TestTargetAwayAtTheEnd(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	j.to.away = tellWithin + 3*time.Second
	j.dieAt(pointReceiveReleasing, 0)
	receive, send := j.tasks(j.steps("", "s1"))
	j.begin(receive, send)
	if out := j.from.outcome(send); out.GetErrorCode() != "" || out.GetZfs().GetCursor().GetName() != "s1" {
		t.Fatalf("%v", out)
	}
	before := j.to.deaths()
	j.until("the target's return", func() bool { return j.to.deaths() > before || j.to.deaths() > 1 })
	j.to.await(receive, "the address", func(r *agentv1.TaskReport) bool { return r.GetProgress().GetReplicateReceive().GetAddress() != "" })
	j.to.accept(receive)
	j.to.say("cancel %s", receive.GetId())
	if out := j.to.outcome(receive); out.GetErrorCode() != "" {
		t.Errorf("%v", out)
	}
	j.atRest("s1")
}
