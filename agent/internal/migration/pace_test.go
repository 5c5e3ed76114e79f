package migration

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func TestShare(t *testing.T) {
	for _, c := range []struct {
		own, node uint64
		leaving   int
		want      uint64
	}{
		{0, 0, 3, 0},
		{10, 0, 3, 10},
		{0, 100, 1, 100},
		{0, 100, 4, 25},
		{10, 100, 4, 10},
		{80, 100, 2, 50},
		{0, 100, 0, 100},
		{0, 2, 5, 1}, // 0 would be no limit at all
	} {
		if got := share(c.own, c.node, c.leaving); got != c.want {
			t.Errorf("own %d, node %d, %d leaving: %d, want %d", c.own, c.node, c.leaving, got, c.want)
		}
	}
}

func TestLeavingTellsOfEachChange(t *testing.T) {
	l := leaving{bells: map[chan struct{}]struct{}{}}
	rang := func(bell chan struct{}) bool {
		select {
		case <-bell:
			return true
		default:
			return false
		}
	}
	first, second := make(chan struct{}, 1), make(chan struct{}, 1)
	leaveFirst := l.join(first)
	if !rang(first) || l.count() != 1 {
		t.Error("the first does not know that it is there")
	}
	leaveSecond := l.join(second)
	if !rang(first) || !rang(second) || l.count() != 2 {
		t.Error("nobody was told of the second")
	}
	leaveFirst()
	if !rang(second) || rang(first) || l.count() != 1 {
		t.Error("the second was not told that it is alone")
	}
	leaveSecond()
}

func TestStall(t *testing.T) {
	var s stall
	at := time.Unix(1000, 0)
	for _, c := range []struct {
		after time.Duration
		done  uint64
		want  time.Duration
	}{
		{0, 0, 0},
		{5 * time.Second, 0, 5 * time.Second}, // before the first byte as well
		{6 * time.Second, 10, 0},
		{7 * time.Second, 10, time.Second},
		{9 * time.Second, 10, 3 * time.Second},
		{10 * time.Second, 11, 0},
		{12 * time.Second, 5, 0}, // begun anew: that is something
	} {
		if got := s.look(c.done, at.Add(c.after)); got != c.want {
			t.Errorf("%d bytes after %s: stalled %s, want %s", c.done, c.after, got, c.want)
		}
	}
}

func TestRemedies(t *testing.T) {
	const sec = time.Second
	cancels := &agentv1.MigrateSend{DeadlineMs: 10_000, StallMs: 5_000}
	pauses := &agentv1.MigrateSend{DeadlineMs: 10_000, StallMs: 5_000, PauseAtDeadline: true}
	offline := &agentv1.MigrateSend{DeadlineMs: 10_000, PauseAtDeadline: true, Offline: true}
	for name, c := range map[string]struct {
		spec             *agentv1.MigrateSend
		elapsed, stalled time.Duration
		still            bool
		want             remedy
	}{
		"in time":                      {cancels, 9 * sec, 0, false, carryOn},
		"late":                         {cancels, 10 * sec, 0, false, endLate},
		"late, may be paused":          {pauses, 10 * sec, 0, false, pauseGuest},
		"paused already":               {pauses, 11 * sec, 0, true, carryOn},
		"late, but it switches over":   {cancels, 11 * sec, 0, true, carryOn},
		"stalled":                      {cancels, 9 * sec, 5 * sec, false, endStalled},
		"stalled while paused":         {pauses, 20 * sec, 5 * sec, true, endStalled},
		"no limits":                    {&agentv1.MigrateSend{}, 900 * sec, 900 * sec, false, carryOn},
		"off already, none to pause":   {offline, 10 * sec, 0, false, endLate},
		"late and stalled: the latter": {cancels, 11 * sec, 6 * sec, false, endStalled},
	} {
		if got := remedyFor(c.spec, c.elapsed, c.stalled, c.still); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestHeld: a guest that stands still was paused by somebody only where more is
// left than a switch-over copies.
func TestHeld(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		job      hypervisor.Job
		downtime time.Duration
		want     bool
	}{
		"disks are copied":                     {hypervisor.Job{Total: mib, Remaining: mib}, 0, true},
		"half of memory is left":               {hypervisor.Job{MemoryDone: 60 * mib, MemoryRemaining: 60 * mib, PerSecond: 2 * mib}, 0, true},
		"what a switch-over copies":            {hypervisor.Job{MemoryDone: 60 * mib, MemoryRemaining: mib / 2, PerSecond: 2 * mib}, 0, false},
		"a fast link leaves more":              {hypervisor.Job{MemoryDone: 9000 * mib, MemoryRemaining: 300 * mib, PerSecond: 1000 * mib}, 0, false},
		"a longer switch-over leaves more":     {hypervisor.Job{MemoryDone: 60 * mib, MemoryRemaining: 7 * mib, PerSecond: 2 * mib}, time.Second, false},
		"its speed is not known":               {hypervisor.Job{MemoryDone: mib, MemoryRemaining: 100 * mib}, 0, false},
		"all is copied, libvirt still at work": {hypervisor.Job{MemoryDone: 60 * mib, PerSecond: 2 * mib}, 0, false},
	} {
		if got := held(&c.job, c.downtime); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
