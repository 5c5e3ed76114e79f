package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// refuses checks that changes are refused within a second, that health says so,
// and that reads go on.
func refuses(t *testing.T, l *Log) {
	t.Helper()
	for range 3 {
		within(t, "refusing a change", func() {
			if err := tryChange(l, "refused"); !errdefs.Is(err, errdefs.Unavailable) || errdefs.Of(err).Code != "AUDIT_UNAVAILABLE" {
				t.Errorf("a change: %v", err)
			}
		})
	}
	if l.Healthy() == nil {
		t.Error("health is good")
	}
	within(t, "1000 reads", func() {
		for range 1000 {
			if !l.Add(&Event{Time: time.Now(), Kind: Result}) {
				t.Fatal("there is no room for a read's line")
			}
		}
	})
}

// recovers checks that all is well again.
func recovers(t *testing.T, l *Log) {
	t.Helper()
	eventually(t, "changes are made again", func() bool { return tryChange(l, "again") == nil })
	if err := l.Healthy(); err != nil {
		t.Errorf("health: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "1m")
	path := filepath.Join(dir, "audit.log")
	l, stop := open(t, Config{Path: path})
	change(t, l, "first")
	free := fill(t, dir)
	// What is left of the last page takes some more.
	eventually(t, "the disk is full", func() bool { return tryChange(l, "more") != nil })
	refuses(t, l)
	before := read(t, path)
	if len(before) > 0 && before[len(before)-1] != '\n' {
		t.Errorf("the file ends within a line: %q", before[max(0, len(before)-100):])
	}
	free()
	recovers(t, l)
	stop()
	isWhole(t, l.Head(), path)
	names := methods(t, read(t, path))
	if count := strings.Count(strings.Join(names, " "), "refused"); count != 3 || names[0] != "first" {
		t.Errorf("%d of 3 refused changes are in the log", count)
	}
}

func TestDevFull(t *testing.T) {
	l, _ := open(t, Config{Path: "/dev/full"})
	refuses(t, l)
}

func TestAPipeThatNobodyReads(t *testing.T) {
	path := logFile(t)
	must(t, unix.Mkfifo(path, 0o640))
	l, stop := open(t, Config{Path: path})
	refuses(t, l)
	for range 1000 { // more than the pipe takes
		l.Add(&Event{Kind: Result, Reason: strings.Repeat("x", maxReason)})
	}
	refuses(t, l)
	// Its reader comes.
	reader, err := os.OpenFile(path, os.O_RDONLY, 0)
	must(t, err)
	var mu sync.Mutex
	var got []byte
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := reader.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			got = append(got, b[:n]...)
			mu.Unlock()
		}
	}()
	recovers(t, l)
	stop()
	eventually(t, "all is read", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Contains(got, []byte("/s/again")) && got[len(got)-1] == '\n'
	})
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, os.WriteFile(copied, got, 0o600))
	isWhole(t, l.Head(), copied)
	must(t, reader.Close())
}

func TestAPipeWhoseReaderIsSlowEndsInTime(t *testing.T) {
	path := logFile(t)
	must(t, unix.Mkfifo(path, 0o640))
	l, stop := open(t, Config{Path: path})
	l.Add(&Event{Kind: Call})
	began := time.Now()
	stop()
	if took := time.Since(began); took > endTimeout+time.Second {
		t.Errorf("the end took %s", took)
	}
}

// TestInputOutputError fails writes, syncs and cuts in turn, and all of them.
func TestInputOutputError(t *testing.T) {
	for name, set := range map[string]func(*fakeDisk, error){
		"write":             func(d *fakeDisk, err error) { d.fail = err },
		"torn write":        func(d *fakeDisk, err error) { d.fail, d.torn = err, true },
		"sync":              func(d *fakeDisk, err error) { d.failSync = err },
		"torn write, mend":  func(d *fakeDisk, err error) { d.fail, d.failMend, d.torn = err, err, true },
		"sync, write, mend": func(d *fakeDisk, err error) { d.failSync, d.fail, d.failMend, d.torn = err, err, err, true },
	} {
		t.Run(name, func(t *testing.T) {
			d := &fakeDisk{}
			l := logOn(d)
			stop := run(t, l)
			change(t, l, "first")
			d.set(func() { set(d, unix.EIO) })
			refuses(t, l)
			d.set(func() { set(d, nil) })
			recovers(t, l)
			stop()
			path := logFile(t)
			must(t, os.WriteFile(path, d.written.Bytes(), 0o600))
			isWhole(t, l.Head(), path)
			if names := methods(t, d.written.Bytes()); names[0] != "first" || !slices.Contains(names, "refused") || !slices.Contains(names, "again") {
				t.Errorf("%v", names)
			}
		})
	}
}

func TestSyslogTakesWhatTheDiskDoesNot(t *testing.T) {
	dir := tmpfs(t, "1m")
	path := filepath.Join(dir, "audit.log")
	s := startSyslog(t)
	logger, logged := loggedTo()
	l, stop := open(t, Config{Path: path, Syslog: s.path, Log: logger})
	change(t, l, "first")
	if len(s.lines()) > 0 {
		t.Errorf("syslog is sent lines though the disk takes them: %s", s.lines())
	}
	free := fill(t, dir)
	eventually(t, "syslog is turned to", func() bool { change(t, l, "more"); return len(s.lines()) > 0 })
	for i := range 20 {
		within(t, "a change", func() { change(t, l, fmt.Sprint("by-syslog-", i)) })
	}
	if err := l.Healthy(); err != nil {
		t.Errorf("health: %v", err)
	}
	if !strings.Contains(logged(), "syslog has its lines until it can") {
		t.Errorf("the log does not say so: %s", logged())
	}
	eventually(t, "syslog has them all", func() bool { return slices.Contains(methods(t, s.lines()), "by-syslog-19") })
	got := s.lines()
	for line := range bytes.Lines(got) { // its lines are the log's own
		if len(line) < 100 || !bytes.HasPrefix(line, []byte(`{"seq":`)) {
			t.Errorf("syslog got %q", line)
		}
	}
	// Once syslog is gone too, changes are refused.
	must(t, s.conn.Close())
	refuses(t, l)
	free()
	recovers(t, l)
	stop()
	isWhole(t, l.Head(), path)
	content := read(t, path)
	for line := range bytes.Lines(got) {
		if !bytes.Contains(content, line) {
			t.Errorf("only syslog has %s", line)
		}
	}
}

func TestSyslogTakesWhatAHangingDiskDoesNot(t *testing.T) {
	s := startSyslog(t)
	d := &fakeDisk{stuck: make(chan struct{})}
	l := newLog(Config{Replica: "r1", Log: nullLog()}, newDisk(d, nil), syslog(s.path))
	stop := run(t, l)
	for i := range 3 {
		within(t, "a change", func() { change(t, l, fmt.Sprint(i)) })
	}
	eventually(t, "syslog has all three", func() bool { return len(methods(t, s.lines())) == 3 })
	if err := l.Healthy(); err != nil {
		t.Errorf("health: %v", err)
	}
	close(d.stuck)
	d.set(func() { d.stuck = nil })
	eventually(t, "the disk has them too", func() bool { return l.Head().Sequence == 3 })
	stop()
	path := logFile(t)
	must(t, os.WriteFile(path, d.written.Bytes(), 0o600))
	isWhole(t, l.Head(), path)
}

func TestEndWithAHangingDisk(t *testing.T) {
	d := &fakeDisk{stuck: make(chan struct{})}
	defer close(d.stuck)
	l := logOn(d)
	ended := make(chan error, 1)
	ctx, cancel := cancellable()
	go func() { ended <- l.Run(ctx) }()
	l.Add(&Event{Kind: Call})
	cancel()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "1 lines of the audit log were not written") {
			t.Errorf("the end: %v", err)
		}
	case <-time.After(endTimeout + 3*time.Second):
		t.Error("it does not end")
	}
}

// TestMoreThanMemoryHoldsThoughSyslogHasIt has a disk that fails for long: what
// syslog has is still to come into the file.
func TestMoreThanMemoryHoldsThoughSyslogHasIt(t *testing.T) {
	s := startSyslog(t)
	d := &fakeDisk{fail: unix.ENOSPC}
	l := newLog(Config{Replica: "r1", Log: nullLog()}, newDisk(d, nil), syslog(s.path))
	stop := run(t, l)
	change(t, l, "first")
	event := &Event{Time: time.Now(), Kind: Result, Reason: strings.Repeat("x", maxReason)}
	for l.Add(event) {
	}
	eventually(t, "a change is refused", func() bool { return errors.Is(tryChange(l, "no-room"), ErrFull) })
	if l.Healthy() == nil {
		t.Error("health is good though changes are refused")
	}
	d.set(func() { d.fail = nil })
	recovers(t, l)
	stop()
}

func TestMoreThanMemoryHolds(t *testing.T) {
	d := &fakeDisk{fail: errors.New("no")}
	l := logOn(d)
	stop := run(t, l)
	event := &Event{Time: time.Now(), Kind: Result, Reason: strings.Repeat("x", maxReason)}
	lost := 0
	for lost < 10 {
		if !l.Add(event) {
			lost++
		}
	}
	if err := tryChange(l, "no-room"); !errors.Is(err, ErrFull) {
		t.Errorf("a change without room: %v", err)
	}
	d.set(func() { d.fail = nil })
	recovers(t, l)
	stop()
	path := logFile(t)
	must(t, os.WriteFile(path, d.written.Bytes(), 0o600))
	r := check(t, l.Head(), path)
	if r.Findings != 1 || !strings.Contains(r.Finding, " events between") {
		t.Errorf("%d findings, the first: %s", r.Findings, r.Finding)
	}
	if names := methods(t, d.written.Bytes()); slices.Contains(names, "no-room") {
		t.Error("the lost change is there")
	}
}
