package audit

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("AUDIT_TEST_WRITER"); path != "" {
		writeForever(path)
	}
	os.Exit(m.Run())
}

// writeForever is the process that TestKill kills: eight callers make changes,
// and each says so once its change is on disk.
func writeForever(path string) {
	l, err := Open(Config{Path: path, Replica: "r1", Log: nullLog()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := cancellable()
	defer cancel()
	go func() { _ = l.Run(ctx) }()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for caller := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), caller, i)
				l.Add(&Event{Time: time.Now(), Kind: Result, Reason: strings.Repeat("r", i%500)})
				if err := tryChange(l, name); err != nil {
					continue
				}
				mu.Lock()
				fmt.Println(name)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKill kills a process that writes under load, again and again: what it was
// told is on disk is there, and the chain is whole.
func TestKill(t *testing.T) {
	path := logFile(t)
	var promised []string
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_TEST_WRITER="+path)
		var out lockedBuffer
		cmd.Stdout = &out
		must(t, cmd.Start())
		eventually(t, "changes are made", func() bool { return out.lines() > 50*(round+1) })
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		names := strings.Fields(out.String())
		if !strings.HasSuffix(out.String(), "\n") {
			names = names[:len(names)-1]
		}
		promised = append(promised, names...)
	}
	l, stop := open(t, Config{Path: path})
	change(t, l, "end")
	stop()
	isWhole(t, l.Head(), path)
	there := map[string]bool{}
	for _, name := range methods(t, read(t, path)) {
		there[name] = true
	}
	for _, name := range promised {
		if !there[name] {
			t.Errorf("change %s was made and is not in the log", name)
		}
	}
	if len(promised) < 1000 {
		t.Logf("%d changes", len(promised))
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) lines() int { return strings.Count(l.String(), "\n") }

func TestGoesOnAfterARestart(t *testing.T) {
	path := logFile(t)
	for i := range 3 {
		l, stop := open(t, Config{Path: path})
		change(t, l, fmt.Sprint(i))
		stop()
		isWhole(t, l.Head(), path)
	}
	if names := methods(t, read(t, path)); !slices.Equal(names, []string{"0", "1", "2"}) {
		t.Errorf("%v", names)
	}
	if n := bytes.Count(read(t, path), []byte(`"event":"audit_log_opened"`)); n != 3 {
		t.Errorf("%d starts are told", n)
	}
}

func TestATornLine(t *testing.T) {
	for name, torn := range map[string]string{
		"half a line": `{"seq":3,"prev":"00`, "zeros": string(make([]byte, 10_000)), "garbage": "\xff\xfe",
		"a long one": strings.Repeat("x", 300_000),
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			l, stop := open(t, Config{Path: path})
			change(t, l, "first")
			stop()
			good := read(t, path)
			must(t, os.WriteFile(path, append(slices.Clone(good), torn...), 0o600))
			logger, logged := loggedTo()
			l, stop = open(t, Config{Path: path, Log: logger})
			change(t, l, "second")
			stop()
			isWhole(t, l.Head(), path)
			content := read(t, path)
			if !bytes.HasPrefix(content, good) || !bytes.Contains(content, fmt.Appendf(nil, "of which %d bytes of a line were cut off", len(torn))) {
				t.Errorf("%s", content)
			}
			if kept := read(t, path+".torn"); string(kept) != torn+"\n" {
				t.Errorf("%d bytes are kept of %d", len(kept), len(torn))
			}
			if !strings.Contains(logged(), "it was cut off") {
				t.Errorf("the log does not say so: %s", logged())
			}
		})
	}
}

func TestWhatIsNoChainIsMovedAside(t *testing.T) {
	for name, old := range map[string]string{
		"before there were chains": "{\"time\":\"2025-01-01T00:00:00.000000Z\",\"event\":\"rpc_call\"}\n",
		"something else":           "root:x:0:0\n", "without a line": "nothing", "zeros": string(make([]byte, 100)),
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			must(t, os.WriteFile(path, []byte(old), 0o600))
			l, stop := open(t, Config{Path: path})
			change(t, l, "first")
			stop()
			isWhole(t, l.Head(), path)
			aside, err := filepath.Glob(path + ".unchained-*")
			if err != nil || len(aside) != 1 || string(read(t, aside[0])) != old {
				t.Errorf("aside: %v, %v", aside, err)
			}
			if files, err := Files(path); err != nil || !slices.Equal(files, []string{path}) {
				t.Errorf("%v, %v", files, err)
			}
		})
	}
}

func TestGoesOnFromTheFileBefore(t *testing.T) {
	for _, name := range []string{".1", ".1.gz", "-20260131"} {
		path := logFile(t)
		l, stop := open(t, Config{Path: path})
		change(t, l, "first")
		stop()
		if strings.HasSuffix(name, ".gz") {
			must(t, os.WriteFile(path+name, gzipped(t, read(t, path)), 0o600))
			must(t, os.Remove(path))
		} else {
			must(t, os.Rename(path, path+name))
		}
		l, stop = open(t, Config{Path: path})
		change(t, l, "second")
		stop()
		if r := isWhole(t, l.Head(), path+name, path); r.First != 1 || r.Lines != 4 {
			t.Errorf("%s: %+v", name, r)
		}
		if files, err := Files(path); err != nil || !slices.Equal(files, []string{path + name, path}) {
			t.Errorf("%v, %v", files, err)
		}
	}
}

// TestFilesOfAChain has clocks that go wrong, copies, and a first line that was
// changed.
func TestFilesOfAChain(t *testing.T) {
	path := logFile(t)
	l, stop := open(t, Config{Path: path})
	for i := range 400 { // the clock is set back by an hour each 100 lines
		l.Add(&Event{Time: time.Now().Add(-time.Hour * time.Duration(i/100)), Kind: Result, Reason: strings.Repeat("x", 100)})
	}
	stop()
	lines := slices.Collect(bytes.Lines(read(t, path)))
	oldest, older, newer, own := slices.Concat(lines[:100]...), slices.Concat(lines[100:200]...), slices.Concat(lines[200:300]...), slices.Concat(lines[300:]...)
	oldest[2] ^= 1
	packed := gzipped(t, older)
	for name, content := range map[string][]byte{
		".3": oldest, ".2": older, ".2.gz": packed[:len(packed)/2], ".1": newer, ".1.old": newer[:len(newer)/2], "": own, ".bak": own[:len(own)/2],
		".tar": append(make([]byte, 512), own...), ".txt": []byte("notes\n"),
	} {
		must(t, os.WriteFile(path+name, content, 0o600))
	}
	files, err := Files(path)
	if want := []string{path + ".3", path + ".2", path + ".1", path}; err != nil || !slices.Equal(files, want) {
		t.Fatalf("%v, %v, want %v", files, err, want)
	}
	must(t, os.Remove(path))
	must(t, os.Remove(path+".bak"))
	l, stop = open(t, Config{Path: path})
	stop()
	if r := check(t, l.Head(), path+".1", path); !r.Whole() || r.Lines != 101 {
		t.Errorf("%+v", r)
	}
	l, _ = open(t, Config{Path: path})
	if r, err := l.Verify(t.Context(), auditlog.Head{}); err != nil || r.File != path+".3" || r.Line != 1 || r.Findings != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestReopenUnderLoad(t *testing.T) {
	path := logFile(t)
	l, stop := open(t, Config{Path: path})
	var done atomic.Bool
	var wg sync.WaitGroup
	made := make([]int, 8)
	for caller := range made {
		wg.Go(func() {
			for ; !done.Load(); made[caller]++ {
				change(t, l, fmt.Sprintf("%d-%d", caller, made[caller]))
			}
		})
	}
	files := []string{}
	for i := range 20 {
		moved := fmt.Sprintf("%s.%d", path, 20-i) // as logrotate does: the highest is the oldest
		before := l.Head().Sequence
		eventually(t, "lines are written", func() bool { return l.Head().Sequence > before+20 })
		must(t, os.Rename(path, moved))
		files = append(files, moved)
		l.Reopen()
		eventually(t, "there is another file", func() bool { info, err := os.Stat(path); return err == nil && info.Size() > 0 })
	}
	done.Store(true)
	wg.Wait()
	l.Reopen() // the same file
	change(t, l, "end")
	stop()
	files = append(files, path)
	isWhole(t, l.Head(), files...)
	if found, err := Files(path); err != nil || !slices.Equal(found, files) {
		t.Errorf("%v, %v", found, err)
	}
	var all []byte
	for _, f := range files[1:] {
		content := read(t, f)
		if first, _, _ := bytes.Cut(content, []byte("\n")); !bytes.Contains(first, []byte(`"event":"audit_log_opened"`)) {
			t.Errorf("%s begins with %s", f, first)
		}
	}
	for _, f := range files {
		all = append(all, read(t, f)...)
	}
	names := map[string]bool{}
	for _, name := range methods(t, all) {
		names[name] = true
	}
	for caller, n := range made {
		for i := range n {
			if !names[fmt.Sprintf("%d-%d", caller, i)] {
				t.Errorf("change %d of caller %d is missing", i, caller)
			}
		}
	}
}

func TestReopenKeepsTheFileIfThereIsNoOther(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	must(t, os.Mkdir(dir, 0o755))
	path := filepath.Join(dir, "audit.log")
	l, stop := open(t, Config{Path: path})
	change(t, l, "first")
	must(t, os.Rename(dir, dir+".away"))
	l.Reopen()
	for i := range 10 {
		change(t, l, fmt.Sprint(i))
	}
	stop()
	isWhole(t, l.Head(), filepath.Join(dir+".away", "audit.log"))
}

func TestAFullDiskIsLeftByReopening(t *testing.T) {
	dir := tmpfs(t, "1m")
	path, elsewhere := filepath.Join(dir, "audit.log"), logFile(t)
	l, stop := open(t, Config{Path: path})
	change(t, l, "first")
	fill(t, dir)
	eventually(t, "the disk is full", func() bool { return tryChange(l, "more") != nil })
	must(t, os.Rename(path, path+".1"))
	must(t, os.Symlink(elsewhere, path))
	l.Reopen()
	recovers(t, l)
	stop()
	isWhole(t, l.Head(), path+".1", elsewhere)
}

func TestPathsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	defer func() { _ = listener.Close() }()
	taken := filepath.Join(dir, "taken")
	open(t, Config{Path: taken})
	for path, want := range map[string]string{
		dir: "is a directory", socket: "opening the audit log", filepath.Join(dir, "none", "log"): "no such file",
		taken: "written by another process",
	} {
		if _, err := Open(Config{Path: path, Replica: "r1", Log: nullLog()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestOnlyTheOwnerWrites(t *testing.T) {
	for _, perm := range []os.FileMode{0o666, 0o644, 0o600, 0} {
		path, want := logFile(t), perm&0o640
		if perm == 0 {
			want = 0o640 // there is none
		} else {
			must(t, os.WriteFile(path, nil, 0o600))
			must(t, os.Chmod(path, perm))
		}
		open(t, Config{Path: path})
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("of %s became %s", perm, info.Mode().Perm())
		}
	}
}

func TestLinesAreShort(t *testing.T) {
	for _, value := range []string{strings.Repeat("x", 5000), strings.Repeat("\x00", 5000), strings.Repeat("ä<", 5000)} {
		e := &Event{
			Time: time.Now(), Kind: Result, TraceID: value, Principal: value, Credential: value, Peer: value, Method: value, RequestID: value,
			Args: value, Code: value, Error: value, Reason: value, Operation: value, Duration: 1 << 62,
		}
		line := auditlog.AppendLink(nil, 1<<63, auditlog.Hash{})
		line = e.append(line, "r1")
		if len(line) > 4096 {
			t.Errorf("%d bytes", len(line))
		}
		if _, err := auditlog.Parse(line[:len(line)-1]); err != nil {
			t.Errorf("%v: %s", err, line)
		}
	}
}
