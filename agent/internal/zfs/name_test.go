package zfs

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

var (
	goodNames = []string{
		"tank", "t", "tank/a", "tank/a/b-c_d.e:f", "tank/a@s", "tank/a#b", "tank/ a b", "tank/..a", "tank/a..", "tank/...", "tank@x y", "tank/-a@-b",
		"tank/" + strings.Repeat("a", 250), "tank/a@" + strings.Repeat("s", 248),
	}
	badNames = []string{
		"", "/", "tank/", "/tank", "tank//a", "tank/..", "tank/../other", "tank/.", "tank/./a", "tank/a@", "tank/a#", "@s", "#b", "tank/a@s@t", "tank/a#b#c", "tank/a@s#b",
		"tank/a#b@s", "tank/a@s/b", "tank/a%b", "tank/%recv", "tank/a@%x", "tank/a@s1%s2", "tank/a@s,t", "-tank/a", "1tank/a", "tank/a\tb", "tank/a\nb", "tank/a\x00", "tank/ä",
		"tank/a;b", "tank/a$b", "tank/a'b", "tank/a@..", "tank/a@.", "tank/a#..", "tank/" + strings.Repeat("a", 251), "tank/a@" + strings.Repeat("s", 249),
		"tank" + strings.Repeat("/a", 50), " tank/a",
	}
)

func TestNames(t *testing.T) {
	for _, name := range goodNames {
		if n, err := ParseName(name); err != nil || n.String() != name {
			t.Errorf("%q gives %+v, %v", name, n, err)
		}
	}
	for _, name := range badNames {
		if n, err := ParseName(name); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q gives %+v, %v", name, n, err)
		}
	}
	n, err := ParseName("tank/tenant/vm-1@daily:1")
	if err != nil || n != (Name{Kind: KindSnapshot, Dataset: "tank/tenant/vm-1", Short: "daily:1"}) || n.Pool() != "tank" {
		t.Errorf("taken apart: %+v, %v", n, err)
	}
}

// TestNamesAreThoseOfZFS has zfs itself decide on the same names.
func TestNamesAreThoseOfZFS(t *testing.T) {
	accepts := func(name string) bool {
		// A name that is good leads to nothing: "does not exist". A bad one is refused.
		out, _ := exec.Command("zfs", "list", "-t", "all", "--", name).CombinedOutput()
		return strings.Contains(string(out), "does not exist") || strings.Contains(string(out), "no such pool or dataset") || strings.HasPrefix(string(out), "NAME")
	}
	for _, name := range goodNames {
		if !accepts(name) {
			t.Errorf("zfs does not take %q", name)
		}
	}
	// These zfs only refuses where something is to get the name.
	late := []string{"-tank/a", "1tank/a", " tank/a", "tank" + strings.Repeat("/a", 50)}
	for _, name := range badNames {
		// An argument ends at a NUL, and % and , have a meaning in some verbs.
		if accepts(name) && !strings.ContainsAny(name, "%,\x00") && !slices.Contains(late, name) {
			t.Errorf("zfs takes %q", name)
		}
	}
}

// TestNothingRunsWithABadName calls every method with names that lead elsewhere;
// no command is in PATH, so that one that ran would be told apart.
func TestNothingRunsWithABadName(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	z, ctx := New(Config{}), t.Context()
	for _, bad := range []string{"tank/t1/../t2", "tank/t1@s@x", "tank/t1#b#x", "tank/t1%recv", "-r", "tank/t1@a%b", "tank/t1@a,b", "tank/t1\n"} {
		refs := Ref{Dataset: bad, Name: "s", GUID: 1}
		for name, err := range map[string]error{
			"datasets":  second(z.Datasets(ctx, bad)),
			"snapshots": z.Snapshots(ctx, []string{bad}, true, nil),
			"bookmarks": z.Bookmarks(ctx, []string{bad}, true, nil),
			"holds":     second(z.Holds(ctx, bad)),
			"hold":      z.Hold(ctx, "tag", bad), "release": z.Release(ctx, "tag", bad),
			"snapshot": z.Snapshot(ctx, SnapshotSpec{Datasets: []string{bad}, Name: "s"}),
			"name":     z.Snapshot(ctx, SnapshotSpec{Datasets: []string{"tank/a"}, Name: bad}),
			"destroy":  second(z.DestroySnapshot(ctx, refs)),
			"destroys": second(z.DestroySnapshots(ctx, []Ref{refs})),
			"estimate": second(z.EstimateDestroy(ctx, "tank/a", []string{bad})),
			"of":       second(z.EstimateDestroy(ctx, bad, []string{"s"})),
			"bookmark": z.Bookmark(ctx, "tank/a@s", bad), "made of": z.Bookmark(ctx, bad, "tank/a#b"),
			"unmark":  z.DestroyBookmark(ctx, bad),
			"size":    second(z.EstimateSend(ctx, SendSpec{To: bad})),
			"send":    second(z.Send(ctx, SendSpec{To: bad})),
			"from":    second(z.Send(ctx, SendSpec{From: bad, To: "tank/a@s"})),
			"token":   second(z.DecodeToken(ctx, bad)),
			"resume":  second(z.Send(ctx, SendSpec{Token: bad})),
			"receive": second(z.Receive(ctx, ReceiveSpec{Dataset: bad})),
			"as":      second(z.Receive(ctx, ReceiveSpec{Dataset: "tank/a", Snapshot: bad})),
			"abort":   z.AbortReceive(ctx, bad),
			"create":  z.Create(ctx, CreateSpec{Name: bad}),
			"rename":  z.Rename(ctx, bad, "tank/b", 1), "to": z.Rename(ctx, "tank/a", bad, 1),
			"dataset":  second(z.DestroyDataset(ctx, bad, 1)),
			"rollback": z.Rollback(ctx, refs),
			"get":      second(z.Get(ctx, bad, "guid")), "what": second(z.Get(ctx, "tank/a", "-x")),
			"set": z.Set(ctx, bad, map[string]string{"a:b": "c"}), "inherit": z.Inherit(ctx, bad, "a:b"),
		} {
			if bad == "-r" && slices.Contains([]string{"name", "estimate", "as"}, name) {
				continue // behind an @ it is a name as any other
			}
			if !errdefs.Is(err, errdefs.InvalidArgument) {
				t.Errorf("%s of %q: %v", name, bad, err)
			}
		}
	}
	for name, err := range map[string]error{
		"across pools":       z.Rename(ctx, "tank/a", "other/a", 1),
		"of two pools":       z.Snapshot(ctx, SnapshotSpec{Datasets: []string{"tank/a", "other/a"}, Name: "s"}),
		"destroy two":        second(z.DestroySnapshots(ctx, []Ref{{"tank/a", "s", 1}, {"other/a", "s", 1}})),
		"without guid":       second(z.DestroySnapshot(ctx, Ref{Dataset: "tank/a", Name: "s"})),
		"mark elsewhere":     z.Bookmark(ctx, "tank/a@s", "tank/b#b"),
		"a whole pool":       second(z.DestroyDataset(ctx, "tank", 1)),
		"from another pool":  second(z.Send(ctx, SendSpec{From: "other/a@s", To: "tank/a@s"})),
		"token and snapshot": second(z.Send(ctx, SendSpec{To: "tank/a@s", Token: "1-a-a-a"})),
		"tag":                z.Hold(ctx, "a b", "tank/a@s"),
		"value":              z.Set(ctx, "tank/a", map[string]string{"a:b": "c\td"}),
		"native property":    z.Snapshot(ctx, SnapshotSpec{Datasets: []string{"tank/a"}, Name: "s", Properties: map[string]string{"readonly": "on"}}),
	} {
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := z.AbortReceive(ctx, "tank/a"); !has(err, CodeAbsent) || !errdefs.Is(err, errdefs.Unimplemented) {
		t.Errorf("without commands: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// FuzzParseName: what passes means what it says, whoever reads it.
func FuzzParseName(f *testing.F) {
	for _, s := range append(goodNames, badNames...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			if !errdefs.Is(err, errdefs.InvalidArgument) || n != (Name{}) {
				t.Fatalf("%q: %+v, %v", s, n, err)
			}
			return
		}
		if n.String() != s || len(s) > 255 || strings.HasPrefix(s, "-") || strings.ContainsAny(s, "%,;'\"\\$\t\n\x00") {
			t.Fatalf("%q is taken, as %+v", s, n)
		}
		if strings.Count(s, "@")+strings.Count(s, "#") > 1 || strings.ContainsAny(n.Dataset, "@#") || strings.ContainsAny(n.Short, "@#/") {
			t.Fatalf("%q is two things", s)
		}
		for p := range strings.SplitSeq(n.Dataset, "/") {
			if p == "" || p == "." || p == ".." {
				t.Fatalf("%q leaves its place", s)
			}
		}
		if again, err := ParseName(n.Dataset); err != nil || again.Kind != KindDataset || again.Pool() != n.Pool() {
			t.Fatalf("%q: its dataset is %+v, %v", s, again, err)
		}
	})
}
