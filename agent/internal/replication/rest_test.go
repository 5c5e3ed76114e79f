package replication

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listed is the state of some datasets. A command of zfs costs a machine more than all
// else that these checks do: they ask for much at once.
type listed struct {
	guids map[string]string   // by full name
	marks map[string][]string // bookmarks' names, by dataset
	kept  []string            // full names of snapshots that somebody holds
}

func list(t *testing.T, datasets ...string) listed {
	t.Helper()
	l, err := parseList(sh(t, append([]string{"zfs", "list", "-Hp", "-d", "1", "-o", "name,guid,userrefs", "-t", "filesystem,volume,snapshot,bookmark"}, datasets...)...))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func parseList(text string) (listed, error) {
	l := listed{guids: map[string]string{}, marks: map[string][]string{}}
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			return l, fmt.Errorf("%q", line)
		}
		l.guids[f[0]] = f[1]
		if dataset, _, isMark := strings.Cut(f[0], "#"); isMark {
			l.marks[dataset] = append(l.marks[dataset], f[0])
		}
		if strings.Contains(f[0], "@") && f[2] != "0" {
			l.kept = append(l.kept, f[0])
		}
	}
	return l, nil
}

// holds lists "dataset@name tag" of the snapshots that are held.
func (l listed) holds(t *testing.T) []string {
	t.Helper()
	if len(l.kept) == 0 {
		return nil
	}
	var out []string
	for line := range strings.SplitSeq(sh(t, append([]string{"zfs", "holds", "-H"}, l.kept...)...), "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			out = append(out, f[0]+" "+f[1])
		}
	}
	slices.Sort(out)
	return out
}

// holds lists "name tag" of a dataset's held snapshots.
func holds(t *testing.T, dataset string) []string {
	t.Helper()
	out := list(t, dataset).holds(t)
	for i := range out {
		out[i] = strings.TrimPrefix(out[i], dataset+"@")
	}
	return out
}

// atRest makes sure that both sides keep the cursor and nothing else, that the copy
// is equal and read-only, and that nothing partial is left.
func (j *job) atRest(cursor string) {
	j.t.Helper()
	j.kept(cursor)
	j.alike(cursor)
	found := j.properties("readonly,org.debvisor:job,mounted,receive_resume_token")
	for property, want := range map[string]string{"readonly": "on", "org.debvisor:job": j.id, "mounted": "no"} {
		if j.volume && property == "mounted" {
			continue
		}
		if got := found[j.target+" "+property]; got != want {
			j.t.Errorf("%s of %s is %q", property, j.target, got)
		}
	}
	j.noToken(found)
}

// properties are those of all datasets of the target's, by "dataset property".
func (j *job) properties(names string) map[string]string {
	j.t.Helper()
	found := map[string]string{}
	for line := range strings.SplitSeq(try("zfs", "get", "-H", "-o", "name,property,value", "-t", "filesystem,volume", "-r", names, j.target), "\n") {
		if f := strings.Split(line, "\t"); len(f) == 3 {
			found[f[0]+" "+f[1]] = f[2]
		}
	}
	return found
}

// nothingPartial makes sure that no rest of a receive is there.
func (j *job) nothingPartial() {
	j.t.Helper()
	j.noToken(j.properties("receive_resume_token"))
}

func (j *job) noToken(found map[string]string) {
	j.t.Helper()
	for key, value := range found {
		if strings.HasSuffix(key, " receive_resume_token") && value != "-" {
			j.t.Errorf("partial: %s", key)
		}
	}
}

// kept makes sure that both sides keep the cursor and nothing else.
func (j *job) kept(cursor string) {
	j.t.Helper()
	l := list(j.t, j.source, j.target)
	want := []string{j.source + "@" + cursor + " debvisor:" + j.id, j.target + "@" + cursor + " debvisor:" + j.id}
	slices.Sort(want)
	if got := l.holds(j.t); !slices.Equal(got, want) {
		j.t.Errorf("holds are %v; want %v", got, want)
	}
	source, target := l.guids[j.source+"@"+cursor], l.guids[j.target+"@"+cursor]
	if source == "" || source != target {
		j.t.Errorf("@%s: guids %s and %s", cursor, source, target)
	}
	if mark := fmt.Sprintf("%s#debvisor-%s-%x", j.source, j.id, number(source)); !slices.Equal(l.marks[j.source], []string{mark}) {
		j.t.Errorf("bookmarks %v; want %s", l.marks[j.source], mark)
	}
}

// chained makes sure that some snapshot is held on both sides, and that of one which
// the target holds the source has a bookmark. It fits every moment between two runs'
// ends, whichever agent is dead: the other does not go back.
func (j *job) chained(when string) {
	l, err := parseList(try("zfs", "list", "-Hp", "-o", "name,guid,userrefs", "-d", "1", "-t", "snapshot,bookmark", j.source, j.target))
	if err != nil {
		j.t.Errorf("%s: %v", when, err)
		return
	}
	held, marked := map[string][]string{}, []string(nil)
	for _, name := range l.kept {
		dataset, _, _ := strings.Cut(name, "@")
		held[dataset] = append(held[dataset], l.guids[name])
	}
	for _, name := range l.marks[j.source] {
		marked = append(marked, l.guids[name])
	}
	both := func(a, b []string) bool {
		return slices.ContainsFunc(a, func(one string) bool { return slices.Contains(b, one) })
	}
	if !both(held[j.source], held[j.target]) || !both(marked, held[j.target]) {
		j.t.Errorf("%s: held are %v, bookmarks are of %v", when, held, marked)
	}
}

// same compares a snapshot on both sides by guid and by content.
func (j *job) same(name string) {
	j.t.Helper()
	if a, b := guid(j.t, j.source+"@"+name), guid(j.t, j.target+"@"+name); a != b {
		j.t.Errorf("@%s: guids %d and %d", name, a, b)
	}
	j.alike(name)
}

// alike compares the contents of a snapshot on both sides, byte by byte.
func (j *job) alike(name string) {
	j.t.Helper()
	if j.raw {
		sh(j.t, "zfs", "load-key", "-L", "file://"+j.key, j.target)
		defer sh(j.t, "zfs", "unload-key", j.target)
	}
	if j.volume {
		j.alikeFiles("/dev/zvol/"+j.source+"@"+name, "/dev/zvol/"+j.target+"@"+name)
		return
	}
	source, target := j.mount(j.source+"@"+name), j.mount(j.target+"@"+name)
	defer j.unmount(source)
	defer j.unmount(target)
	of, copied := files(j.t, source), files(j.t, target)
	if !slices.Equal(of, copied) {
		j.t.Fatalf("files %v and %v", of, copied)
	}
	for _, file := range of {
		j.alikeFiles(filepath.Join(source, file), filepath.Join(target, file))
	}
}

func (j *job) mount(snapshot string) string {
	j.t.Helper()
	dir := filepath.Join(j.t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		j.t.Fatal(err)
	}
	if err := unix.Mount(snapshot, dir, "zfs", unix.MS_RDONLY, ""); err != nil {
		j.t.Fatalf("mounting %s: %v", snapshot, err)
	}
	return dir
}

func (j *job) unmount(dir string) {
	j.t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		j.t.Error(err)
	}
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (j *job) alikeFiles(one, other string) {
	j.t.Helper()
	var in [2]*os.File
	for i, path := range []string{one, other} {
		j.until(path, func() bool { _, err := os.Stat(path); return err == nil })
		f, err := os.Open(path)
		if err != nil {
			j.t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		in[i] = f
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := 0; ; at++ {
		n, errA := io.ReadFull(in[0], a)
		m, errB := io.ReadFull(in[1], b)
		if n != m || !bytes.Equal(a[:n], b[:m]) || errA != errB { //nolint:errorlint // both are io's own
			j.t.Fatalf("%s and %s differ in MiB %d (%d and %d bytes, %v, %v)", one, other, at, n, m, errA, errB)
		}
		if errA != nil {
			return
		}
	}
}
