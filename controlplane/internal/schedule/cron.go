package schedule

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// cronFields are cron's five fields as sets of bits, in a zone.
type cronFields struct {
	*cron.SpecSchedule
	zone *time.Location
	// everyHour: no hour of the day is left out.
	everyHour bool
}

const (
	secondsADay = 24 * 60 * 60
	everyHour   = 1<<24 - 1
	// farthest is how many days ahead the next time may be: in 2096 it is eight
	// years to the next 29 February.
	farthest = 9 * 366
)

// field is what a field may look like. The library reads more, such as "*-5"
// and "1,,2", and not as it looks.
var field = regexp.MustCompile(func() string { //nolint:gochecknoglobals // a pattern, never changed
	const item = `(\*|\?|[0-9A-Za-z]+(-[0-9A-Za-z]+)?)(/[0-9]+)?`
	return `^` + item + `(,` + item + `)*$`
}())

func parseCron(expr string, zone *time.Location) (*cronFields, error) {
	for _, f := range strings.Fields(expr) {
		if !field.MatchString(f) {
			return nil, fmt.Errorf("what is %q?", f)
		}
	}
	parsed, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(expr)
	if err != nil {
		return nil, err
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("it was read as %T", parsed)
	}
	c := &cronFields{SpecSchedule: spec, zone: zone, everyHour: spec.Hour&everyHour == everyHour}
	if c.next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("no such day ever comes")
	}
	return c, nil
}

// next is the first time after one; zero: there is none in years.
func (c *cronFields) next(after time.Time) time.Time {
	today := dayOf(after.In(c.zone))
	found := int64(never)
	for day := today - 1; day <= today+farthest; day++ {
		done := found != never
		found = c.first(day, after, found)
		// A clock that is set back over midnight mixes the times of two days.
		if done {
			break
		}
	}
	if found == never {
		return time.Time{}
	}
	return time.Unix(found, 0).UTC()
}

// never is later than any time.
const never = 1<<63 - 1

// first is the first time of a day of the calendar that is after one and before
// another; else that other.
func (c *cronFields) first(day int64, after time.Time, before int64) int64 {
	c.walls(day, func(spans []span, wall int64) bool {
		lowest, highest := spans[0].offset, spans[0].offset
		for _, s := range spans {
			lowest, highest = min(lowest, s.offset), max(highest, s.offset)
		}
		switch {
		case wall-lowest <= after.Unix():
			return true // long past
		case wall-highest >= before:
			return false // from here on all are later
		}
		for _, at := range c.moments(spans, wall) {
			if at > after.Unix() && at < before {
				before = at
			}
		}
		return true
	})
	return before
}

// latest is the last time in (last, now], and how many are in it.
func (c *cronFields) latest(last, now time.Time) (latest time.Time, n int) {
	for day := dayOf(last.In(c.zone)) - 1; day <= dayOf(now.In(c.zone))+1; day++ {
		for _, at := range c.on(day) {
			if !at.After(last) || at.After(now) || at.Equal(latest) {
				continue
			}
			n++
			if at.After(latest) {
				latest = at
			}
		}
	}
	return latest, n
}

// dayOf is the number of a time's day since 1970-01-01, as its zone's calendar
// has it.
func dayOf(t time.Time) int64 {
	y, m, d := t.Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix() / secondsADay
}

// on are the times of one day of the calendar, in UTC, in order.
func (c *cronFields) on(day int64) []time.Time {
	var times []time.Time
	c.walls(day, func(spans []span, wall int64) bool {
		for _, at := range c.moments(spans, wall) {
			times = append(times, time.Unix(at, 0).UTC())
		}
		return true
	})
	slices.SortFunc(times, time.Time.Compare)
	return slices.CompactFunc(times, time.Time.Equal)
}

// walls gives what the clock shows, as Unix seconds in UTC, when something is
// due on a day of the calendar, until it is told to stop.
func (c *cronFields) walls(day int64, more func(spans []span, wall int64) bool) {
	if !c.matches(time.Unix(day*secondsADay, 0).UTC()) {
		return
	}
	spans := c.spans(day)
	for hour := range 24 {
		for minute := range 60 {
			if c.Hour>>hour&1 == 1 && c.Minute>>minute&1 == 1 && !more(spans, day*secondsADay+int64(hour*60+minute)*60) {
				return
			}
		}
	}
}

// matches tells whether the fields of days name a date, as crontab(5) has it.
func (c *cronFields) matches(date time.Time) bool {
	const star = 1 << 63 // the library's mark of a field that is "*"
	dom, dow := c.Dom>>date.Day()&1 == 1, c.Dow>>int(date.Weekday())&1 == 1
	switch {
	case c.Month>>int(date.Month())&1 == 0:
		return false
	case c.Dom&star != 0 || c.Dow&star != 0:
		return dom && dow
	}
	return dom || dow
}

// span is a stretch of time, in Unix seconds, in which a zone's clock is not
// set: it shows Unix time plus offset.
type span struct{ begin, end, offset int64 }

// spans are those in which a day of the calendar may lie: no zone is farther
// from UTC than a day.
func (c *cronFields) spans(day int64) []span {
	var spans []span
	for at := (day - 1) * secondsADay; at < (day+2)*secondsADay; {
		t := time.Unix(at, 0).In(c.zone)
		_, offset := t.Zone()
		s := span{begin: at, end: (day + 2) * secondsADay, offset: int64(offset)}
		if _, end := t.ZoneBounds(); !end.IsZero() {
			s.end = min(s.end, end.Unix())
		}
		spans = append(spans, s)
		at = s.end
	}
	return spans
}

// moments are the Unix times at which a clock shows what it would show at wall
// in UTC and something is due: see the package's comment.
func (c *cronFields) moments(spans []span, wall int64) []int64 {
	var at []int64
	for _, s := range spans {
		if t := wall - s.offset; t >= s.begin && t < s.end {
			at = append(at, t)
		}
	}
	if c.everyHour {
		return at
	}
	if len(at) > 0 {
		return at[:1]
	}
	for i := 1; i < len(spans); i++ {
		// It is past the end of the one, and before the beginning of the other.
		if set := spans[i].begin; wall-spans[i-1].offset >= set && wall-spans[i].offset < set {
			return []int64{set}
		}
	}
	return nil
}
