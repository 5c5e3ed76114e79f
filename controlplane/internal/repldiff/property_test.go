package repldiff

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// end is a naive model of a dataset of ZFS.
type end struct {
	exists    bool
	guid      uint64
	mark      string
	written   uint64
	snapshots []snap
	bookmarks []snap // base is not kept
	txg       uint64
	partial   *agentv1.ZfsSendEstimate
}

// snap is one snapshot: content is what a reader would see in it.
type snap struct {
	name, content string
	guid, txg     uint64
}

// world is a source and a target, and what was set aside.
type world struct {
	t       *testing.T
	r       *rand.Rand
	source  end
	target  end
	aside   []end
	guids   uint64
	content string // of the source, live
	cursor  uint64
	now     time.Time
	newest  bool
	done    map[debvisorv1.ReplicationMode]int
	why     map[debvisorv1.Divergence]int
}

func (w *world) guid() uint64 { w.guids++; return w.guids }

func (e *end) add(w *world, name, content string) {
	e.txg++
	e.snapshots = append(e.snapshots, snap{name: name, content: content, guid: w.guid(), txg: e.txg})
	e.written = 0
}

func (e *end) side(name string) Side {
	if !e.exists {
		return Side{}
	}
	s := Side{Dataset: &agentv1.ZfsDataset{
		Name: name, Guid: e.guid, Type: agentv1.ZfsType_ZFS_TYPE_VOLUME, WrittenBytes: e.written, ReplicationJob: e.mark, Partial: e.partial != nil,
	}}
	for _, x := range e.snapshots {
		s.Snapshots = append(s.Snapshots, &agentv1.ZfsSnapshot{Dataset: name, Name: x.name, Guid: x.guid, CreateTxg: x.txg})
	}
	for _, x := range e.bookmarks {
		s.Bookmarks = append(s.Bookmarks, &agentv1.ZfsBookmark{Dataset: name, Name: x.name, Guid: x.guid, CreateTxg: x.txg})
	}
	return s
}

func (e *end) has(guid uint64) bool {
	return slices.ContainsFunc(e.snapshots, func(x snap) bool { return x.guid == guid })
}

// happen is one thing that people do to the two ends.
func (w *world) happen() string {
	name := fmt.Sprintf("n%d", w.r.IntN(40)) // so few that they come again
	s, g := &w.source, &w.target
	pick := func(e *end) int { return w.r.IntN(len(e.snapshots)) }
	switch k := w.r.IntN(20); {
	case k < 7:
		if slices.ContainsFunc(s.snapshots, func(x snap) bool { return x.name == name }) {
			return "nothing"
		}
		w.content = fmt.Sprint("v", w.guid())
		s.add(w, name, w.content)
		return "snapshot"
	case k < 9 && len(s.snapshots) > 0: // prune, as others do: nothing is held in this model
		i := pick(s)
		s.snapshots = slices.Delete(s.snapshots, i, i+1)
		return "prune source"
	case k < 11 && len(g.snapshots) > 0:
		i := pick(g)
		g.snapshots = slices.Delete(g.snapshots, i, i+1)
		return "prune target"
	case k < 14 && len(s.snapshots) > 0:
		x := s.snapshots[pick(s)]
		x.name = fmt.Sprint("b", w.guid())
		s.bookmarks = append(s.bookmarks, x)
		return "bookmark"
	case k == 14 && len(s.snapshots) > 0: // roll back: newer snapshots and bookmarks go
		i := pick(s)
		w.content = s.snapshots[i].content
		to := s.snapshots[i].txg
		s.snapshots = s.snapshots[:i+1]
		s.bookmarks = slices.DeleteFunc(s.bookmarks, func(x snap) bool { return x.txg > to })
		return "roll back source"
	case k == 15 && len(g.snapshots) > 0:
		g.snapshots = g.snapshots[:pick(g)+1]
		g.written = 0
		return "roll back target"
	case k == 16 && len(s.snapshots) > 0:
		s.snapshots[pick(s)].name = fmt.Sprint("r", w.guid())
		return "rename"
	case k == 17 && g.exists && g.partial == nil:
		g.written = 1 + w.r.Uint64N(9)
		if w.r.IntN(2) == 0 {
			g.add(w, fmt.Sprint("t", w.guid()), "theirs")
		}
		return "write on target"
	case k == 18 && w.r.IntN(4) == 0:
		*s = end{exists: true, guid: w.guid(), txg: s.txg}
		return "recreate source"
	case k == 19 && w.r.IntN(3) == 0:
		*g = end{}
		return "destroy target"
	}
	return "nothing"
}

func (w *world) input() *Input {
	in := &Input{
		Job: job, Dataset: sourceName, TargetDataset: targetName, Cursor: w.cursor, Now: w.now, NewestOnly: w.newest,
		Source: w.source.side(sourceName), Target: w.target.side(targetName), Token: w.target.partial,
	}
	if w.target.partial != nil && w.r.IntN(5) == 0 { // a lie
		lie := &agentv1.ZfsSendEstimate{To: w.target.partial.GetTo(), ToGuid: w.target.partial.GetToGuid(), FromGuid: w.target.partial.GetFromGuid()}
		switch w.r.IntN(3) {
		case 0:
			lie.To = "tank/secret@x"
		case 1:
			lie.ToGuid += 1 << 40
		default:
			lie.FromGuid += 1 << 40
		}
		in.Token = lie
	}
	w.r.Shuffle(len(in.Source.Snapshots), func(i, j int) {
		in.Source.Snapshots[i], in.Source.Snapshots[j] = in.Source.Snapshots[j], in.Source.Snapshots[i]
	})
	return in
}

// replicate does what the plan says as ZFS would do it, and refuses what ZFS
// would refuse. It may be cut.
func (w *world) replicate(history string) {
	in := w.input()
	before := w.target
	p := Decide(in)
	w.done[p.Decision.GetMode()]++
	w.why[p.Decision.GetDivergence()]++
	fatal := func(format string, args ...any) {
		w.t.Helper()
		w.t.Fatalf("%s\n%s\nsource %+v\ntarget %+v\nafter %s", fmt.Sprintf(format, args...), told(p), w.source, before, history)
	}
	if p.Refusal != nil {
		if len(p.Steps) > 0 || p.Aside != nil {
			fatal("refused, and yet something is to be done")
		}
		return
	}
	if p.Aside != nil && p.Aside.GetRenameTo() == "" {
		fatal("destroys what nobody has confirmed")
	}
	if p.Aside != nil {
		if before.mark != job || p.Aside.GetGuid() != before.guid {
			fatal("sets aside what is not the job's")
		}
		w.aside = append(w.aside, w.target)
		w.target = end{}
	}
	w.receive(p, in, fatal)
}

func (w *world) receive(p *Plan, in *Input, fatal func(string, ...any)) {
	g := &w.target
	for i, s := range p.Steps {
		at := slices.IndexFunc(w.source.snapshots, func(x snap) bool { return x.guid == s.GetToGuid() })
		if at < 0 || w.source.snapshots[at].name != s.GetTo() {
			fatal("sends what the source has not: %v", s)
		}
		if g.partial != nil {
			fits := s.GetToGuid() == in.Token.GetToGuid() && s.GetFromGuid() == in.Token.GetFromGuid() && in.Token.GetTo() == sourceName+"@"+s.GetTo()
			if resumed := p.Decision.GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME; resumed != (fits && i == 0) && resumed {
				fatal("resumes with a token that is of another stream: %v", in.Token)
			}
			g.partial = nil // gone on with, or discarded
			if len(g.snapshots) == 0 {
				*g = end{}
			}
		}
		switch {
		case s.GetFrom() == "":
			if g.exists {
				fatal("receives a full stream over a dataset")
			}
			*g = end{exists: true, guid: w.guid(), mark: job}
		case len(g.snapshots) == 0 || g.snapshots[len(g.snapshots)-1].guid != s.GetFromGuid() || g.written > 0:
			fatal("step %d begins at what is not the target's newest: %v", i, s)
		case !w.canSendFrom(s, at):
			fatal("step %d begins at what the source cannot send from: %v", i, s)
		}
		if slices.ContainsFunc(g.snapshots, func(x snap) bool { return x.name == s.GetTo() }) {
			fatal("the copy has a snapshot of that name: %v", s)
		}
		if w.r.IntN(6) == 0 { // cut
			g.partial = &agentv1.ZfsSendEstimate{To: sourceName + "@" + s.GetTo(), ToGuid: s.GetToGuid(), FromGuid: s.GetFromGuid()}
			if w.r.IntN(3) == 0 && s.GetFrom() == "" {
				g.mark = "" // before it was marked
			}
			return
		}
		g.txg++
		x := w.source.snapshots[at]
		g.snapshots = append(g.snapshots, snap{name: x.name, content: x.content, guid: x.guid, txg: g.txg})
		w.cursor = x.guid
	}
	if p.More {
		fatal("so few snapshots are no reason to stop")
	}
	w.complete(p, fatal)
}

// complete: what a run that went through must have come to.
func (w *world) complete(p *Plan, fatal func(string, ...any)) {
	newest := w.source.snapshots[len(w.source.snapshots)-1]
	last := w.target.snapshots[len(w.target.snapshots)-1]
	clash := slices.ContainsFunc(w.target.snapshots, func(x snap) bool { return x.name == newest.name && x.guid != newest.guid })
	if last.guid != newest.guid && !clash {
		if older := slices.IndexFunc(w.source.bookmarks, func(x snap) bool { return x.guid == last.guid }); older < 0 || w.source.bookmarks[older].txg < newest.txg {
			fatal("it is done, and the target's newest is %d, not %d", last.guid, newest.guid)
		}
	}
	if !w.newest && p.Decision.GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_FULL && len(w.target.snapshots) != len(w.source.snapshots) {
		fatal("of %d snapshots %d have come", len(w.source.snapshots), len(w.target.snapshots))
	}
}

func (w *world) canSendFrom(s *agentv1.ReplicationStep, to int) bool {
	from := w.source.snapshots
	if s.GetFrom()[0] == '#' {
		from = w.source.bookmarks
	}
	return slices.ContainsFunc(from, func(x snap) bool {
		return x.name == s.GetFrom()[1:] && x.guid == s.GetFromGuid() && x.txg < w.source.snapshots[to].txg
	})
}

// TestHistories: whatever people do to the two ends between the runs, ZFS would
// take every step of every plan; nothing that is not the job's is touched, and
// nothing is lost without somebody's word. Where something is in common, no run
// makes it less.
func TestHistories(t *testing.T) {
	done, why := map[debvisorv1.ReplicationMode]int{}, map[debvisorv1.Divergence]int{}
	for seed := range uint64(600) {
		w := &world{t: t, r: rand.New(rand.NewPCG(seed, 3)), now: noon, done: done, why: why}
		w.source = end{exists: true, guid: w.guid()}
		w.newest = seed%3 == 0
		history := ""
		for range 60 {
			if w.r.IntN(4) > 0 {
				history += ", " + w.happen()
				continue
			}
			history += ", replicate"
			common := w.common()
			kept := len(w.target.snapshots) + w.set()
			w.now = w.now.Add(time.Minute)
			w.replicate(history)
			if common && !w.common() && w.target.partial == nil {
				t.Fatalf("seed %d: the last common snapshot is lost after %s", seed, history)
			}
			if len(w.target.snapshots)+w.set() < kept {
				t.Fatalf("seed %d: snapshots of the copy are lost after %s", seed, history)
			}
		}
	}
	for mode := range debvisorv1.ReplicationMode_name {
		if m := debvisorv1.ReplicationMode(mode); mode != 0 && done[m] == 0 {
			t.Errorf("%s was never come to: %v", m, done)
		}
	}
	for _, d := range []debvisorv1.Divergence{
		debvisorv1.Divergence_DIVERGENCE_TARGET_NEWER, debvisorv1.Divergence_DIVERGENCE_TARGET_WRITTEN,
		debvisorv1.Divergence_DIVERGENCE_NOTHING_COMMON, debvisorv1.Divergence_DIVERGENCE_SOURCE_ROLLED_BACK,
	} {
		if why[d] == 0 {
			t.Errorf("%s was never come to: %v", d, why)
		}
	}
}

// common tells whether an increment would be possible at the target's newest.
func (w *world) common() bool {
	if len(w.target.snapshots) == 0 {
		return false
	}
	last := w.target.snapshots[len(w.target.snapshots)-1].guid
	return w.source.has(last) || slices.ContainsFunc(w.source.bookmarks, func(x snap) bool { return x.guid == last })
}

func (w *world) set() int {
	n := 0
	for _, e := range w.aside {
		n += len(e.snapshots)
	}
	return n
}

// many is both ends with that many snapshots, of which the target lacks the last.
func many(n int) *Input {
	in := &Input{Job: job, Dataset: sourceName, TargetDataset: targetName, Now: noon}
	in.Source = Side{Dataset: &agentv1.ZfsDataset{Name: sourceName, Guid: sourceGUID}}
	in.Target = Side{Dataset: &agentv1.ZfsDataset{Name: targetName, Guid: targetGUID, ReplicationJob: job}}
	for i := range n {
		name, guid := fmt.Sprintf("dv-20261122T%06dZ-%08d", i, i), uint64(i)*2654435761+1
		in.Source.Snapshots = append(in.Source.Snapshots, &agentv1.ZfsSnapshot{Dataset: sourceName, Name: name, Guid: guid, CreateTxg: uint64(10 + 3*i)})
		if i < n-1 {
			in.Target.Snapshots = append(in.Target.Snapshots, &agentv1.ZfsSnapshot{Dataset: targetName, Name: name, Guid: guid, CreateTxg: uint64(10 + i)})
		}
		if i%2 == 0 {
			in.Source.Bookmarks = append(in.Source.Bookmarks, &agentv1.ZfsBookmark{Dataset: sourceName, Name: "b" + name, Guid: guid, CreateTxg: uint64(10 + 3*i)})
		}
	}
	return in
}

func TestManySnapshots(t *testing.T) {
	in := many(65_000)
	begun := time.Now()
	p := Decide(in)
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("a plan of 65,000 snapshots took %v", took)
	}
	if len(p.Steps) != 1 || p.More {
		t.Errorf("%d steps, more %v", len(p.Steps), p.More)
	}
	in.Target = Side{}
	if p = Decide(in); len(p.Steps) != MaxSteps || !p.More {
		t.Errorf("full: %d steps, more %v", len(p.Steps), p.More)
	}
}

func BenchmarkPlan65k(b *testing.B) {
	in := many(65_000)
	for b.Loop() {
		if p := Decide(in); len(p.Steps) != 1 {
			b.Fatal(told(p))
		}
	}
}
