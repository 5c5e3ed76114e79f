package schedule

import (
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/schedule/zone"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// shortest and longest are the bounds of "every".
	shortest = time.Minute
	longest  = 366 * 24 * time.Hour

	accepted = `"every 15m" (whole seconds with the units s, m, h or d, from 1m to 366d) or five cron fields, ` +
		`"minute hour day-of-month month day-of-week", such as "30 2 * * 1-5", that come at some time`
)

// Schedule is the times at which something is due. The zero Schedule has none.
type Schedule struct {
	every time.Duration // unless 0, from the Unix epoch
	cron  *cronFields
}

// Parse reads a schedule in one of the package's notations; zoneName is the
// IANA name of the zone of cron's fields, empty for UTC. Errors are
// InvalidArgument and name "schedule" or "time_zone", the value, and what is
// accepted: nothing is due more often than once a minute, or never.
func Parse(expr, zoneName string) (Schedule, error) {
	loaded, err := zone.Load("time_zone", zoneName)
	if err != nil {
		return Schedule{}, err
	}
	if interval, ok := strings.CutPrefix(strings.TrimSpace(expr), "every "); ok {
		d, ok := parseInterval(strings.TrimSpace(interval))
		if !ok || d < shortest || d > longest || d%time.Second != 0 {
			return Schedule{}, errdefs.Field("schedule", expr, accepted)
		}
		return Schedule{every: d}, nil
	}
	fields, err := parseCron(expr, loaded)
	if err != nil {
		return Schedule{}, errdefs.Field("schedule", expr, accepted).WithCause(err)
	}
	return Schedule{cron: fields}, nil
}

// parseInterval reads a duration, in which days are 24 hours.
func parseInterval(text string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(text)
	return d, err == nil
}

// Next is the first time after one at which it is due, in UTC; zero: never.
func (s Schedule) Next(after time.Time) time.Time {
	switch {
	case s.every > 0:
		return s.before(after).Add(s.every)
	case s.cron != nil:
		return s.cron.next(after)
	}
	return time.Time{}
}

// before is the last time of "every" that is not after now.
func (s Schedule) before(now time.Time) time.Time {
	seconds, step := now.Unix(), int64(s.every/time.Second)
	back := seconds % step
	if back < 0 {
		back += step
	}
	return time.Unix(seconds-back, 0).UTC()
}

// countedFor is how far back Due looks: what was missed before is not counted.
const countedFor = 400 * 24 * time.Hour

// Due tells whether something is due at now that was due at last for the last
// time: due is the latest time after last that has come, and missed how many
// others came between the two. ok is false where none has.
func Due(last, now time.Time, s Schedule) (due time.Time, missed int, ok bool) {
	if from := now.Add(-countedFor); last.Before(from) {
		last = from
	}
	if next := s.Next(last); next.IsZero() || next.After(now) {
		return time.Time{}, 0, false
	}
	n := 0
	switch {
	case s.every > 0:
		due = s.before(now)
		n = int(due.Sub(s.before(last)) / s.every)
	case s.cron != nil:
		due, n = s.cron.latest(last, now)
	}
	return due, n - 1, true
}
