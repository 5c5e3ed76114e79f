package replication

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// scissors has all zfs commands that change something fail once so many of them were
// run, as if the agent had died before the next.
type scissors struct {
	t     *testing.T
	count string
}

func newScissors(t *testing.T) scissors {
	t.Helper()
	s := scissors{t, filepath.Join(t.TempDir(), "count")}
	s.mend()
	real, err := exec.LookPath("zfs")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nread n <%[1]s\ncase $n:$1 in all:*|*:list|*:get|*:holds) exec %[2]s \"$@\";; esac\n[ $n -gt 0 ] || { echo cut >&2; exit 1; }\necho $((n-1)) >%[1]s\nexec %[2]s \"$@\"\n", s.count, real)
	if err := os.WriteFile(filepath.Join(dir, "zfs"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return s
}

func (s scissors) after(changes int) { s.set(strconv.Itoa(changes)) }
func (s scissors) mend()             { s.set("all") }

func (s scissors) set(count string) {
	s.t.Helper()
	if err := os.WriteFile(s.count, []byte(count+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// everywhere does something that is cut before each of its changes in turn, and
// once more to its end each time. prepare makes what it is done to anew.
func (s scissors) everywhere(prepare func(), do func() error, check func()) {
	s.t.Helper()
	for n := 0; ; n++ {
		prepare()
		s.after(n)
		err := do()
		s.mend()
		if err != nil {
			if again := do(); again != nil {
				s.t.Fatalf("cut after %d changes (%v), it cannot be done again: %v", n, err, again)
			}
		}
		check()
		if s.t.Failed() {
			s.t.Fatalf("cut after %d changes", n)
		}
		if err == nil {
			if n < 3 {
				s.t.Errorf("it changes something only %d times", n)
			}
			return
		}
	}
}

// standing is a volume with a job's copy at rest, as a run leaves both.
func standing(t *testing.T) *job {
	t.Helper()
	j := newJob(t, "dst", true, false)
	j.write(1, "a")
	j.snapshot("s1")
	j.write(1, "ab")
	j.snapshot("s2")
	j.copied()
	sh(t, "zfs", "hold", "debvisor:"+j.id, j.source+"@s2")
	sh(t, "zfs", "bookmark", j.source+"@s2", fmt.Sprintf("%s#debvisor-%s-%x", j.source, j.id, guid(t, j.source+"@s2")))
	return j
}

// copied makes the copy, anew where there is one.
func (j *job) copied() {
	j.t.Helper()
	release(j.target)
	try("zfs", "destroy", "-r", j.target)
	sh(j.t, "sh", "-c", fmt.Sprintf("zfs send %[1]s@s1 | zfs receive -o readonly=on -o org.debvisor:job=%[2]s %[3]s && zfs send -i @s1 %[1]s@s2 | zfs receive %[3]s",
		j.source, j.id, j.target))
	sh(j.t, "zfs", "hold", "debvisor:"+j.id, j.target+"@s2")
}

func (j *job) successor() Successor {
	return Successor{Dataset: j.target, Job: j.id, SnapshotGUID: guid(j.t, j.source+"@s2"), Mark: "vm/7", Back: j.id + "-back"}
}

func property(t *testing.T, dataset, name string) string {
	t.Helper()
	return sh(t, "zfs", "get", "-H", "-o", "value", name, dataset)
}

// TestSucceed: wherever it is cut, a copy becomes a volume of its own with all that
// the job's snapshot holds, and nothing of the job is left on it but a bookmark.
func TestSucceed(t *testing.T) {
	j, z, ctx := standing(t), zfs.New(zfs.Config{}), context.Background()
	s := j.successor()
	check := func() {
		t.Helper()
		if ro, job, kept := property(t, j.target, "readonly"), property(t, j.target, zfs.PropertyJob), holds(t, j.target); ro != "off" || job != "-" || len(kept) > 0 {
			t.Errorf("readonly=%s, the copy of %s, held %v", ro, job, kept)
		}
		marks := sh(t, "zfs", "list", "-H", "-o", "name", "-t", "bookmark", j.target)
		if want := fmt.Sprintf("%s#debvisor-%s-back-%x", j.target, j.id, s.SnapshotGUID); marks != want {
			t.Errorf("bookmarks %q, want %s", marks, want)
		}
		if done, err := Succeeded(ctx, z, s); !done || err != nil {
			t.Errorf("it is not told to be done: %v", err)
		}
	}
	newScissors(t).everywhere(j.copied, func() error { return Succeed(ctx, z, s) }, check)
	j.same("s2")
	if written := property(t, j.target, "written"); written != "0" {
		t.Errorf("it was written to: %s", written)
	}
	// What the guest has written since is left alone, also where the order comes once
	// more, and the former job's run does not touch it.
	path := "/dev/zvol/" + j.target
	j.until("the volume's device", func() bool { _, err := os.Stat(path); return err == nil })
	sh(t, "sh", "-c", "head -c 1M /dev/urandom | dd of="+path+" bs=1M oflag=direct conv=fsync status=none; zpool sync dst")
	sum := sh(t, "sh", "-c", "sha256sum < "+path)
	if err := Succeed(ctx, z, s); err != nil {
		t.Error(err)
	}
	check()
	if now := sh(t, "sh", "-c", "sha256sum < "+path); now != sum || property(t, j.target, "written") == "0" {
		t.Errorf("the volume was %s, and is %s (written %s)", sum, now, property(t, j.target, "written"))
	}
	if done, err := Succeeded(ctx, z, Successor{Dataset: j.target, Job: j.id, Mark: "vm/8"}); done || err != nil {
		t.Errorf("another placement has it: %v", err)
	}
	j.snapshot("s3")
	j.agents()
	receive, _ := j.tasks(j.steps("s2", "s3"))
	j.to.accept(receive)
	if received := j.to.outcome(receive); received.GetErrorCode() != CodeTargetChanged {
		t.Errorf("a run of the former job has %v", received)
	}
}

func TestSucceedRefuses(t *testing.T) {
	j, z, ctx := standing(t), zfs.New(zfs.Config{}), context.Background()
	code := func(s Successor) string {
		var e *errdefs.Error
		if err := Succeed(ctx, z, s); !errors.As(err, &e) {
			t.Errorf("%+v: %v", s, err)
			return ""
		}
		return e.Code
	}
	for name, c := range map[string]struct {
		edit func(*Successor)
		want string
	}{
		"nothing there":   {func(s *Successor) { s.Dataset = "dst/nothing" }, CodeCopyGone},
		"another job's":   {func(s *Successor) { s.Job += "0" }, CodeCopyChanged},
		"no such guid":    {func(s *Successor) { s.SnapshotGUID++ }, CodeCopyGone},
		"the source":      {func(s *Successor) { s.Dataset = j.source }, CodeCopyChanged},
		"no guid is none": {func(s *Successor) { s.SnapshotGUID = 0 }, CodeCopyGone},
	} {
		s := j.successor()
		c.edit(&s)
		if got := code(s); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	sh(t, "zfs", "set", "readonly=off", j.target)
	path := "/dev/zvol/" + j.target
	j.until("the volume's device", func() bool { _, err := os.Stat(path); return err == nil })
	sh(t, "sh", "-c", "head -c 1M /dev/urandom | dd of="+path+" bs=1M oflag=direct conv=fsync status=none; zpool sync dst")
	if got := code(j.successor()); got != CodeCopyChanged {
		t.Errorf("written to: %s", got)
	}
	if property(t, j.target, zfs.PropertyJob) != j.id || len(holds(t, j.target)) != 1 {
		t.Error("what was refused has lost its job's marks")
	}
	j.copied()
	sh(t, "zfs", "snapshot", j.target+"@later") // of the same content: somebody keeps copies of copies
	if err := Succeed(ctx, z, j.successor()); err != nil {
		t.Errorf("with a snapshot of its own: %v", err)
	}
}

// TestRetire: wherever it is cut, a former source becomes the copy of the job that
// replicates back, which has what it begins at held.
func TestRetire(t *testing.T) {
	j, z, ctx := standing(t), zfs.New(zfs.Config{}), context.Background()
	f := Former{Dataset: j.source, GUID: guid(t, j.source), Job: j.id, Back: j.id + "-back"}
	prepare := func() {
		release(j.source)
		try("sh", "-c", "zfs list -H -o name -t bookmark "+j.source+" | xargs -r -n1 zfs destroy")
		sh(t, "zfs", "inherit", zfs.PropertyJob, j.source)
		sh(t, "zfs", "set", "readonly=off", zfs.PropertySuccessor+"=vm/3", j.source)
		sh(t, "zfs", "hold", "debvisor:"+j.id, j.source+"@s2")
		sh(t, "zfs", "hold", "somebody", j.source+"@s1")
		sh(t, "zfs", "bookmark", j.source+"@s2", fmt.Sprintf("%s#debvisor-%s-%x", j.source, j.id, guid(t, j.source+"@s2")))
	}
	check := func() {
		t.Helper()
		want := map[string]string{"readonly": "on", zfs.PropertyJob: f.Back, zfs.PropertySuccessor: "-"}
		for name, value := range want {
			if got := property(t, j.source, name); got != value {
				t.Errorf("%s is %s, want %s", name, got, value)
			}
		}
		if got := holds(t, j.source); !slices.Equal(got, []string{"s1 somebody", "s2 debvisor:" + f.Back}) {
			t.Errorf("held are %v", got)
		}
		if marks := strings.Fields(sh(t, "zfs", "list", "-H", "-o", "name", "-t", "bookmark", j.source)); len(marks) > 0 {
			t.Errorf("bookmarks %v", marks)
		}
		if done, err := Retired(ctx, z, f); !done || err != nil {
			t.Errorf("it is not told to be done: %v", err)
		}
	}
	newScissors(t).everywhere(prepare, func() error { return Retire(ctx, z, f) }, check)

	prepare()
	if done, err := Retired(ctx, z, f); done || err != nil {
		t.Errorf("it is told to be done: %v", err)
	}
	another := f
	another.GUID++
	if err := Retire(ctx, z, another); err != nil || property(t, j.source, "readonly") != "off" || len(holds(t, j.source)) != 2 {
		t.Errorf("another dataset of that name was touched: %v", err)
	}
	none := f
	none.Back = ""
	if err := Retire(ctx, z, none); err != nil || property(t, j.source, zfs.PropertyJob) != "-" || !slices.Equal(holds(t, j.source), []string{"s1 somebody"}) {
		t.Errorf("nothing replicates back: %v, held %v", err, holds(t, j.source))
	}
	if err := Retire(ctx, z, Former{Dataset: "src/nothing", GUID: 1, Job: "x", Back: "x-back"}); err != nil {
		t.Errorf("a dataset that is gone: %v", err)
	}
}
