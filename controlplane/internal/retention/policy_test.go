package retention

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestAPolicyFromTheWire(t *testing.T) {
	got, zone, err := FromProto("policy", &debvisorv1.RetentionPolicy{
		KeepLast: 1, KeepDailyDays: 2, KeepWeeklyWeeks: 3, KeepHourlyHours: 4, KeepMonthlyMonths: 5, KeepYearlyYears: 6,
		KeepWithinSeconds: 7, KeepPattern: "pre-*", OnlyPattern: "auto-*", TimeZone: "Asia/Kathmandu",
	})
	want := Policy{
		KeepLast: 1, KeepDailyDays: 2, KeepWeeklyWeeks: 3, KeepHourlyHours: 4, KeepMonthlyMonths: 5, KeepYearlyYears: 6,
		KeepWithin: 7 * time.Second, KeepPattern: "pre-*", OnlyPattern: "auto-*",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" || zone.String() != "Asia/Kathmandu" {
		t.Errorf("%v, %v (-want +got):\n%s", zone, err, diff)
	}
	got, zone, err = FromProto("policy", &debvisorv1.RetentionPolicy{KeepWithinSeconds: math.MaxUint64})
	if err != nil || got.KeepWithin < 290*365*24*time.Hour || zone != time.UTC {
		t.Errorf("for ever is %v in %v: %v", got.KeepWithin, zone, err)
	}
}

func TestAPolicyThatCannotBeMeant(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy *debvisorv1.RetentionPolicy
		want   []string // the field, the value, what is accepted
	}{
		{"none", nil, []string{"policy: ", "at least one rule", "remove every snapshot"}},
		{"zeros", &debvisorv1.RetentionPolicy{OnlyPattern: "x"}, []string{"policy: ", "at least one rule"}},
		{"a zone", &debvisorv1.RetentionPolicy{KeepLast: 1, TimeZone: "Mars/Olympus"}, []string{"policy.time_zone", `"Mars/Olympus"`, "IANA"}},
		{"the machine's zone", &debvisorv1.RetentionPolicy{KeepLast: 1, TimeZone: "Local"}, []string{"policy.time_zone", `"Local"`, "IANA"}},
		{"what to keep", &debvisorv1.RetentionPolicy{KeepPattern: "a[b"}, []string{"policy.keep_pattern", `"a[b"`, "pre-*"}},
		{"what to look at", &debvisorv1.RetentionPolicy{KeepLast: 1, OnlyPattern: `a\`}, []string{"policy.only_pattern", `"a\\"`, "pre-*"}},
	} {
		_, _, err := FromProto("policy", c.policy)
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, part := range c.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", c.name, err, part)
			}
		}
	}
}

// TestMalformedPatternsMatchNothing: should one get as far as a decision.
func TestMalformedPatternsMatchNothing(t *testing.T) {
	snapshots, protected := facts(t, time.UTC, "2026-11-21T11:00")
	d := Decide(snapshots, Policy{KeepLast: 1, KeepPattern: "[", OnlyPattern: "["}, protected, momentOf(t, "2026-11-21T12:00", time.UTC), nil)
	if d.Removed != 0 || d.Verdicts[0].Reasons[0].Rule != Outside {
		t.Errorf("%+v", d.Verdicts)
	}
}
