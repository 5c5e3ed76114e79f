package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// progress shows the way of one operation.
type progress interface {
	// show shows its state.
	show(op *debvisorv1.Operation)
	// note tells something between.
	note(format string, args ...any)
	// close ends it.
	close()
}

// newProgress makes a bar on a terminal, and lines elsewhere.
func newProgress(f *os.File) progress {
	if isTerminal(f) {
		return &bar{out: f, width: func() int { return width(f) }}
	}
	return &lines{out: f}
}

// progressText writes what is known of how far a step is.
func progressText(p *debvisorv1.OperationProgress) string {
	if p == nil || (p.GetPercent() <= 0 && p.GetBytesTotal() == 0) {
		return ""
	}
	parts := []string{percent(p.GetPercent())}
	if p.GetBytesTotal() > 0 {
		parts = append(parts, size(p.GetBytesDone())+" of "+size(p.GetBytesTotal()))
	}
	if p.GetBytesPerSecond() > 0 {
		parts = append(parts, size(p.GetBytesPerSecond())+"/s")
	}
	if p.GetDirtyBytesPerSecond() > 0 {
		parts = append(parts, size(p.GetDirtyBytesPerSecond())+"/s dirtied")
	}
	if p.GetEtaMs() > 0 {
		parts = append(parts, millis(p.GetEtaMs())+" left")
	}
	return strings.Join(parts, ", ")
}

// heading tells an operation and its state in short.
func heading(op *debvisorv1.Operation) string {
	text := orWord(subject(op), op.GetId()) + ": " + stateWord(op.GetState())
	if n := max(op.GetMigration().GetAttempt(), op.GetReplication().GetAttempt()); n > 1 {
		text += fmt.Sprintf(", attempt %d", n)
	}
	if op.GetCancelRequested() && !ended(op) {
		text += ", to be cancelled"
	}
	return text
}

// The least news worth a line of its own.
const (
	linePercent = 10
	lineSeconds = 10
)

// lines shows an operation's way in plain lines: one for each step, and one
// now and then in a long step.
type lines struct {
	out     io.Writer
	begun   bool
	heading string
	step    string
	percent float64
	at      time.Time
}

func (l *lines) show(op *debvisorv1.Operation) {
	if !l.begun {
		l.begun = true
		say(l.out, "operation %s\n", clean(op.GetId()))
	}
	head, p := heading(op), op.GetProgress()
	same := head == l.heading && op.GetStep() == l.step
	if same && p.GetPercent() < l.percent+linePercent && time.Since(l.at) < lineSeconds*time.Second {
		return
	}
	l.heading, l.step, l.percent, l.at = head, op.GetStep(), p.GetPercent(), time.Now()
	text := head
	if !ended(op) {
		for _, more := range []string{op.GetStep(), progressText(p), movesText(op)} {
			if more != "" {
				text += ", " + more
			}
		}
	}
	say(l.out, "%s\n", clean(text))
}

func (l *lines) note(format string, args ...any) {
	say(l.out, "%s\n", clean(fmt.Sprintf(format, args...)))
}

func (l *lines) close() {}

// bar shows an operation's way on one line of a terminal, drawn anew.
type bar struct {
	out   io.Writer
	width func() int
	begun bool
	last  string
}

// barCells is the length of the bar itself.
const barCells = 20

// clearLine goes to the line's begin and empties it.
const clearLine = "\r\x1b[K"

func (b *bar) show(op *debvisorv1.Operation) {
	if !b.begun {
		b.begun = true
		say(b.out, "operation %s\n", clean(op.GetId()))
	}
	text := heading(op)
	if !ended(op) {
		p := op.GetProgress()
		done := int(min(max(p.GetPercent(), 0), 100) * barCells / 100)
		text += " [" + strings.Repeat("#", done) + strings.Repeat(".", barCells-done) + "]"
		for _, more := range []string{progressText(p), movesText(op), op.GetStep()} {
			if more != "" {
				text += " " + more
			}
		}
	}
	b.last = cut(clean(text), b.width()-1)
	say(b.out, "%s%s", clearLine, b.last)
}

func (b *bar) note(format string, args ...any) {
	say(b.out, "%s%s\n%s", clearLine, clean(fmt.Sprintf(format, args...)), b.last)
}

func (b *bar) close() {
	if b.last != "" {
		say(b.out, "\n")
	}
}

// cut shortens a text to so many columns.
func cut(text string, columns int) string {
	if utf8.RuneCountInString(text) <= columns {
		return text
	}
	return string([]rune(text)[:max(columns, 0)])
}
