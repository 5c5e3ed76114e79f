package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// consoleEvery is how often consoles are looked at: the resolution of Line.At.
const consoleEvery = 5 * time.Millisecond

// A Line is one value of the counter as the guest said it on its console.
type Line struct {
	At      time.Time     // when the host saw it
	Counter uint64        // the value, durable on the disk before it was said
	Uptime  time.Duration // of the guest, which stands still while the guest is paused
}

// console follows a guest's console file.
type console struct {
	mu    sync.Mutex
	lines []Line
	text  []byte // everything said
}

// watchConsole makes the console's file and follows it until the lab is closed.
func (l *Lab) watchConsole(path string) (*console, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	c := &console{}
	l.group.Go(func() {
		defer func() { _ = f.Close() }()
		tick := time.NewTicker(consoleEvery)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case now := <-tick.C:
				c.read(f, now)
			}
		}
	})
	return c, nil
}

// read takes in what the file has grown by. Only whole lines become Lines.
func (c *console) read(f io.Reader, now time.Time) {
	buf := make([]byte, 16<<10)
	n, err := f.Read(buf)
	if n == 0 || (err != nil && !errors.Is(err, io.EOF)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	begin := bytes.LastIndexByte(c.text, '\n') + 1
	c.text = append(c.text, buf[:n]...)
	for line := range bytes.Lines(c.text[begin:]) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			return
		}
		l := Line{At: now}
		if _, err := fmt.Sscanf(string(line), "tick n=%d up=%d", &l.Counter, &l.Uptime); err == nil {
			c.lines = append(c.lines, l)
		}
	}
}

// Console returns what the guest said so far, oldest first.
func (g *Guest) Console() []Line {
	g.console.mu.Lock()
	defer g.console.mu.Unlock()
	return slices.Clone(g.console.lines)
}

// ConsoleText returns the console as it is.
func (g *Guest) ConsoleText() string {
	g.console.mu.Lock()
	defer g.console.mu.Unlock()
	return string(g.console.text)
}

// trouble is what a console shows when the guest's memory is not what it was: tick's own word, and the kernel's.
var trouble = regexp.MustCompile(`(?m)^.*(tick (lost|failed)|BUG:|Oops|Kernel panic|general protection|segfault|stack-protector|double fault).*$`)

// Trouble is the first line by which the guest said that its memory or its disk is not what it was, or its kernel that it broke
// down, past the first bytes of ConsoleText; "" if there is none.
func (g *Guest) Trouble(past int) string {
	return strings.TrimSpace(trouble.FindString(g.ConsoleText()[past:]))
}

// LongestSilence returns the longest time between two lines of the console since a moment, the time since the last line until
// now included. It is a little longer than the guest stood still: by up to its period.
func (g *Guest) LongestSilence(since time.Time) time.Duration {
	last, longest := since, time.Duration(0)
	for _, l := range g.Console() {
		if l.At.Before(since) {
			continue
		}
		longest, last = max(longest, l.At.Sub(last)), l.At
	}
	return max(longest, time.Since(last))
}
