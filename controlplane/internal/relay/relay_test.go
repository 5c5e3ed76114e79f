package relay_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// snapshots makes an answer of that many snapshots, some in a part.
func snapshots(total, each int) func(context.Context, *agentv1.Ask, int) *agentv1.Answer {
	return func(_ context.Context, _ *agentv1.Ask, n int) *agentv1.Answer {
		if n*each >= total {
			return nil
		}
		l := &agentv1.ZfsListing{}
		for i := n * each; i < min(total, (n+1)*each); i++ {
			l.Snapshots = append(l.Snapshots, &agentv1.ZfsSnapshot{
				Dataset: "tank/vms/web", Name: fmt.Sprintf("dv-20261122T120000Z-%08d", i), Guid: 1<<63 + uint64(i), CreateTxg: uint64(i),
				Created: 1_790_000_000, UsedBytes: 1 << 30, ReferencedBytes: 1 << 35, Operation: fmt.Sprintf("0190%032d", i), Label: "hourly",
			})
		}
		return &agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: l}}
	}
}

// count asks and counts snapshots.
func count(ctx context.Context, p *replica) (n, parts int, err error) {
	err = p.Ask(ctx, "n1", list(), func(a *agentv1.Answer) error {
		parts++
		n += len(a.GetZfsListing().GetSnapshots())
		return nil
	})
	return n, parts, err
}

func TestAnyReplicaGetsTheWholeAnswer(t *testing.T) {
	r := newRig(t, "r1", "r2", "r3")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := count(short, r.all[0]); codeOf(err) != "NO_LEADER" || !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("before any election: %v", err)
	}
	r.all[0].lead()
	a := r.agent(snapshots(1234, 100))
	a.ready()
	for _, p := range r.all {
		if n, parts, err := count(t.Context(), p); n != 1234 || parts != 13 || err != nil {
			t.Errorf("%s got %d snapshots in %d parts: %v", p.name, n, parts, err)
		}
	}
	for _, p := range r.all {
		err := p.Ask(t.Context(), "unknown", list(), func(*agentv1.Answer) error { return nil })
		if codeOf(err) != "NO_SESSION" || !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s about a node without an agent: %v", p.name, err)
		}
	}
}

// TestALargeAnswer: 65,000 snapshots from the agent over the leader to a
// follower, with the memory that they take on the way bounded by pacing.
func TestALargeAnswer(t *testing.T) {
	r := newRig(t, "r1", "r2")
	r.all[0].lead()
	a := r.agent(snapshots(65_000, 2000)) // some 270 KiB a part
	a.ready()
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	n := 0
	err := r.all[1].Ask(t.Context(), "n1", list(), func(part *agentv1.Answer) error {
		n += len(part.GetZfsListing().GetSnapshots())
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		if now.HeapAlloc > peak.HeapAlloc {
			peak = now
		}
		return nil
	})
	if err != nil || n != 65_000 {
		t.Fatalf("got %d: %v", n, err)
	}
	grown := (int64(peak.HeapAlloc) - int64(before.HeapAlloc)) >> 20
	t.Logf("65,000 snapshots in %s, heap of all three processes' parts at most %d MiB larger", time.Since(began).Round(time.Millisecond), grown)
	if grown > 32 { // all of them at once are some 40 MiB as messages, on each of the three
		t.Errorf("the heap grew by %d MiB", grown)
	}
}

func TestErrorsComeAsTheyAre(t *testing.T) {
	r := newRig(t, "r1", "r2")
	r.all[0].lead()
	a := r.agent(func(ctx context.Context, q *agentv1.Ask, n int) *agentv1.Answer {
		switch n {
		case 0:
			return snapshots(1, 1)(ctx, q, 0)
		case 1:
			return &agentv1.Answer{ErrorCode: "POOL_SUSPENDED", ErrorMessage: "tank is suspended"}
		}
		return nil
	})
	a.ready()
	for _, p := range r.all {
		n, _, err := count(t.Context(), p)
		if n != 1 || codeOf(err) != "POOL_SUSPENDED" || !errdefs.Is(err, errdefs.FailedPrecondition) {
			t.Errorf("%s: %d, %v", p.name, n, err)
		}
	}
}

// TestAskersThatLeave: the agent is told at once, from wherever it was asked.
func TestAskersThatLeave(t *testing.T) {
	r := newRig(t, "r1", "r2")
	r.all[0].lead()
	a := r.agent(snapshots(1<<30, 100))
	enough := errors.New("enough")
	a.ready()
	for _, p := range r.all {
		ctx, cancel := context.WithCancel(t.Context())
		taken, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- p.Ask(ctx, "n1", list(), func(*agentv1.Answer) error {
				select {
				case taken <- struct{}{}:
				case <-ctx.Done():
				}
				return nil
			})
		}()
		within(t, "a part", taken)
		cancel()
		if err := within(t, "end", done); codeOf(err) != "NO_ANSWER" || !errdefs.Is(err, errdefs.DeadlineExceeded) {
			t.Errorf("%s: %v", p.name, err)
		}
		within(t, "word to the agent", a.stopped)
		if err := p.Ask(t.Context(), "n1", list(), func(*agentv1.Answer) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("%s: an asker that had enough: %v", p.name, err)
		}
		within(t, "word to the agent", a.stopped)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := r.all[1].Ask(short, "n1", list(), func(*agentv1.Answer) error { <-short.Done(); return nil })
	if !errdefs.Is(err, errdefs.DeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
	within(t, "word to the agent", a.stopped)
}

// TestAnotherLeaderWithinAnAnswer: who has parts already hears that the rest does
// not come; who has none gets the answer from the next leader.
func TestAnotherLeaderWithinAnAnswer(t *testing.T) {
	r := newRig(t, "r1", "r2", "r3")
	r.all[0].lead()
	hold := make(chan struct{})
	a := r.agent(func(ctx context.Context, q *agentv1.Ask, n int) *agentv1.Answer {
		first := 2 // where an answer is held up: after the first part, or before it
		if q.GetListZfs().GetBookmarks() {
			first = 0
		}
		if n == first {
			select {
			case <-hold:
			case <-ctx.Done():
			}
		}
		return snapshots(300, 100)(ctx, q, n)
	})
	a.ready()
	type got struct {
		n   int
		err error
	}
	ask := func(p *replica, q *agentv1.Ask, begun chan<- struct{}) <-chan got {
		done := make(chan got, 1)
		go func() {
			var g got
			g.err = p.Ask(t.Context(), "n1", q, func(part *agentv1.Answer) error {
				if g.n == 0 && begun != nil {
					close(begun)
				}
				g.n += len(part.GetZfsListing().GetSnapshots())
				return nil
			})
			done <- g
		}()
		return done
	}
	var cut, whole []<-chan got
	for _, p := range r.all {
		begun := make(chan struct{})
		cut = append(cut, ask(p, list(), begun))
		within(t, "a first part", begun)
		q := list()
		q.GetListZfs().Bookmarks = true
		whole = append(whole, ask(p, q, nil))
	}
	r.all[0].resign()
	for i, c := range cut {
		if g := within(t, "end", c); !errdefs.Is(g.err, errdefs.Unavailable) || codeOf(g.err) != "ANSWER_CUT" || g.n != 100 {
			t.Errorf("r%d: %d snapshots and %v", i+1, g.n, g.err)
		}
	}
	close(hold)
	r.all[1].lead()
	for i, c := range whole {
		if g := within(t, "end", c); g.err != nil || g.n != 300 {
			t.Errorf("r%d: %d snapshots and %v", i+1, g.n, g.err)
		}
	}
	if n, _, err := count(t.Context(), r.all[0]); n != 300 || err != nil {
		t.Errorf("the former leader asks the new one: %d, %v", n, err)
	}
}

// TestOnlyReplicasMayHaveOthersAsk: neither agents nor principals, nor who has
// another cluster's certificate; and a follower relays for nobody.
func TestOnlyReplicasMayHaveOthersAsk(t *testing.T) {
	r := newRig(t, "r1", "r2")
	r.all[0].lead()
	a := r.agent(snapshots(1, 1))
	a.ready()
	ask := func(p *replica, shows *certs.Reloader, req *agentv1.AskNodeRequest) error {
		conn, err := rpc.Dial("passthrough:///"+p.address, shows.ReplicaClient("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		stream, err := agentv1.NewRelayServiceClient(conn).AskNode(ctx, req)
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil {
			return nil
		}
		return errdefs.FromStatus(err)
	}
	q := &agentv1.AskNodeRequest{NodeId: "n1", Ask: list()}
	leader, follower := r.all[0], r.all[1]
	// Replicas may know that the agent is heard a moment before its session takes questions.
	err := ask(leader, follower.shows, q)
	for until := time.After(patience); codeOf(err) == "NO_SESSION"; err = ask(leader, follower.shows, q) {
		select {
		case <-until:
			t.Fatal(err)
		default:
		}
	}
	if err != nil {
		t.Errorf("a replica: %v", err)
	}
	if err := ask(leader, a.shows, q); !errdefs.Is(err, errdefs.PermissionDenied) || codeOf(err) != "NOT_FOR_AGENTS" {
		t.Errorf("an agent: %v", err)
	}
	for name, leaf := range map[string]certs.Leaf{
		"a principal":                  certs.ClientLeaf("operator", time.Hour),
		"a principal named as replica": certs.ClientLeaf("replica:r2", time.Hour),
		"an etcd member":               certs.EtcdPeerLeaf("r2", nil, time.Hour),
		"a replica of another cluster": certs.ServerLeaf("other", "r2", nil, time.Hour),
	} {
		if err := ask(leader, r.certificate(leaf), q); !errdefs.Is(err, errdefs.Unavailable) { // no handshake, no call
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(follower, leader.shows, q); codeOf(err) != "NOT_LEADER" {
		t.Errorf("a follower is asked: %v", err)
	}
	for name, bad := range map[string]*agentv1.AskNodeRequest{"node_id": {Ask: list()}, "ask": {NodeId: "n1", Ask: &agentv1.Ask{}}} {
		err := ask(leader, follower.shows, bad)
		if !errdefs.Is(err, errdefs.InvalidArgument) || errdefs.Of(err).Context["field"] != name {
			t.Errorf("without %s: %v", name, err)
		}
	}
	// And a replica is nothing else on that listener.
	conn, err := rpc.Dial("passthrough:///"+leader.address, follower.shows.ReplicaClient("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := agentv1.NewSessionServiceClient(conn).Connect(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if err = errdefs.FromStatus(err); codeOf(err) != "NOT_FOR_REPLICAS" {
		t.Errorf("a replica opens an agent's session: %v", err)
	}
}
