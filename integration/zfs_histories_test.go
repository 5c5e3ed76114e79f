package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// point is one snapshot as the model knows it: what it is, not what it is called.
type point struct {
	guid string
	// ours: it may be pruned. A copy is known to be by its name alone, so one that was renamed before it was sent is not.
	ours, renamed bool
}

// history is a model of a dataset and its copy, beside the real ones.
type history struct {
	*replica
	random         *rand.Rand
	source, target []point // oldest first
	cursor         string  // the guid of the last common snapshot; empty: none yet
}

// TestHistoriesOfZFS does at random what operators, schedules and crashes do to a dataset and its copy. After each step real ZFS has
// on both machines what the model says, and the last common snapshot is still there.
func TestHistoriesOfZFS(t *testing.T) {
	todo := campaignOf(t)
	steps := 16
	if os.Getenv("DEBVISOR_MATRIX") == "full" {
		steps = 200
	}
	c := pooled.use(t)
	h := &history{replica: c.replicated("history"), random: rand.New(rand.NewPCG(todo.seed, 5))}
	kinds := []struct {
		name   string
		weight int
		do     func()
	}{
		{"snapshot", 4, h.snapshot},
		{"somebody's snapshot", 2, h.foreign},
		{"prune", 3, h.prune},
		{"replicate", 4, h.replicate},
		{"rename", 2, h.rename},
		{"roll back", 2, h.rollBack},
		{"crash", 2, h.crash},
	}
	var deck []int
	for i, k := range kinds {
		deck = append(deck, slices.Repeat([]int{i}, k.weight)...)
	}
	// Each kind at least once, whatever the seed.
	order := h.random.Perm(len(kinds))
	for len(order) < steps {
		order = append(order, deck[h.random.IntN(len(deck))])
	}
	h.snapshot()
	h.replicate()
	for i, k := range order {
		h.c.write(h.from, h.path, 1)
		t.Logf("step %d: %s", i+1, kinds[k].name)
		kinds[k].do()
		h.agrees()
		if t.Failed() {
			t.Fatalf("seed %d, step %d: %s", todo.seed, i+1, kinds[k].name)
		}
	}
}

// agrees holds real ZFS against the model.
func (h *history) agrees() {
	for _, side := range []struct {
		n    *lab.Node
		want []point
	}{{h.from, h.source}, {h.to, h.target}} {
		var have, want []string
		for _, s := range h.c.snapshots(side.n, h.path) {
			have = append(have, strings.Fields(s)[1])
		}
		for _, p := range side.want {
			want = append(want, p.guid)
		}
		if !slices.Equal(have, want) {
			h.c.t.Errorf("%s has %v, the model %v", side.n.Name, have, want)
		}
		if !slices.Contains(have, h.cursor) {
			h.c.t.Errorf("%s has lost the last common snapshot %s: %v", side.n.Name, h.cursor, have)
		}
	}
}

// newest is the guid of a side's newest snapshot, and its name.
func (h *history) newest(n *lab.Node) (guid, name string) {
	all := h.c.snapshots(n, h.path)
	f := strings.Fields(all[len(all)-1])
	return f[1], f[0]
}

func (h *history) snapshot() {
	_, err := h.c.api(h.c.running()).storage.CreateSnapshot(h.c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: h.ref})
	h.c.must(err)
	guid, _ := h.newest(h.from)
	h.source = append(h.source, point{guid: guid, ours: true})
}

func (h *history) foreign() {
	h.c.zfs(h.from, "snapshot", fmt.Sprintf("%s@theirs-%d", h.path, requests.Add(1)))
	guid, _ := h.newest(h.from)
	h.source = append(h.source, point{guid: guid})
}

// prune lets ours go but for the last few, on one side or the other.
func (h *history) prune() {
	keep := 1 + h.random.IntN(3)
	ref, side := h.ref, &h.source
	if h.random.IntN(3) == 0 {
		side = &h.target
		ref = &debvisorv1.DatasetRef{Backend: ref.GetBackend(), Pool: ref.GetPool(), Name: ref.GetName(), Node: nodeNamed(h.to)}
	}
	_, err := h.c.api(h.c.running()).storage.PruneSnapshots(h.c.within(time.Minute), &debvisorv1.PruneRequest{
		Dataset: ref, Policy: &debvisorv1.RetentionPolicy{KeepLast: uint32(keep)},
	})
	h.c.must(err)
	ours := 0
	for _, p := range *side {
		if p.ours {
			ours++
		}
	}
	*side = slices.DeleteFunc(*side, func(p point) bool {
		if !p.ours {
			return false
		}
		ours--
		return ours >= keep && p.guid != h.cursor
	})
}

// replicated brings the model's copy up to date: a run takes a snapshot first and sends all that is newer than the cursor.
func (h *history) replicated() {
	guid, _ := h.newest(h.from)
	h.source = append(h.source, point{guid: guid, ours: true})
	at := slices.IndexFunc(h.source, func(p point) bool { return p.guid == h.cursor })
	for _, p := range h.source[at+1:] {
		h.target = append(h.target, point{guid: p.guid, ours: p.ours && !p.renamed})
	}
	h.cursor = guid
}

func (h *history) replicate() {
	ask, _ := h.c.follower()
	h.c.succeeded(2*time.Minute, ask, h.begin(ask.replica))
	h.replicated()
	h.c.eventually(30*time.Second, "nothing is left over", func() error {
		_, name := h.newest(h.from)
		return h.atRest(h.path + "@" + name)
	})
}

// crash is a run that is struck by the death of a daemon at some step.
func (h *history) crash() {
	var deaths []storageFault
	for _, f := range storageFaults() {
		if f.strike == killSource || f.strike == killTarget || f.strike == killLeader {
			deaths = append(deaths, f)
		}
	}
	f := deaths[h.random.IntN(len(deaths))]
	h.c.t.Log(f)
	f.run(h.replica)
	h.replicated()
	h.c.must(h.c.repair(h.c.within(time.Minute)))
}

// rename gives some snapshot of the source another name: what it is stays.
func (h *history) rename() {
	all := h.c.snapshots(h.from, h.path)
	i := h.random.IntN(len(all))
	name := strings.Fields(all[i])[0]
	h.c.zfs(h.from, "rename", h.path+"@"+name, fmt.Sprintf("%s@renamed-%d", h.path, requests.Add(1)))
	h.source[i].renamed = true
}

// rollBack takes the source back to some snapshot. ZFS refuses to go behind the last common one, which is held; of the others that are
// newer it may have destroyed some by then.
func (h *history) rollBack() {
	all := h.c.snapshots(h.from, h.path)
	i := h.random.IntN(len(all))
	at := slices.IndexFunc(h.source, func(p point) bool { return p.guid == h.cursor })
	_, err := h.from.Run(h.c.within(time.Minute), "zfs", "rollback", "-r", h.path+"@"+strings.Fields(all[i])[0])
	if i >= at {
		h.c.must(err)
		h.source = h.source[:i+1]
		return
	}
	if err == nil {
		h.c.t.Errorf("the source could be rolled back behind the last common snapshot")
	}
	left := strings.Join(h.c.snapshots(h.from, h.path), "\n") + "\n"
	h.source = slices.DeleteFunc(h.source, func(p point) bool {
		newer := slices.IndexFunc(all, func(s string) bool { return strings.HasSuffix(s, " "+p.guid) }) > i
		return newer && p.guid != h.cursor && !strings.Contains(left, " "+p.guid+"\n")
	})
}
