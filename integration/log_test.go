package integration

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// logMark is a place in a log: what follows it is what a test is about.
type logMark struct {
	c    *cluster
	path string
	from int
}

// mark marks the end of a log as it is now.
func (c *cluster) mark(path string) logMark {
	c.t.Helper()
	m := logMark{c: c, path: path}
	m.from = len(m.read())
	return m
}

// log is a log from its beginning.
func (c *cluster) log(path string) logMark { return logMark{c: c, path: path} }

func (m logMark) read() string {
	m.c.t.Helper()
	raw, err := os.ReadFile(m.path)
	if err != nil && !os.IsNotExist(err) {
		m.c.t.Fatal(err)
	}
	return string(raw)
}

// lines are the lines since the mark that hold all of the words, in any case of letters.
func (m logMark) lines(words ...string) []string {
	var found []string
	for line := range strings.Lines(m.read()[m.from:]) {
		if holds(line, words...) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

func holds(text string, words ...string) bool {
	text = strings.ToLower(text)
	for _, w := range words {
		if !strings.Contains(text, strings.ToLower(w)) {
			return false
		}
	}
	return true
}

// says waits for a line that holds all of the words.
func (m logMark) says(words ...string) {
	m.c.t.Helper()
	m.c.eventually(20*time.Second, fmt.Sprintf("%s says %q", m.path, words), func() error {
		if len(m.lines(words...)) == 0 {
			return fmt.Errorf("it says %q", tail(m.read()[m.from:]))
		}
		return nil
	})
}

// tail is the end of a text.
func tail(s string) string { return s[max(0, len(s)-1500):] }
