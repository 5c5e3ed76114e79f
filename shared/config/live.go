package config

import (
	"os"
	"sync"
)

func lookup(name string) string { return os.Getenv(name) }

// Live is the configuration that a daemon runs with, for reading it anew. It is
// safe for concurrent use.
type Live struct {
	line *Line

	mu      sync.Mutex
	running *Table
}

// Live keeps the table that the daemon has started with.
func (l *Line) Live(running *Table) *Live { return &Live{line: l, running: running} }

// Reload reads the configuration anew into a table of its own, made with what
// judges it, and gives it to apply with all that differs from what is in force.
// An error, of apply as well, changes nothing that is in force; otherwise the
// changes of live keys are in force now, and all others wait for a restart, of
// which the next Reload tells again.
func (l *Live) Reload(next *Table, judge func() error, apply func() error) ([]Change, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.line.Fill(next, judge); err != nil {
		return nil, err
	}
	changes := l.running.Changes(next)
	if err := apply(); err != nil {
		return nil, err
	}
	l.running.Adopt(next)
	return changes, nil
}
