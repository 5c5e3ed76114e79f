package retention

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// zoneOf loads a zone.
func zoneOf(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// moments are how tests write times: local, or exact with the offset.
func momentOf(t testing.TB, text string, zone *time.Location) time.Time {
	t.Helper()
	for _, layout := range []string{"2006-01-02T15:04-07:00", "2006-01-02T15:04:05-07:00"} {
		if at, err := time.Parse(layout, text); err == nil {
			return at
		}
	}
	at, err := time.ParseInLocation("2006-01-02T15:04", text, zone)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// facts makes snapshots of lines: a time, then words. All are ours, of tank/a,
// named s0, s1, … with guid 100, 101, … and createtxg 0, unless they say
// otherwise:
//
//	of DATASET, name N, label L, set S, txg N, used N, held TAG, cloned DATASET
//	theirs, noguid, notime
//	cursor NODE, resume JOB     replication needs it
func facts(t testing.TB, zone *time.Location, lines string) ([]Snapshot, Protection) {
	t.Helper()
	p := Protection{Cursors: map[uint64][]Cursor{}, Resumes: map[uint64][]string{}}
	var all []Snapshot
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		w := strings.Fields(line)
		n := len(all)
		s := Snapshot{Dataset: "tank/a", Name: fmt.Sprintf("s%d", n), GUID: uint64(100 + n), Ours: true, Created: momentOf(t, w[0], zone)}
		for w = w[1:]; len(w) > 0; {
			one := len(w) > 1
			switch {
			case w[0] == "theirs":
				s.Ours, one = false, false
			case w[0] == "noguid":
				s.GUID, one = 0, false
			case w[0] == "notime":
				s.Created, one = time.Time{}, false
			case w[0] == "of" && one:
				s.Dataset = w[1]
			case w[0] == "name" && one:
				s.Name = w[1]
			case w[0] == "label" && one:
				s.Label = w[1]
			case w[0] == "set" && one:
				s.Set = w[1]
			case w[0] == "txg" && one:
				s.CreateTXG = number(t, w[1])
			case w[0] == "used" && one:
				s.Used = number(t, w[1])
			case w[0] == "held" && one:
				s.Holds = append(s.Holds, w[1])
			case w[0] == "cloned" && one:
				s.Clones = append(s.Clones, w[1])
			case w[0] == "cursor" && one:
				p.Cursors[s.GUID] = append(p.Cursors[s.GUID], Cursor{Node: w[1], Job: "j1"})
			case w[0] == "resume" && one:
				p.Resumes[s.GUID] = append(p.Resumes[s.GUID], w[1])
			default:
				t.Fatalf("what is %q in %q?", w[0], line)
			}
			if w = w[1:]; one {
				w = w[1:]
			}
		}
		all = append(all, s)
	}
	return all, p
}

func number(t testing.TB, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// told writes verdicts, one a line: the name, then its reasons or "-".
func told(d Decision) []string {
	var lines []string
	for _, v := range d.Verdicts {
		var why []string
		for _, r := range v.Reasons {
			why = append(why, r.Text)
		}
		line := v.Snapshot.Name + ": " + strings.Join(why, ", ")
		if !v.Keep {
			line = v.Snapshot.Name + " -"
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name, zone, now string
		policy          Policy
		snapshots       string
		want            []string
	}{
		{
			"the newest", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 2},
			`
			2026-11-21T11:00
			2026-11-21T10:00
			2026-11-21T11:30`,
			[]string{"s1 -", "s0: last 2", "s2: last 2"},
		},
		{
			"of each dataset apart", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T11:00
			2026-11-21T10:00 of tank/b
			2026-11-21T09:00 of tank/b`,
			[]string{"s0: last 1", "s2 -", "s1: last 1"},
		},
		{
			"taken in one second: the later transaction is the newer", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T11:00 txg 8
			2026-11-21T11:00 txg 9
			2026-11-21T11:00 txg 7`,
			[]string{"s2 -", "s0 -", "s1: last 1"},
		},
		{
			"a day's last of each day", "Europe/Berlin", "2026-11-21T12:00",
			Policy{KeepDailyDays: 2},
			`
			2026-11-19T23:59
			2026-11-20T00:00
			2026-11-20T23:59
			2026-11-21T00:00
			2026-11-21T11:00`,
			[]string{"s0 -", "s1 -", "s2: daily 2026-11-20", "s3 -", "s4: daily 2026-11-21"},
		},
		{
			"the same in another zone is another day", "Asia/Kathmandu", "2026-11-21T18:00+05:45",
			Policy{KeepDailyDays: 2},
			`
			2026-11-19T18:14+00:00
			2026-11-19T18:15+00:00
			2026-11-20T18:14+00:00
			2026-11-20T18:15+00:00`,
			[]string{"s0 -", "s1 -", "s2: daily 2026-11-20", "s3: daily 2026-11-21"},
		},
		{
			"all reasons of one", "UTC", "2026-11-21T12:30",
			Policy{KeepLast: 3, KeepHourlyHours: 1, KeepDailyDays: 1, KeepWeeklyWeeks: 1, KeepMonthlyMonths: 1, KeepYearlyYears: 1, KeepWithin: time.Hour, KeepPattern: "s*"},
			`
			2026-11-21T12:00 held b held a cloned tank/c cursor n2 resume j9`,
			[]string{"s0: last 3, within 1h0m0s, hourly 2026-11-21 12h +00:00, daily 2026-11-21, weekly 2026-W47, monthly 2026-11, yearly 2026, pattern s*, " +
				"held by a, held by b, cloned by tank/c, last common snapshot with node n2 (job j1), needed to resume job j9"},
		},
		{
			"ISO weeks begin on Mondays and belong to the year of their Thursday", "Europe/Berlin", "2027-01-03T12:00",
			Policy{KeepWeeklyWeeks: 2},
			`
			2026-12-20T23:59
			2026-12-21T00:00
			2026-12-27T23:59
			2026-12-28T00:00
			2027-01-01T10:00`,
			[]string{"s0 -", "s1 -", "s2: weekly 2026-W52", "s3 -", "s4: weekly 2026-W53"},
		},
		{
			"months and years", "UTC", "2026-01-31T12:00",
			Policy{KeepMonthlyMonths: 2, KeepYearlyYears: 2},
			`
			2024-12-31T23:59
			2025-06-01T00:00
			2025-11-30T00:00
			2025-12-01T00:00
			2026-01-01T00:00`,
			[]string{"s0 -", "s1 -", "s2 -", "s3: monthly 2025-12, yearly 2025", "s4: monthly 2026-01, yearly 2026"},
		},
		{
			"an age", "UTC", "2026-11-21T12:00",
			Policy{KeepWithin: time.Hour},
			`
			2026-11-21T10:59
			2026-11-21T11:00
			2026-11-21T11:01`,
			[]string{"s0 -", "s1: within 1h0m0s", "s2: within 1h0m0s"},
		},
		{
			"by name or label", "UTC", "2026-11-21T12:00",
			Policy{KeepPattern: "pre-*"},
			`
			2026-11-21T10:00 name pre-1
			2026-11-21T10:01 label pre-upgrade
			2026-11-21T10:02 label other`,
			[]string{"pre-1: pattern pre-*", "s1: pattern pre-*", "s2 -"},
		},
		{
			"what the policy does not look at stays and is not counted", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1, OnlyPattern: "auto-*"},
			`
			2026-11-21T09:00 name auto-1
			2026-11-21T10:00 name auto-2
			2026-11-21T11:00 name mine`,
			[]string{"auto-1 -", "auto-2: last 1", "mine: not one of auto-*"},
		},
		{
			"others' stay and are not counted", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T10:00
			2026-11-21T11:00 theirs`,
			[]string{"s0: last 1", "s1: not ours"},
		},
		{
			"a set stays, or goes, as a whole", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T08:00 set x
			2026-11-21T08:00 set x of tank/b held me
			2026-11-21T09:00 set y
			2026-11-21T09:00 set y of tank/b
			2026-11-21T10:00 set z
			2026-11-21T10:00 set z of tank/b
			2026-11-21T11:00 of tank/b`,
			[]string{
				"s0: of one set with tank/b@s1", "s2 -", "s4: last 1",
				"s1: held by me", "s3 -", "s5: of one set with tank/a@s4", "s6: last 1",
			},
		},
		{
			"what is protected counts as any other", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T10:00 held x
			2026-11-21T11:00 cursor b`,
			[]string{"s0: held by x", "s1: last 1, last common snapshot with node b (job j1)"},
		},
		{
			"one that seems to come from the future takes no place", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1, KeepDailyDays: 1},
			`
			2026-11-21T11:00
			2026-11-21T12:01
			2099-01-01T00:00`,
			[]string{
				"s0: last 1, daily 2026-11-21", "s1: newer than now (2026-11-21T12:00:00Z): a clock is wrong",
				"s2: newer than now (2026-11-21T12:00:00Z): a clock is wrong",
			},
		},
		{
			"nor does one of which a fact is missing", "UTC", "2026-11-21T12:00",
			Policy{KeepLast: 1},
			`
			2026-11-21T10:00
			2026-11-21T10:30
			2026-11-21T11:00 noguid
			2026-11-21T11:00 notime`,
			[]string{"s3: its guid or its time is not known", "s0 -", "s1: last 1", "s2: its guid or its time is not known"},
		},

		{
			"a day of 25 hours, and one of its hours twice", "Europe/Berlin", "2026-10-25T12:00",
			Policy{KeepDailyDays: 1, KeepHourlyHours: 12},
			`
			2026-10-24T23:59+02:00
			2026-10-25T00:30+02:00
			2026-10-25T01:30+02:00
			2026-10-25T02:10+02:00
			2026-10-25T02:50+02:00
			2026-10-25T02:10+01:00
			2026-10-25T02:50+01:00
			2026-10-25T03:00+01:00`,
			[]string{
				"s0 -", "s1 -", "s2 -", "s3 -", "s4: hourly 2026-10-25 02h +02:00", "s5 -", "s6: hourly 2026-10-25 02h +01:00",
				"s7: hourly 2026-10-25 03h +01:00, daily 2026-10-25",
			},
		},
		{
			"a day of 23 hours", "Europe/Berlin", "2026-03-30T00:00",
			Policy{KeepDailyDays: 2, KeepHourlyHours: 24},
			`
			2026-03-28T23:59+01:00
			2026-03-29T00:00+01:00
			2026-03-29T01:59+01:00
			2026-03-29T03:00+02:00
			2026-03-29T23:59+02:00`,
			[]string{
				"s0 -", "s1: hourly 2026-03-29 00h +01:00", "s2: hourly 2026-03-29 01h +01:00", "s3: hourly 2026-03-29 03h +02:00",
				"s4: hourly 2026-03-29 23h +02:00, daily 2026-03-29",
			},
		},
		{
			"a day without a midnight", "America/Sao_Paulo", "2018-11-05T10:00",
			Policy{KeepDailyDays: 2},
			`
			2018-11-03T23:59-03:00
			2018-11-04T01:00-02:00
			2018-11-04T23:00-02:00
			2018-11-05T00:00-02:00`,
			[]string{"s0 -", "s1 -", "s2: daily 2018-11-04", "s3: daily 2018-11-05"},
		},
		{
			"a day with 23:00 twice", "America/Sao_Paulo", "2018-02-18T10:00",
			Policy{KeepDailyDays: 2},
			`
			2018-02-17T23:30-02:00
			2018-02-17T23:10-03:00
			2018-02-18T00:00-03:00`,
			[]string{"s0 -", "s1: daily 2018-02-17", "s2: daily 2018-02-18"},
		},
		{
			"a day that is left and entered again", "America/St_Johns", "2010-11-07T10:00-03:30",
			Policy{KeepDailyDays: 2},
			`
			2010-11-06T23:59-02:30
			2010-11-07T00:00:30-02:30
			2010-11-06T23:30-03:30`,
			[]string{"s0 -", "s1: daily 2010-11-07", "s2: daily 2010-11-06"},
		},
		{
			"a day that was left out is none", "Pacific/Apia", "2011-12-31T12:00+14:00",
			Policy{KeepDailyDays: 2},
			`
			2011-12-28T23:00-10:00
			2011-12-29T23:59-10:00
			2011-12-31T00:00+14:00`,
			[]string{"s0 -", "s1: daily 2011-12-29", "s2: daily 2011-12-31"},
		},
		{
			"a clock that is set by half an hour", "Australia/Lord_Howe", "2026-04-05T02:10+10:30",
			Policy{KeepHourlyHours: 2},
			`
			2026-04-05T00:59+11:00
			2026-04-05T01:45+11:00
			2026-04-05T01:45+10:30
			2026-04-05T02:05+10:30`,
			[]string{"s0 -", "s1: hourly 2026-04-05 01h +11:00", "s2: hourly 2026-04-05 01h +10:30", "s3: hourly 2026-04-05 02h +10:30"},
		},
		{
			"the hours of a zone that is off by quarters", "Asia/Kathmandu", "2026-11-21T18:00+05:45",
			Policy{KeepHourlyHours: 2},
			`
			2026-11-21T16:59+05:45
			2026-11-21T17:00+05:45
			2026-11-21T17:59+05:45
			2026-11-21T18:00+05:45`,
			[]string{"s0 -", "s1 -", "s2: hourly 2026-11-21 17h +05:45", "s3: hourly 2026-11-21 18h +05:45"},
		},
		{
			"rules without end keep one of each", "UTC", "2026-11-21T12:00",
			Policy{KeepHourlyHours: 1<<32 - 1, KeepDailyDays: 1<<32 - 1},
			`
			1970-01-01T00:00
			1970-01-01T00:10
			2026-11-21T11:00`,
			[]string{"s0 -", "s1: hourly 1970-01-01 00h +00:00, daily 1970-01-01", "s2: hourly 2026-11-21 11h +00:00, daily 2026-11-21"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			zone := zoneOf(t, c.zone)
			snapshots, protected := facts(t, zone, c.snapshots)
			got := told(Decide(snapshots, c.policy, protected, momentOf(t, c.now, zone), zone))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatItFrees(t *testing.T) {
	snapshots, protected := facts(t, time.UTC, `
		2026-11-21T08:00 used 5
		2026-11-21T09:00 used 7 held x
		2026-11-21T10:00 used 11
		2026-11-21T11:00 used 13`)
	now := momentOf(t, "2026-11-21T12:00", time.UTC)
	d := Decide(snapshots, Policy{KeepLast: 1}, protected, now, nil)
	if d.Kept != 2 || d.Removed != 2 || d.FreesAtLeast != 16 {
		t.Errorf("%d stay, %d go, %d bytes go free", d.Kept, d.Removed, d.FreesAtLeast)
	}
	if d := Decide(nil, Policy{KeepLast: 1}, Protection{}, now, nil); d.Kept+d.Removed != 0 || len(d.Verdicts) != 0 {
		t.Errorf("of none: %+v", d)
	}
}
