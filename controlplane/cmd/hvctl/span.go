package main

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// span is a flag's time with days before all else, such as 90d or 1d12h30m.
type span time.Duration

// String writes it as duration does, without fractions.
func (s *span) String() string {
	if *s == 0 {
		return "0s"
	}
	days, rest := time.Duration(*s)/(24*time.Hour), time.Duration(*s)%(24*time.Hour)
	text := ""
	if days > 0 {
		text = strconv.FormatInt(int64(days), 10) + "d"
	}
	if rest > 0 {
		text += rest.String()
	}
	return text
}

// Set reads it: whole seconds, from 1 s.
func (s *span) Set(text string) error {
	days, rest, has := strings.Cut(text, "d")
	var d time.Duration
	if has {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return notASpan(text)
		}
		d = time.Duration(n) * 24 * time.Hour
	} else {
		rest = text
	}
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 {
			return notASpan(text)
		}
		d += more
	}
	if d < time.Second || d%time.Second != 0 || d/time.Second > math.MaxUint32 {
		return notASpan(text)
	}
	*s = span(d)
	return nil
}

// Type is what the help calls the value.
func (*span) Type() string { return "time" }

// seconds gives it in the API's unit.
func (s *span) seconds() uint32 { return uint32(time.Duration(*s) / time.Second) }

func notASpan(text string) error {
	return errdefs.New(errdefs.InvalidArgument, codeUsage, "%q is not accepted; expected whole seconds, minutes, hours or days, such as 90d, 12h or 1d12h", text)
}
