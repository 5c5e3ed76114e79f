package retention

import (
	"math"
	"path"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/schedule/zone"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Policy says what stays. The rules add up: what one keeps, stays. They count
// each dataset's snapshots apart, and of these ours that OnlyPattern names.
// Hours, days, weeks (ISO 8601: Monday to Sunday), months and years are those
// of the calendar of a time zone, and include the present one.
type Policy struct {
	// KeepLast keeps that many of the newest.
	KeepLast uint32
	// KeepHourlyHours to KeepYearlyYears keep the last snapshot of each of the
	// last so many hours, days, weeks, months, years.
	KeepHourlyHours, KeepDailyDays, KeepWeeklyWeeks, KeepMonthlyMonths, KeepYearlyYears uint32
	// KeepWithin keeps everything that is no older.
	KeepWithin time.Duration
	// KeepPattern, unless empty, keeps what it matches by name or by label.
	// Patterns are path.Match's: * ? [a-z], of which none matches a "/".
	KeepPattern string
	// OnlyPattern, unless empty, has the policy look at nothing but what it
	// matches by name or by label; all else stays and is not counted.
	OnlyPattern string
}

// keepsNothing tells that every snapshot would go.
func (p *Policy) keepsNothing() bool {
	return p.KeepLast == 0 && p.KeepHourlyHours == 0 && p.KeepDailyDays == 0 && p.KeepWeeklyWeeks == 0 &&
		p.KeepMonthlyMonths == 0 && p.KeepYearlyYears == 0 && p.KeepWithin <= 0 && p.KeepPattern == ""
}

// matches tells whether a pattern names a snapshot. One that is malformed, which
// FromProto refuses, names none.
func matches(pattern string, s *Snapshot) bool {
	byName, _ := path.Match(pattern, s.Name)
	byLabel, _ := path.Match(pattern, s.Label)
	return byName || byLabel && s.Label != ""
}

// FromProto gives the rules that a caller wrote down, and whose calendar they
// count by. Errors are InvalidArgument with the field's name below field, such
// as "policy.keep_pattern": a malformed pattern, a zone that does not exist, or
// a policy of nothing but zeros, which would let every snapshot go.
func FromProto(field string, p *debvisorv1.RetentionPolicy) (Policy, *time.Location, error) {
	policy := Policy{
		KeepLast: p.GetKeepLast(), KeepHourlyHours: p.GetKeepHourlyHours(), KeepDailyDays: p.GetKeepDailyDays(),
		KeepWeeklyWeeks: p.GetKeepWeeklyWeeks(), KeepMonthlyMonths: p.GetKeepMonthlyMonths(), KeepYearlyYears: p.GetKeepYearlyYears(),
		KeepWithin:  time.Duration(min(p.GetKeepWithinSeconds(), longest)) * time.Second,
		KeepPattern: p.GetKeepPattern(), OnlyPattern: p.GetOnlyPattern(),
	}
	for _, pattern := range []struct{ name, text string }{{"keep_pattern", policy.KeepPattern}, {"only_pattern", policy.OnlyPattern}} {
		if _, err := path.Match(pattern.text, ""); err != nil {
			return Policy{}, nil, errdefs.Field(field+"."+pattern.name, pattern.text,
				`a pattern of * ? [a-z], with \ before one of these that is meant as it stands, such as "pre-*"`)
		}
	}
	loaded, err := zone.Load(field+".time_zone", p.GetTimeZone())
	if err != nil {
		return Policy{}, nil, err
	}
	if policy.keepsNothing() {
		return Policy{}, nil, errdefs.Field(field, "nothing is kept", "at least one rule above 0, or keep_pattern: this policy would remove every snapshot")
	}
	return policy, loaded, nil
}

// longest is the most seconds that a time.Duration holds: 292 years.
const longest = uint64(math.MaxInt64 / int64(time.Second))
