package answer

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// collect asks, and gives all parts as one listing.
func collect(t *testing.T, a Answers, q *agentv1.ListZfs) (all *agentv1.ZfsListing, parts int, last *agentv1.Answer) {
	t.Helper()
	all = &agentv1.ZfsListing{}
	add := func(m *agentv1.Answer) error {
		parts++
		if size := proto.Size(m); size > partBytes+64<<10 {
			t.Errorf("a part has %d bytes", size)
		}
		proto.Merge(all, m.GetZfsListing())
		return nil
	}
	last = a.Answer(t.Context(), &agentv1.Ask{Id: 3, Question: &agentv1.Ask_ListZfs{ListZfs: q}}, add)
	_ = add(last)
	return all, parts, last
}

// word is a listing in short: datasets, snapshots with their holds and clones,
// bookmarks.
func word(l *agentv1.ZfsListing) string {
	var words []string
	for _, d := range l.GetDatasets() {
		words = append(words, d.GetName())
	}
	for _, s := range l.GetSnapshots() {
		holds := slices.Sorted(slices.Values(s.GetHolds()))
		words = append(words, s.GetDataset()+"@"+s.GetName()+strings.Join(append([]string{""}, holds...), "+")+strings.Join(append([]string{""}, s.GetClones()...), ">"))
	}
	for _, b := range l.GetBookmarks() {
		words = append(words, b.GetDataset()+"#"+b.GetName())
	}
	return strings.Join(words, " ")
}

func TestListings(t *testing.T) {
	run(t, "zfs", "create", "tank/l")
	run(t, "zfs", "create", "tank/l/a")
	run(t, "zfs", "create", "-V", "16M", "tank/l/a/v")
	run(t, "zfs", "snapshot", "-r", "-o", "org.debvisor:operation=op1", "-o", "org.debvisor:label=nightly", "tank/l/a@one")
	run(t, "zfs", "snapshot", "tank/l/a@two")
	run(t, "zfs", "hold", "debvisor:j1", "tank/l/a@two")
	run(t, "zfs", "hold", "other", "tank/l/a@two")
	run(t, "zfs", "clone", "tank/l/a@one", "tank/l/c")
	run(t, "zfs", "bookmark", "tank/l/a@one", "tank/l/a#mark")
	t.Cleanup(func() {
		_ = exec.Command("zfs", "release", "debvisor:j1", "tank/l/a@two").Run()
		_ = exec.Command("zfs", "release", "other", "tank/l/a@two").Run()
		_ = exec.Command("zfs", "destroy", "-R", "tank/l").Run()
	})
	a := Answers{ZFS: NewZFS(zfs.New(zfs.Config{}))}
	many := []string{"tank/l/a"}
	for i := range maxNamed - 1 {
		many = append(many, fmt.Sprintf("tank/none-with-a-name-as-long-as-usual-%d", i))
	}
	for _, c := range []struct {
		q    *agentv1.ListZfs
		want string
	}{
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}}, "tank/l/a"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Recursive: true}, "tank/l/a tank/l/a/v"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Snapshots: true}, "tank/l/a tank/l/a@one>tank/l/c tank/l/a@two+debvisor:j1+other"},
		{
			&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Snapshots: true, Bookmarks: true, Recursive: true},
			"tank/l/a tank/l/a/v tank/l/a@one>tank/l/c tank/l/a@two+debvisor:j1+other tank/l/a/v@one tank/l/a#mark",
		},
		{&agentv1.ListZfs{Datasets: []string{"tank/gone"}, Snapshots: true, Bookmarks: true}, ""},
		{&agentv1.ListZfs{Datasets: []string{"tank/gone", "tank/l/c", "nopool/x"}, Snapshots: true, Bookmarks: true}, "tank/l/c"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/c", "tank/l/a/v"}, Snapshots: true}, "tank/l/a/v tank/l/c tank/l/a/v@one"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a", "tank/gone"}, Snapshots: true, Bookmarks: true, Brief: true}, "tank/l/a tank/l/a@one tank/l/a@two tank/l/a#mark"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Bookmarks: true, Brief: true}, "tank/l/a tank/l/a#mark"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Snapshots: true, Brief: true, Recursive: true}, "tank/l/a tank/l/a/v tank/l/a@one tank/l/a@two tank/l/a/v@one"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Snapshots: true, Bookmarks: true, Brief: true, Above: true}, "tank tank/l tank/l/a tank/l/a@one tank/l/a@two tank/l/a#mark"},
		{&agentv1.ListZfs{Datasets: []string{"tank/l/new/x", "tank/l/c"}, Snapshots: true, Above: true}, "tank tank/l tank/l/c"},
		{&agentv1.ListZfs{Datasets: []string{"nopool/x"}, Snapshots: true, Above: true, Brief: true}, ""},
		{&agentv1.ListZfs{Datasets: many, Bookmarks: true}, "tank/l/a tank/l/a#mark"},
		{&agentv1.ListZfs{Datasets: many, Bookmarks: true, Above: true, Brief: true}, "tank tank/l tank/l/a tank/l/a#mark"},
		{&agentv1.ListZfs{}, "tank tank/l tank/l/a tank/l/a/v tank/l/c"},
	} {
		got, _, last := collect(t, a, c.q)
		if word(got) != c.want || last.GetErrorCode() != "" || last.GetId() != 3 {
			t.Errorf("%v: %q, want %q (%v)", c.q, word(got), c.want, last.GetErrorMessage())
		}
	}
	got, _, _ := collect(t, a, &agentv1.ListZfs{Datasets: []string{"tank/l/a"}, Snapshots: true, Bookmarks: true})
	one, d := got.GetSnapshots()[0], got.GetDatasets()[0]
	guid, _ := strconv.ParseUint(run(t, "zfs", "get", "-Hpo", "value", "guid", "tank/l/a@one"), 10, 64)
	if one.GetGuid() != guid || guid == 0 || got.GetBookmarks()[0].GetGuid() != guid || one.GetOperation() != "op1" || one.GetLabel() != "nightly" ||
		one.GetCreated() < 1e9 || one.GetCreateTxg() == 0 || d.GetGuid() == 0 || d.GetType() != agentv1.ZfsType_ZFS_TYPE_FILESYSTEM || d.GetAvailableBytes() == 0 {
		t.Errorf("guid %d: %v, %v, %v", guid, one, d, got.GetBookmarks())
	}
	for _, bad := range []string{"", "tank/../x", "tank@a", "-r"} {
		if _, _, last := collect(t, a, &agentv1.ListZfs{Datasets: []string{bad}}); last.GetErrorCode() == "" {
			t.Errorf("dataset %q is asked for: %v", bad, last)
		}
	}
	if _, _, last := collect(t, a, &agentv1.ListZfs{Datasets: slices.Repeat([]string{"tank"}, maxNamed+1)}); last.GetErrorCode() == "" {
		t.Error("too many datasets are asked for")
	}
}

// TestEstimates: what sends and deletions come to, and what a token of a receive
// that was cut says on both of its ends.
func TestEstimates(t *testing.T) {
	run(t, "zfs", "create", "-V", "32M", "tank/e")
	t.Cleanup(func() { _ = exec.Command("zfs", "destroy", "-R", "tank/e").Run() })
	t.Cleanup(func() { _ = exec.Command("zfs", "destroy", "-R", "tank/copy").Run() })
	t.Cleanup(func() { _ = exec.Command("zfs", "receive", "-A", "tank/copy").Run() })
	write := func(megabytes int) {
		run(t, "sh", "-c", fmt.Sprintf("i=0; until [ -b /dev/zvol/tank/e ]; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done; "+
			"dd if=/dev/urandom of=/dev/zvol/tank/e bs=1M count=%d conv=fsync status=none && zpool sync", megabytes))
	}
	write(8)
	run(t, "zfs", "snapshot", "tank/e@one")
	write(4)
	run(t, "zfs", "snapshot", "tank/e@two")
	write(4)
	a := Answers{ZFS: NewZFS(zfs.New(zfs.Config{}))}
	between := func(what string, got, low, high uint64) {
		t.Helper()
		if got < low<<20 || got > high<<20 {
			t.Errorf("%s: %d bytes, want %d to %d MiB", what, got, low, high)
		}
	}
	send := func(q *agentv1.EstimateZfsSend) *agentv1.ZfsSendEstimate {
		t.Helper()
		m := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsSend{EstimateZfsSend: q}}, nil)
		if m.GetErrorCode() != "" {
			t.Fatalf("%v: %s", q, m.GetErrorMessage())
		}
		return m.GetZfsSendEstimate()
	}
	between("a full stream", send(&agentv1.EstimateZfsSend{Dataset: "tank/e", To: "@one"}).GetBytes(), 8, 10)
	between("an increment", send(&agentv1.EstimateZfsSend{Dataset: "tank/e", From: "@one", To: "@two"}).GetBytes(), 4, 5)
	m := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsDestroy{EstimateZfsDestroy: &agentv1.EstimateZfsDestroy{
		Dataset: "tank/e", Snapshots: []string{"one", "two"},
	}}}, nil)
	between("both snapshots' end", m.GetZfsDestroyEstimate().GetBytes(), 4, 9)

	run(t, "sh", "-c", "zfs send tank/e@one | head -c 3000000 | zfs receive -s -u tank/copy || true")
	got, _, _ := collect(t, a, &agentv1.ListZfs{Datasets: []string{"tank/copy"}})
	copied := got.GetDatasets()[0]
	guid, _ := strconv.ParseUint(run(t, "zfs", "get", "-Hpo", "value", "guid", "tank/e@one"), 10, 64)
	if !copied.GetPartial() || copied.GetResumeToken() == "" {
		t.Fatalf("of a receive that was cut: %v", copied)
	}
	token := send(&agentv1.EstimateZfsSend{Token: copied.GetResumeToken()})
	if token.GetTo() != "tank/e@one" || token.GetToGuid() != guid || token.GetFromGuid() != 0 {
		t.Errorf("the token says %v, want @one with %d", token, guid)
	}
	between("what is left", token.GetBytes(), 4, 8)
	run(t, "zfs", "destroy", "tank/e@one") // as on the target, which never had it
	if dead := send(&agentv1.EstimateZfsSend{Token: copied.GetResumeToken()}); dead.GetToGuid() != guid || dead.GetBytes() != 0 {
		t.Errorf("where there is nothing to send: %v", dead)
	}
	for _, q := range []*agentv1.EstimateZfsSend{{Dataset: "tank/e", To: "@gone"}, {Dataset: "tank/gone", To: "@two"}, {Token: "1-nonsense"}} {
		if m := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsSend{EstimateZfsSend: q}}, nil); m.GetErrorCode() == "" {
			t.Errorf("%v: %v", q, m)
		}
	}
}

// TestManyRealSnapshots lists some thousand of a real pool, in parts.
func TestManyRealSnapshots(t *testing.T) {
	const datasets, times = 20, 20
	const many = (datasets + 1) * times
	run(t, "zfs", "create", "tank/m")
	t.Cleanup(func() { _ = exec.Command("zfs", "destroy", "-r", "tank/m").Run() })
	run(t, "sh", "-ec", fmt.Sprintf("for i in $(seq %d); do zfs create tank/m/dataset-with-a-name-as-long-as-usual-$i; done", datasets))
	run(t, "sh", "-ec", fmt.Sprintf("for i in $(seq %d); do zfs snapshot -r -o org.debvisor:operation=01900000-0000-7000-8000-00000000$i tank/m@dv-20261122T120000Z-$i; done", times))
	a := Answers{ZFS: NewZFS(zfs.New(zfs.Config{}))}
	a.ZFS.partBytes = 16 << 10
	began := time.Now()
	got, parts, last := collect(t, a, &agentv1.ListZfs{Datasets: []string{"tank/m"}, Recursive: true, Snapshots: true})
	t.Logf("%d snapshots of a real pool in %d parts: %s", len(got.GetSnapshots()), parts, time.Since(began).Round(time.Millisecond))
	if len(got.GetSnapshots()) != many || parts < 2 || last.GetErrorCode() != "" {
		t.Errorf("%d snapshots in %d parts: %s", len(got.GetSnapshots()), parts, last.GetErrorMessage())
	}
	// Nobody waits for the rest: the command ends, and the answer says why.
	gone := errors.New("gone")
	if m := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Datasets: []string{"tank/m"}, Recursive: true, Snapshots: true}}},
		func(*agentv1.Answer) error { return gone }); m.GetErrorCode() == "" {
		t.Errorf("got %v", m)
	}
}

// commands stands for ZFS where that cannot be had: as large or as hung.
type commands struct {
	*zfs.ZFS
	snapshots int
	hang      chan struct{} // closed: goes on
}

func (c commands) Installed() bool { return true }

func (c commands) Datasets(context.Context, ...string) ([]zfs.Dataset, error) {
	if c.hang != nil {
		<-c.hang // whatever its context says
	}
	return []zfs.Dataset{{Name: "tank/x"}}, nil
}

func (c commands) Named(ctx context.Context, names ...string) ([]zfs.Dataset, error) {
	return c.Datasets(ctx, names...)
}

func (c commands) Snapshots(_ context.Context, _ []string, _ bool, yield func(zfs.Snapshot) error) error {
	for i := range c.snapshots {
		s := zfs.Snapshot{
			Dataset: "tank/x", Name: fmt.Sprintf("dv-20261122T120000Z-%08d", i), GUID: uint64(i + 1), CreateTXG: uint64(i), UserRefs: uint64(i % 100 / 99),
			Properties: map[string]string{zfs.PropertyOperation: fmt.Sprintf("0190%032d", i), zfs.PropertyLabel: "hourly"},
		}
		if i == 7 {
			s.Clones = slices.Repeat([]string{"tank/" + strings.Repeat("c", 200)}, 5000)
			s.UserRefs = 5000
		}
		if err := yield(s); err != nil {
			return err
		}
	}
	return nil
}

func (c commands) Holds(_ context.Context, names ...string) (map[string][]zfs.Hold, error) {
	all := map[string][]zfs.Hold{}
	for _, name := range names {
		all[name] = slices.Repeat([]zfs.Hold{{Tag: "debvisor:job"}}, 1+4999*strings.Count(name, "-00000007"))
	}
	return all, nil
}

// TestSixtyFiveThousandSnapshots: no part is larger than a message may be, and no
// more than one is in memory.
func TestSixtyFiveThousandSnapshots(t *testing.T) {
	a := Answers{ZFS: NewZFS(commands{snapshots: 65_000})}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	n, held, parts, peak, largest := 0, 0, 0, uint64(0), 0
	part := func(m *agentv1.Answer) error {
		parts++
		largest = max(largest, proto.Size(m))
		for _, s := range m.GetZfsListing().GetSnapshots() {
			n++
			if len(s.GetHolds()) > 0 {
				held++
			}
		}
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapAlloc)
		return nil
	}
	last := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Datasets: []string{"tank/x"}, Snapshots: true}}}, part)
	_ = part(last)
	grown := (int64(peak) - int64(before.HeapAlloc)) >> 20
	t.Logf("%d snapshots in %d parts, the largest of %d KiB, %s, heap at most %d MiB larger", n, parts, largest>>10, time.Since(began).Round(time.Millisecond), grown)
	if n != 65_000 || held != 651 || largest > 768<<10 || grown > 8 || last.GetErrorCode() != "" {
		t.Errorf("%d snapshots, %d held, at most %d bytes a part, %d MiB: %s", n, held, largest, grown, last.GetErrorMessage())
	}
}

// TestQuestionsToAZFSThatHangs: each ends with its context, no more than four
// hang, and when ZFS goes on so do questions.
func TestQuestionsToAZFSThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		a := Answers{ZFS: NewZFS(commands{hang: hang})}
		ask := func(patience time.Duration) *agentv1.Answer {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return a.Answer(ctx, &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{}}}, nil)
		}
		for i := range 2 * zfsAtOnce {
			began := time.Now()
			m := ask(time.Second)
			if took := time.Since(began); m.GetErrorCode() != CodeZFSSilent || took > time.Second+zfsGrace {
				t.Errorf("question %d: %v after %s", i, m, took)
			}
		}
		close(hang)
		synctest.Wait()
		if m := ask(time.Second); len(m.GetZfsListing().GetDatasets()) != 1 {
			t.Errorf("once it goes on: %v", m)
		}
	})
}

func TestAHostWithoutZFSSaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for name, a := range map[string]Answers{"none": {}, "no commands": {ZFS: NewZFS(zfs.New(zfs.Config{}))}} {
		m := a.Answer(t.Context(), &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{}}}, nil)
		if m.GetErrorCode() != CodeNoZFS {
			t.Errorf("%s: %v", name, m)
		}
	}
}
