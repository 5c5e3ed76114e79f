package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Decide says of each snapshot whether it stays under a policy at now, and why.
// In which order they are given does not matter. zone is whose calendar counts;
// nil is UTC.
func Decide(snapshots []Snapshot, policy Policy, protected Protection, now time.Time, zone *time.Location) Decision {
	if zone == nil {
		zone = time.UTC
	}
	d := Decision{Verdicts: make([]Verdict, len(snapshots))}
	oldest := now
	for i, s := range snapshots {
		d.Verdicts[i].Snapshot = s
		if !s.Created.IsZero() && s.Created.Before(oldest) {
			oldest = s.Created
		}
	}
	slices.SortFunc(d.Verdicts, func(a, b Verdict) int { return order(&a.Snapshot, &b.Snapshot) })
	r := rules{policy: policy, now: now, zone: zone, grains: grains(&policy, at(now, zone), oldest)}
	for rest := d.Verdicts; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(v Verdict) bool { return v.Snapshot.Dataset != rest[0].Snapshot.Dataset })
		if n < 0 {
			n = len(rest)
		}
		r.judge(rest[:n])
		rest = rest[n:]
	}
	for i := range d.Verdicts {
		d.Verdicts[i].protect(protected)
	}
	together(d.Verdicts)
	for i := range d.Verdicts {
		v := &d.Verdicts[i]
		if v.Keep = len(v.Reasons) > 0; v.Keep {
			d.Kept++
		} else {
			d.Removed++
			d.FreesAtLeast += v.Snapshot.Used
		}
	}
	return d
}

// order is by dataset, then from old to new.
func order(a, b *Snapshot) int {
	return cmp.Or(cmp.Compare(a.Dataset, b.Dataset), a.Created.Compare(b.Created),
		cmp.Compare(a.CreateTXG, b.CreateTXG), cmp.Compare(a.GUID, b.GUID), cmp.Compare(a.Name, b.Name))
}

// rules are a policy's at one moment.
type rules struct {
	policy Policy
	now    time.Time
	zone   *time.Location
	grains []grain
}

// judge gives the snapshots of one dataset, oldest first, the policy's reasons.
func (r *rules) judge(verdicts []Verdict) {
	// A clock may be set back over midnight: a period can be left and entered
	// again, so that all that were seen are kept in mind.
	seen := make([]map[period]struct{}, len(r.grains))
	for i := range seen {
		seen[i] = map[period]struct{}{}
	}
	counted := uint32(0)
	for _, v := range slices.Backward(r.countable(verdicts)) {
		s := &v.Snapshot
		if counted < r.policy.KeepLast {
			counted++
			v.because(Last, "last %d", r.policy.KeepLast)
		}
		if r.policy.KeepWithin > 0 && r.now.Sub(s.Created) <= r.policy.KeepWithin {
			v.because(Within, "within %v", r.policy.KeepWithin)
		}
		m := at(s.Created, r.zone)
		for i, g := range r.grains {
			p := g.of(m)
			if _, later := seen[i][p]; later || p < g.first {
				continue
			}
			seen[i][p] = struct{}{}
			v.because(g.rule, "%s %s", g.rule, g.name(m))
		}
		if r.policy.KeepPattern != "" && matches(r.policy.KeepPattern, s) {
			v.because(Pattern, "pattern %s", r.policy.KeepPattern)
		}
	}
}

// countable are the verdicts on snapshots that the rules count; the others have
// their reason to stay. What seems to be newer than now, since some clock is or
// was wrong, must not take the place of what is new.
func (r *rules) countable(verdicts []Verdict) []*Verdict {
	counted := make([]*Verdict, 0, len(verdicts))
	for i := range verdicts {
		v := &verdicts[i]
		s := &v.Snapshot
		switch {
		case !s.Ours:
			v.because(NotOurs, "not ours")
		case s.GUID == 0 || s.Created.IsZero():
			v.because(Unknown, "its guid or its time is not known")
		case r.policy.OnlyPattern != "" && !matches(r.policy.OnlyPattern, s):
			v.because(Outside, "not one of %s", r.policy.OnlyPattern)
		case s.Created.After(r.now):
			v.because(Future, "newer than now (%s): a clock is wrong", r.now.UTC().Format(time.RFC3339))
		default:
			counted = append(counted, v)
		}
	}
	return counted
}

// protect adds the reasons that no policy overrides.
func (v *Verdict) protect(p Protection) {
	for _, tag := range sorted(v.Snapshot.Holds) {
		v.because(Held, "held by %s", tag)
	}
	for _, clone := range sorted(v.Snapshot.Clones) {
		v.because(Cloned, "cloned by %s", clone)
	}
	if v.Snapshot.Protected {
		v.because(Protected, "protected in RBD")
	}
	if v.Snapshot.Template {
		v.because(Template, "a template")
	}
	for _, c := range p.Cursors[v.Snapshot.GUID] {
		v.because(Common, "last common snapshot with node %s (job %s)", c.Node, c.Job)
	}
	for _, job := range p.Resumes[v.Snapshot.GUID] {
		v.because(Resume, "needed to resume job %s", job)
	}
}

// together has the snapshots of a set stay where one of them does: a part of what
// was one moment of several datasets is of no use.
func together(verdicts []Verdict) {
	stays := map[string]*Snapshot{}
	for i := range verdicts {
		if v := &verdicts[i]; v.Snapshot.Set != "" && len(v.Reasons) > 0 && stays[v.Snapshot.Set] == nil {
			stays[v.Snapshot.Set] = &v.Snapshot
		}
	}
	for i := range verdicts {
		v := &verdicts[i]
		if one := stays[v.Snapshot.Set]; one != nil && len(v.Reasons) == 0 {
			v.because(Set, "of one set with %s@%s", one.Dataset, one.Name)
		}
	}
}

func sorted(s []string) []string {
	if slices.IsSorted(s) {
		return s
	}
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func (v *Verdict) because(rule Rule, format string, args ...any) {
	v.Reasons = append(v.Reasons, Reason{Rule: rule, Text: fmt.Sprintf(format, args...)})
}

// Against are the reasons that count though somebody names the snapshot for its
// end: not those of a clock, nor that others of its set stay, nor that it is a
// template.
func (v *Verdict) Against() []string {
	var texts []string
	for _, r := range v.Reasons {
		switch r.Rule {
		case Future, Set, Template:
		case Unknown:
			if v.Snapshot.GUID == 0 {
				texts = append(texts, r.Text)
			}
		default:
			texts = append(texts, r.Text)
		}
	}
	return texts
}
