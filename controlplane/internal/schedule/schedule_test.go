package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func parse(t testing.TB, expr, zone string) Schedule {
	t.Helper()
	s, err := Parse(expr, zone)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func at(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		name, expr, zone, after string
		want                    []string // one after the other
	}{
		{"every", "every 15m", "Europe/Berlin", "2026-11-21T12:00:00Z", []string{"2026-11-21T12:15:00Z", "2026-11-21T12:30:00Z"}},
		{"every, in between", " every  15m ", "", "2026-11-21T12:14:59Z", []string{"2026-11-21T12:15:00Z"}},
		{"every counts from the epoch, whatever the zone", "every 24h", "Asia/Kathmandu", "2026-11-21T12:00:00Z", []string{"2026-11-22T00:00:00Z"}},
		{"every so many days", "every 1d", "", "2026-11-21T00:00:00Z", []string{"2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"}},
		{"every 90s", "every 90s", "", "1970-01-01T00:00:00Z", []string{"1970-01-01T00:01:30Z", "1970-01-01T00:03:00Z"}},
		{"before the epoch", "every 1h", "", "1969-12-31T23:30:00Z", []string{"1970-01-01T00:00:00Z"}},
		{"each minute", "* * * * *", "", "2026-11-21T12:00:30Z", []string{"2026-11-21T12:01:00Z", "2026-11-21T12:02:00Z"}},
		{"at a time in a zone", "30 2 * * *", "Europe/Berlin", "2026-11-21T12:00:00Z", []string{"2026-11-22T01:30:00Z"}},
		{"in a zone that is off by quarters", "*/30 9-10 * * *", "Asia/Kathmandu", "2026-11-21T04:00:00Z", []string{"2026-11-21T04:15:00Z", "2026-11-21T04:45:00Z", "2026-11-22T03:15:00Z"}},
		{"weekdays by name", "0 0 * * mon-fri", "", "2026-11-20T12:00:00Z", []string{"2026-11-23T00:00:00Z"}},
		{"either day suffices", "0 0 13 * fri", "", "2026-11-07T00:00:00Z", []string{"2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z", "2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00Z"}},
		{"the last of months that have one", "0 0 31 * *", "", "2026-01-31T00:00:00Z", []string{"2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"}},
		{"leap days over 2100", "0 0 29 2 *", "", "2096-02-29T00:00:00Z", []string{"2104-02-29T00:00:00Z"}},

		{"the hour that is left out", "30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"}},
		{"all of its minutes run once", "*/20 1-3 * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", []string{"2026-03-29T00:40:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:20:00Z"}},
		{"the hour that comes twice", "30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", []string{"2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}},
		{"every hour, one left out", "30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", []string{"2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"}},
		{"every hour, one twice", "30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", []string{"2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"}},
		{"a midnight that is left out", "0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", []string{"2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"}},
		{"an hour before midnight that comes twice", "30 23 * * *", "America/Sao_Paulo", "2018-02-17T12:00:00Z", []string{"2018-02-18T01:30:00Z", "2018-02-19T02:30:00Z"}},
		{"a day that is left out", "0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", []string{"2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"}},
		{"half an hour twice", "45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00:00Z", []string{"2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := parse(t, c.expr, c.zone)
			var got []string
			for now := at(t, c.after); len(got) < len(c.want); {
				now = s.Next(now)
				got = append(got, now.Format(time.RFC3339))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if next := (Schedule{}).Next(at(t, "2026-11-21T12:00:00Z")); !next.IsZero() {
		t.Errorf("no schedule is due at %v", next)
	}
}

func TestWhatIsNoSchedule(t *testing.T) {
	for _, expr := range []string{
		"", " ", "every", "every ", "every 59s", "every 0", "every -1h", "every 1h1ms", "every 367d", "every 1.5d", "every 99999d", "every 999999999h",
		"every 1h from 00:05", "15m", "@daily", "@every 1h", "0 0 * *", "0 0 0 * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *",
		"* * * * 7", "*/0 * * * *", "5-1 * * * *", "*-5 * * * *", "1,,2 * * * *", ", * * * *", "1, * * * *", "+5 * * * *", "-5 * * * *", "1-2-3 * * * *",
		"1/2/3 * * * *", "0 0 31 2 *", "0 0 30 feb *", "0 0 * * funday", "TZ=UTC", "TZ=UTC 0 0 * * *", "CRON_TZ=Europe/Berlin 0 0 * * *",
		"99999999999999999999 * * * *", "** * * * *", "* * * * \x00",
	} {
		_, err := Parse(expr, "")
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "schedule: ") || !strings.Contains(err.Error(), "five cron fields") {
			t.Errorf("%q: %v", expr, err)
		}
	}
	if _, err := Parse("every 1h", "Europe/Nowhere"); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "time_zone") {
		t.Error(err)
	}
}

func TestDue(t *testing.T) {
	const noon = "2026-11-21T12:00:00Z"
	for _, c := range []struct {
		name, expr, last, now string
		want                  string // empty: nothing is due
		missed                int
	}{
		{"not yet", "every 1h", noon, "2026-11-21T12:59:59Z", "", 0},
		{"just now", "every 1h", noon, "2026-11-21T13:00:00Z", "2026-11-21T13:00:00Z", 0},
		{"a while ago", "every 1h", noon, "2026-11-21T13:59:59Z", "2026-11-21T13:00:00Z", 0},
		{"one was missed", "every 1h", noon, "2026-11-21T14:00:00Z", "2026-11-21T14:00:00Z", 1},
		{"many were", "every 1m", noon, "2026-11-22T12:00:30Z", "2026-11-22T12:00:00Z", 24*60 - 1},
		{"from between two", "every 1h", "2026-11-21T12:30:00Z", "2026-11-21T13:30:00Z", "2026-11-21T13:00:00Z", 0},
		{"cron: not yet", "0 * * * *", noon, "2026-11-21T12:59:59Z", "", 0},
		{"cron: just now", "0 * * * *", noon, "2026-11-21T13:00:00Z", "2026-11-21T13:00:00Z", 0},
		{"cron: many were missed", "* * * * *", noon, "2026-11-22T12:00:30Z", "2026-11-22T12:00:00Z", 24*60 - 1},
		{"cron: days off", "0 3 * * mon", noon, "2026-12-08T00:00:00Z", "2026-12-07T03:00:00Z", 2},
		{"the same moment", "every 1m", noon, noon, "", 0},
		{"a clock was set back", "every 1m", noon, "2026-11-20T12:00:00Z", "", 0},
		{"it was never due before", "0 0 * * *", "0001-01-01T00:00:00Z", noon, "2026-11-21T00:00:00Z", 399},
		{"every, never before", "every 1d", "0001-01-01T00:00:00Z", noon, "2026-11-21T00:00:00Z", 399},
	} {
		t.Run(c.name, func(t *testing.T) {
			due, missed, ok := Due(at(t, c.last), at(t, c.now), parse(t, c.expr, ""))
			got := ""
			if ok {
				got = due.Format(time.RFC3339)
			}
			if got != c.want || missed != c.missed {
				t.Errorf("%q, %d missed; want %q, %d", got, missed, c.want, c.missed)
			}
		})
	}
	if _, _, ok := Due(at(t, noon), at(t, noon).Add(time.Hour), Schedule{}); ok {
		t.Error("no schedule is due")
	}
}

// zones of which some clock is set in every way there is.
var zones = []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca"}

func randomCron(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	return strings.Join([]string{
		pick("0", "30", "*/20", "1,31,59", "*"), pick("*", "*", "0", "2", "1-3", "23", "*/2", "0-23"),
		pick("*", "*", "*", "1-15", "30"), "*", pick("*", "*", "*", "sun", "6,0"),
	}, " ")
}

// slow finds the times of (from, to] by looking at the clock of each minute.
func slow(c *cronFields, from, to time.Time) []time.Time {
	shows := func(wall int64) bool {
		w := time.Unix(wall, 0).UTC()
		return c.matches(w) && c.Hour>>w.Hour()&1 == 1 && c.Minute>>w.Minute()&1 == 1
	}
	wallOf := func(t time.Time) int64 {
		_, offset := t.In(c.zone).Zone()
		return t.Unix() + int64(offset)
	}
	var all []time.Time
	seen := map[int64]bool{}
	for at := from.Add(-48 * time.Hour).Truncate(time.Minute); !at.After(to); at = at.Add(time.Minute) {
		wall := wallOf(at)
		due := shows(wall) && (c.everyHour || !seen[wall])
		seen[wall] = true
		for passed := wallOf(at.Add(-time.Minute)) + 60; passed < wall && !c.everyHour; passed += 60 {
			due = due || shows(passed)
		}
		if due && at.After(from) {
			all = append(all, at.UTC())
		}
	}
	return all
}

// TestCronAgainstAClock compares with looking at each minute's clock, around
// the times at which clocks are set and at others.
func TestCronAgainstAClock(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		expr, zone := randomCron(r), zones[r.IntN(len(zones))]
		s := parse(t, expr, zone)
		from := time.Date(2009, 1, 1, 0, 0, r.IntN(12*365*secondsADay), 0, time.UTC)
		if _, set := from.In(s.cron.zone).ZoneBounds(); !set.IsZero() && r.IntN(4) > 0 {
			from = set.Add(-time.Duration(r.IntN(36*60)) * time.Minute)
		}
		to := from.Add(72 * time.Hour)
		var got []time.Time
		for now := s.Next(from); !now.After(to) && !now.IsZero(); now = s.Next(now) {
			if got = append(got, now); len(got) > 5000 {
				t.Fatalf("seed %d: %s in %s does not go on from %v", seed, expr, zone, now)
			}
		}
		want := slow(s.cron, from, to)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: %s in %s from %v (-want +got):\n%s", seed, expr, zone, from, diff)
		}
		due, missed, ok := Due(from, to, s)
		if ok != (len(want) > 0) || ok && (missed != len(want)-1 || !due.Equal(want[len(want)-1])) {
			t.Fatalf("seed %d: %s in %s from %v to %v: %v, %d missed, %v; want the last of %d", seed, expr, zone, from, to, due, missed, ok, len(want))
		}
	}
}

// TestNothingIsDueTwice: whenever one looks, each time is due once.
func TestNothingIsDueTwice(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 11))
		expr, zone := randomCron(r), zones[r.IntN(len(zones))]
		if r.IntN(3) == 0 {
			expr = fmt.Sprintf("every %dm", 1+r.IntN(300))
		}
		s := parse(t, expr, zone)
		last := time.Date(2009, 1, 1, 0, 0, r.IntN(12*365*secondsADay), 0, time.UTC)
		var want, got []time.Time
		end := last.Add(24 * time.Hour)
		for next := s.Next(last); !next.After(end) && !next.IsZero(); next = s.Next(next) {
			want = append(want, next)
		}
		count := 0
		for now := last; now.Before(end); {
			if now = now.Add(time.Duration(1+r.IntN(9000)) * time.Second); now.After(end) {
				now = end
			}
			if due, missed, ok := Due(last, now, s); ok {
				last, count = due, count+missed+1
				got = append(got, due)
			}
		}
		if count != len(want) || !slices.IsSortedFunc(got, time.Time.Compare) {
			t.Fatalf("seed %d: %s in %s: %d were due or missed, want %d", seed, expr, zone, count, len(want))
		}
		for _, due := range got {
			if !slices.ContainsFunc(want, due.Equal) {
				t.Fatalf("seed %d: %s in %s was due at %v", seed, expr, zone, due)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("every 15m", "", int64(0))
	f.Add("30 2 * * 1-5", "Europe/Berlin", int64(1761350000))
	f.Add("*/7 */5 29 2 *", "Pacific/Apia", int64(1325200000))
	f.Fuzz(func(t *testing.T, expr, zone string, now int64) {
		s, err := Parse(expr, zone)
		if err != nil {
			return
		}
		from := time.Unix(now%(1<<33), 0)
		next := s.Next(from)
		if !next.IsZero() && (!next.After(from) || !next.Equal(s.Next(next.Add(-time.Nanosecond)))) {
			t.Errorf("%q in %q: after %v comes %v", expr, zone, from, next)
		}
		if due, _, ok := Due(from, next, s); !next.IsZero() && (!ok || !due.Equal(next)) {
			t.Errorf("%q in %q: next is %v, due is %v %v", expr, zone, next, due, ok)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	s := parse(b, "*/5 * * * *", "Europe/Berlin")
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for b.Loop() {
		now = s.Next(now)
	}
}
