package retention

import (
	"fmt"
	"time"
)

// period is one hour, day, week, month or year of the calendar: two moments are
// in the same one when their periods are equal, and of two periods the later
// one is greater.
type period int64

// grain is one of the calendar's rules. first is the earliest period in which
// it keeps a snapshot.
type grain struct {
	rule  Rule
	first period
	of    func(m moment) period
	name  func(m moment) string
}

// moment is a time in the policy's zone, with the number of its day.
type moment struct {
	time.Time
	day int64 // since 1970-01-01
}

const (
	secondsADay   = 24 * 60 * 60
	secondsAnHour = 60 * 60
)

func at(t time.Time, zone *time.Location) moment {
	local := t.In(zone)
	return moment{Time: local, day: dayNumber(local.Date())}
}

// dayNumber counts the days of the calendar from 1970-01-01.
func dayNumber(y int, m time.Month, d int) int64 {
	return floorDiv(time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix(), secondsADay)
}

// hour is the moment, in Unix seconds, at which the clock's hour began: where
// the clock is set back one hour, the two hours of one name are two.
func (m moment) hour() period {
	return period(m.Unix() - int64(m.Minute()*60+m.Second()))
}

func (m moment) civilDay() period { return period(m.day) }

// week counts from the Monday before 1970-01-01, which was a Thursday.
func (m moment) week() period { return period(floorDiv(m.day+3, 7)) }

func (m moment) month() period { return period(m.Year()*12 + int(m.Month())) }

func (m moment) year() period { return period(m.Year()) }

// grains are the calendar's rules of a policy, as they stand at now. oldest is
// that of all snapshots.
func grains(p *Policy, now moment, oldest time.Time) []grain {
	all := []struct {
		n uint32
		grain
	}{
		{p.KeepHourlyHours, grain{
			Hourly, now.hour() - secondsAnHour*period(p.KeepHourlyHours) + 1, moment.hour,
			func(m moment) string { return m.Format("2006-01-02 15h -07:00") },
		}},
		{p.KeepDailyDays, grain{
			Daily, firstDay(now, p.KeepDailyDays, oldest), moment.civilDay,
			func(m moment) string { return m.Format(time.DateOnly) },
		}},
		{p.KeepWeeklyWeeks, grain{Weekly, now.week() - period(p.KeepWeeklyWeeks) + 1, moment.week, func(m moment) string {
			year, week := m.ISOWeek()
			return fmt.Sprintf("%04d-W%02d", year, week)
		}}},
		{p.KeepMonthlyMonths, grain{
			Monthly, now.month() - period(p.KeepMonthlyMonths) + 1, moment.month,
			func(m moment) string { return m.Format("2006-01") },
		}},
		{p.KeepYearlyYears, grain{
			Yearly, now.year() - period(p.KeepYearlyYears) + 1, moment.year,
			func(m moment) string { return m.Format("2006") },
		}},
	}
	var set []grain
	for _, g := range all {
		if g.n > 0 {
			set = append(set, g.grain)
		}
	}
	return set
}

// firstDay is the first of the last n days, now's included. A day that a zone
// left out, as Samoa did 2011-12-30 when it crossed the date line, is none.
func firstDay(now moment, n uint32, oldest time.Time) period {
	limit := at(oldest, now.Location()).day
	day := now.day
	for n--; n > 0 && day >= limit; day-- {
		if exists(day-1, now.Location()) {
			n--
		}
	}
	return period(day)
}

// exists tells whether a zone's calendar has a day: where it was left out, no
// time of it gives that date back.
func exists(day int64, zone *time.Location) bool {
	y, m, d := time.Unix(day*secondsADay, 0).UTC().Date()
	for _, hour := range []int{12, 0, 23} {
		if dayNumber(time.Date(y, m, d, hour, 0, 0, 0, zone).Date()) == day {
			return true
		}
	}
	return false
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b != 0 && (a < 0) != (b < 0) {
		q--
	}
	return q
}
