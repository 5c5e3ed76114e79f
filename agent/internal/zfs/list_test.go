package zfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestPoolsAndDatasets compares with what go-zfs reads.
func TestPoolsAndDatasets(t *testing.T) {
	z, dataset := room(t)
	raw(t, "zfs", "create", "-V", "32M", "-o", "org.debvisor:job=j1", dataset+"/v")
	raw(t, "zfs", "create", "-o", "mountpoint=none", dataset+"/v2")
	noise(t, dataset, "f", 3, 1)
	raw(t, "zpool", "sync", tank)

	pools, err := z.Pools(t.Context())
	fine(t, err)
	i := slices.IndexFunc(pools, func(p Pool) bool { return p.Name == tank })
	if i < 0 {
		t.Fatalf("no pool among %+v", pools)
	}
	p := pools[i]
	want, err := gozfs.GetZpool(tank)
	fine(t, err)
	if p.Health != want.Health || p.Size != want.Size || p.ReadOnly || p.Allocated+p.Free != p.Size || p.Health != "ONLINE" {
		t.Errorf("the pool is %+v, go-zfs says %+v", p, want)
	}
	if raw(t, "zpool", "get", "-Hpo", "value", "guid", tank) != fmt.Sprint(p.GUID) {
		t.Errorf("the pool's guid is %d", p.GUID)
	}

	all, err := z.Datasets(t.Context(), dataset)
	fine(t, err)
	if len(all) != 3 {
		t.Fatalf("%d datasets: %+v", len(all), all)
	}
	for _, d := range all {
		want, err := gozfs.GetDataset(d.Name)
		fine(t, err)
		if d.Used != want.Used || d.Available != want.Avail || d.Referenced != want.Referenced || d.Compression != want.Compression ||
			d.VolumeSize != want.Volsize || d.UsedByDataset != want.Usedbydataset || d.LogicalUsed != want.Logicalused || d.Origin != want.Origin ||
			d.Volume != (want.Type == gozfs.DatasetVolume) || d.Written != want.Written {
			t.Errorf("%+v, go-zfs says %+v", d, want)
		}
		if d.GUID != guidOf(t, d.Name) || d.CreateTXG == 0 || time.Since(d.Creation).Abs() > time.Hour || d.Encrypted() {
			t.Errorf("%+v", d)
		}
	}
	if d := all[0]; !d.Mounted || d.Volume || d.Referenced < 3<<20 || d.BlockSize != 128<<10 || d.Properties != nil || d.ReadOnly {
		t.Errorf("the file system is %+v", d)
	}
	if d := all[1]; !d.Volume || d.VolumeSize != 32<<20 || d.BlockSize != 16<<10 || d.RefReservation < 32<<20 || d.Properties[PropertyJob] != "j1" {
		t.Errorf("the volume is %+v", d)
	}
	raw(t, "zfs", "set", "canmount=off", dataset+"/v2")
	raw(t, "zfs", "set", "mountpoint=/tmp/odd\tplace\nto be", dataset+"/v2") // go-zfs takes no such line
	if all, err = z.Datasets(t.Context(), dataset+"/v2"); err != nil || len(all) != 1 || all[0].GUID == 0 || all[0].Encryption != "off" {
		t.Errorf("with an odd mountpoint: %+v, %v", all, err)
	}
	whole, err := z.Datasets(t.Context())
	if err != nil || len(whole) < 4 || whole[0].Name != tank {
		t.Errorf("without roots: %v, %v", whole, err)
	}
	refused(t, second(z.Datasets(t.Context(), dataset+"/none")), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
}

func TestSnapshotsAndBookmarks(t *testing.T) {
	z, dataset := room(t)
	sub := dataset + "/sub"
	raw(t, "zfs", "create", sub)
	raw(t, "zfs", "set", "org.debvisor:label=of the dataset", "org.debvisor:operation=nobody's", dataset)
	raw(t, "zfs", "snapshot", "-o", "org.debvisor:label=own", dataset+"@b", sub+"@b")
	noise(t, dataset, "f", 2, 1)
	raw(t, "zfs", "snapshot", dataset+"@a")
	raw(t, "zfs", "hold", "x", dataset+"@a")
	raw(t, "zfs", "clone", "-o", "mountpoint=none", dataset+"@b", dataset+"/c1")
	raw(t, "zfs", "clone", "-o", "mountpoint=none", dataset+"@b", dataset+"/c2")
	raw(t, "zfs", "bookmark", dataset+"@b", dataset+"#m")

	list := func(recursive bool) (names []string, found map[string]Snapshot) {
		found = map[string]Snapshot{}
		fine(t, z.Snapshots(t.Context(), []string{dataset}, recursive, func(s Snapshot) error {
			names = append(names, s.FullName())
			found[s.FullName()] = s
			return nil
		}))
		return names, found
	}
	names, found := list(true)
	if want := []string{dataset + "@b", dataset + "@a", sub + "@b"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q: of each dataset as taken", names, want)
	}
	if names, _ := list(false); len(names) != 2 {
		t.Errorf("of the dataset alone: %q", names)
	}
	b, a := found[dataset+"@b"], found[dataset+"@a"]
	if len(b.Properties) != 1 || b.Properties[PropertyLabel] != "own" || a.Properties != nil {
		t.Errorf("what a dataset says is no snapshot's own: %v, %v", b.Properties, a.Properties)
	}
	if a.GUID != guidOf(t, dataset+"@a") || a.CreateTXG <= b.CreateTXG || a.UserRefs != 1 || b.UserRefs != 0 || a.Written < 2<<20 || a.Referenced < 2<<20 ||
		a.DeferDestroy || time.Since(a.Creation).Abs() > time.Hour {
		t.Errorf("%+v after %+v", a, b)
	}
	if slices.Sort(b.Clones); !slices.Equal(b.Clones, []string{dataset + "/c1", dataset + "/c2"}) || a.Clones != nil {
		t.Errorf("clones %q, %q", b.Clones, a.Clones)
	}
	var marks []Bookmark
	fine(t, z.Bookmarks(t.Context(), []string{dataset}, true, func(m Bookmark) error { marks = append(marks, m); return nil }))
	if len(marks) != 1 || marks[0].FullName() != dataset+"#m" || marks[0].GUID != b.GUID || marks[0].CreateTXG != b.CreateTXG || marks[0].Creation != b.Creation {
		t.Errorf("bookmarks %+v", marks)
	}
	none := func(Snapshot) error { t.Error("handed something"); return nil }
	refused(t, z.Snapshots(t.Context(), []string{dataset + "/none"}, true, none), errdefs.NotFound, CodeDatasetNotFound, dataset+"/none")
}

// TestListingEnds: yield's error ends the command, and so does the context.
func TestListingEnds(t *testing.T) {
	z, dataset := room(t)
	for i := range 20 {
		raw(t, "zfs", "snapshot", dataset+"@"+strconv.Itoa(i))
	}
	enough, seen := errors.New("enough"), 0
	err := z.Snapshots(t.Context(), []string{dataset}, false, func(Snapshot) error { seen++; return enough })
	if !errors.Is(err, enough) || seen != 1 {
		t.Errorf("%d, %v", seen, err)
	}
	nobodyAbout(t, dataset)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := z.Snapshots(ctx, []string{dataset}, false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
	nobodyAbout(t, dataset)
}

// TestManySnapshots reads a listing of 65,000, and holds one at a time.
func TestManySnapshots(t *testing.T) {
	read, write, err := os.Pipe()
	fine(t, err)
	const many = 65000
	go func() {
		defer func() { _ = write.Close() }()
		out := bufio.NewWriterSize(write, 64<<10)
		defer func() { _ = out.Flush() }()
		for i := range many {
			name := fmt.Sprintf("tank/a@snapshot-%06d", i)
			for p := range strings.SplitSeq(snapshotProperties, ",") {
				value, source := strconv.Itoa(i+1), "-"
				if p == PropertyLabel {
					value, source = "daily", "local"
				} else if strings.HasPrefix(p, ownPrefix) || p == "clones" {
					value = "-"
				}
				if _, err := io.WriteString(out, name+"\t"+p+"\t"+value+"\t"+source+"\n"); err != nil {
					return
				}
			}
		}
	}()
	var most uint64
	seen := 0
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	before := memory.HeapAlloc
	began := time.Now()
	g := grouping{asked: strings.Split(snapshotProperties, ","), yield: func(g *group) error {
		s := g.snapshot()
		if seen++; s.Name != fmt.Sprintf("snapshot-%06d", seen-1) || s.GUID != uint64(seen) || s.Properties[PropertyLabel] != "daily" || len(s.Properties) != 1 || g.err != nil {
			return fmt.Errorf("number %d is %+v, %w", seen, s, g.err)
		}
		if seen%10000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&memory)
			most = max(most, memory.HeapAlloc)
		}
		return nil
	}}
	fine(t, eachLine(read, g.line))
	fine(t, g.end())
	if seen != many || most > before+2<<20 {
		t.Errorf("%d snapshots, with %d KiB more than before", seen, (most-before)>>10)
	}
	t.Logf("65,000 snapshots read in %v, %d KiB more than before at most", time.Since(began).Round(time.Millisecond), (int64(most)-int64(before))>>10)
}
