package zfs

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestBrief: what it tells of snapshots and bookmarks is what zfs itself lists, of
// those with holds, clones, odd names, none, and many.
func TestBrief(t *testing.T) {
	z, dataset := room(t)
	for _, sub := range []string{"/empty", "/-o name", "/many", "/s.n:a_p"} {
		raw(t, "zfs", "create", "-o", "mountpoint=none", dataset+sub)
	}
	raw(t, "zfs", "create", "-V", "16M", dataset+"/v")
	for _, name := range []string{"-r", " a b ", "x:y.z_1", "held", "cloned", strings.Repeat("l", 200-len(dataset))} {
		raw(t, "zfs", "snapshot", "-r", "--", dataset+"@"+name)
	}
	raw(t, "zfs", "hold", "a", dataset+"@held")
	raw(t, "zfs", "clone", "-o", "mountpoint=none", dataset+"@cloned", dataset+"/copy")
	raw(t, "zfs", "bookmark", dataset+"@held", dataset+"#-x y")
	raw(t, "zfs", "bookmark", dataset+"/v@-r", dataset+"/v#of-one-that-goes")
	raw(t, "zfs", "destroy", dataset+"/v@-r")
	raw(t, "sh", "-ec", `for i in $(seq 150); do zfs snapshot "$1@n$i"; done`, "sh", dataset+"/many")
	// With an attribute more than the kernel tells in passing, zfs takes its other way.
	longhand := func(root string, depth ...string) []string {
		args := append([]string{"list", "-Hpo", "name,guid,createtxg,used", "-t", "snapshot,bookmark"}, depth...)
		var want []string
		for line := range strings.Lines(raw(t, append(append([]string{"zfs"}, args...), "--", root)...)) {
			f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
			want = append(want, strings.Join(f[:3], "\t"))
		}
		return want
	}
	brief := func(root string, recursive bool) (got []string) {
		t.Helper()
		fine(t, z.Brief(t.Context(), []string{root}, recursive, func(s Snapshot) error {
			got = append(got, fmt.Sprintf("%s\t%d\t%d", s.FullName(), s.GUID, s.CreateTXG))
			return nil
		}, func(b Bookmark) error {
			got = append(got, fmt.Sprintf("%s\t%d\t%d", b.FullName(), b.GUID, b.CreateTXG))
			return nil
		}))
		return got
	}
	for root, n := range map[string]int{"": 7, "/empty": 6, "/-o name": 6, "/many": 156, "/s.n:a_p": 6, "/v": 6, "/copy": 0} {
		got, want := brief(dataset+root, false), longhand(dataset+root, "-d", "1")
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) || len(got) != n {
			t.Errorf("%q: %d\n%q\nwant %d\n%q", root, len(got), got, n, want)
		}
	}
	got, want := brief(dataset, true), longhand(dataset, "-r")
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) || len(got) != 187 {
		t.Errorf("all: %d, want %d", len(got), len(want))
	}

	snapshot, bookmark := func(Snapshot) error { return nil }, func(Bookmark) error { return nil }
	refused(t, z.Brief(t.Context(), []string{dataset + "/gone"}, false, snapshot, bookmark), errdefs.NotFound, CodeDatasetNotFound, dataset+"/gone")
	for _, bad := range []string{"", "-r", dataset + "@held", dataset + "/../x"} {
		if err := z.Brief(t.Context(), []string{bad}, false, snapshot, bookmark); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	enough := errors.New("enough")
	if err := z.Brief(t.Context(), []string{dataset + "/many"}, false, func(Snapshot) error { return enough }, bookmark); !errors.Is(err, enough) {
		t.Errorf("an error of yield: %v", err)
	}
	nobodyAbout(t, dataset)
}

// TestNamed: of datasets that are named those are told that exist, in one command,
// and anything else that zfs complains of is an error.
func TestNamed(t *testing.T) {
	z, dataset := room(t)
	raw(t, "zfs", "create", "-o", "mountpoint=none", dataset+"/-a b")
	raw(t, "zfs", "create", "-V", "16M", dataset+"/v")
	named := func(names ...string) string {
		t.Helper()
		found, err := z.Named(t.Context(), names...)
		fine(t, err)
		var all []string
		for _, d := range found {
			if d.GUID != guidOf(t, d.Name) || d.CreateTXG == 0 || d.Volume != strings.HasSuffix(d.Name, "/v") {
				t.Errorf("%+v", d)
			}
			all = append(all, d.Name)
		}
		return strings.ReplaceAll(strings.Join(all, ","), dataset, "D")
	}
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{dataset}, "D"},
		{[]string{dataset + "/v", dataset, dataset + "/v", dataset + "/-a b"}, "D,D/-a b,D/v"},
		{[]string{dataset + "/none", dataset + "/v", "nopool/x", "nopool"}, "D/v"},
		{[]string{dataset + "/none"}, ""},
		{nil, ""},
	} {
		if got := named(c.names...); got != c.want {
			t.Errorf("%q: %q, want %q", c.names, got, c.want)
		}
	}
	if _, err := z.Named(t.Context(), dataset, dataset+"@x"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a snapshot: %v", err)
	}
	is := absent([]string{"tank/a", "tank/b"})
	gone := func(name string) string { return "cannot open '" + name + "': dataset does not exist\n" }
	for complaints, want := range map[string]bool{
		gone("tank/a"): true, gone("tank/a") + gone("tank/b"): true, gone("tank/c"): false, "": false, gone("tank/a") + "internal error\n": false,
		"cannot open 'tank/a': pool I/O is currently suspended\n": false, strings.TrimSuffix(gone("tank/a"), "\n"): false,
	} {
		if is(complaints) != want {
			t.Errorf("%q is bearable: %v", complaints, !want)
		}
	}
	// One that was killed has not told all.
	killed := command{program: "sh", args: []string{"-c", "printf \"cannot open 'tank/a': dataset does not exist\n\" >&2; kill -9 $$"}, bearable: is}
	var exit *exec.ExitError
	if err := z.do(t.Context(), killed); !errors.As(err, &exit) {
		t.Errorf("of a command that was killed: %v", err)
	}
	killed.args[1] = strings.Replace(killed.args[1], "kill -9 $$", "exit 1", 1)
	fine(t, z.do(t.Context(), killed))
}
