package main

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// clean makes text from elsewhere safe for a terminal: no control characters
// but line feeds, no marks that turn the direction of text.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// firstLine is a text's first line.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return clean(line)
}

// size writes bytes with a binary unit and three figures at most.
func size(bytes uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, unit := float64(bytes), 0
	for value >= 1000 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 || value >= 99.95 || value == math.Trunc(value) {
		return fmt.Sprintf("%.0f %s", value, units[unit])
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// duration writes a span with two units at most: 84ms, 12.3s, 2m05s, 3h12m, 2d04h.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + duration(-d)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// millis writes a span given in milliseconds.
func millis(ms uint64) string {
	return duration(time.Duration(min(ms, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond)
}

// ago writes how long ago a moment was.
func ago(t *debvisorv1.Timestamp) string {
	if t == nil {
		return ""
	}
	since := max(0, time.Since(moments(t)))
	if since < time.Minute {
		return fmt.Sprintf("%ds ago", int(since.Seconds()))
	}
	return duration(since) + " ago"
}

// moments turns the API's timestamp into Go's.
func moments(t *debvisorv1.Timestamp) time.Time {
	return time.Unix(t.GetSeconds(), int64(t.GetNanos()))
}

// moment writes a moment in UTC.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// stamp writes a timestamp in UTC; empty for none.
func stamp(t *debvisorv1.Timestamp) string {
	if t == nil {
		return ""
	}
	return moment(moments(t))
}

// percent writes a percentage (0-100) without a fraction.
func percent(p float64) string { return fmt.Sprintf("%.0f%%", p) }

// yesNo writes a truth.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// enumWord writes an enum's value without its type's prefix.
func enumWord(value fmt.Stringer, prefix string) string {
	word := strings.TrimPrefix(value.String(), prefix)
	if word == "UNSPECIFIED" || word == "UNKNOWN" {
		return "unknown"
	}
	return word
}

// stateWord writes an operation's state.
func stateWord(s debvisorv1.OperationState) string { return enumWord(s, "OPERATION_STATE_") }

// orWord is a word, or another where it is empty.
func orWord(word, otherwise string) string {
	if word == "" {
		return otherwise
	}
	return word
}

// orNone joins names, or says that there are none.
func orNone(names []string) string {
	return orWord(strings.Join(names, ", "), "none")
}
