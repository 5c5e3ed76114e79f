package audit

import (
	"strings"
	"testing"
	"time"
)

func TestStatsOfALogThatKeepsUp(t *testing.T) {
	l, _ := open(t, Config{Path: logFile(t)})
	change(t, l, "one")
	eventually(t, "all is on disk", func() bool {
		s := l.Stats(time.Now())
		return s.Lag == 0 && s.Waiting == 0
	})
	s := l.Stats(time.Now())
	if s.Lines < 1 || s.Lost != 0 || s.Failures != 0 || s.Degraded || s.Refusing {
		t.Errorf("stats %+v", s)
	}
}

func TestStatsOfALogThatCannotBeWritten(t *testing.T) {
	l, _ := open(t, Config{Path: "/dev/full"})
	began := time.Now()
	if tryChange(l, "refused") == nil {
		t.Fatal("a change was made")
	}
	eventually(t, "changes are refused", func() bool { return l.Stats(time.Now()).Refusing })
	s := l.Stats(began.Add(time.Minute))
	if s.Lag < 59*time.Second || s.Lag > 61*time.Second || s.Waiting == 0 || s.Failures == 0 || s.Lost != 0 {
		t.Errorf("stats %+v", s)
	}
	// Until memory is full: what comes then is lost, and counted.
	line := &Event{Time: time.Now(), Kind: Result, Reason: strings.Repeat("x", maxReason)}
	for l.Add(line) {
	}
	if s := l.Stats(time.Now()); s.Lost == 0 || s.Waiting < maxBacklog {
		t.Errorf("stats %+v", s)
	}
}
