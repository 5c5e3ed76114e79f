package planner

import (
	"slices"
	"strings"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// group is a group of VMs. Tenants' groups of the same name are different ones.
type group struct{ tenant, name string }

// member is a VM of a group that is kept apart.
type member struct {
	guest *guest
	level debvisorv1.SpreadLevel
}

// rival is another VM that must not be close to the one that moves.
type rival struct {
	guest *guest
	group string
	// level is the wider of what the two ask for.
	level debvisorv1.SpreadLevel
}

const (
	spreadNode = debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE
	spreadRack = debvisorv1.SpreadLevel_SPREAD_LEVEL_RACK
	spreadZone = debvisorv1.SpreadLevel_SPREAD_LEVEL_ZONE
)

// levels gives the groups that a policy keeps a VM apart in, each once, at the
// widest level that is asked for.
func levels(policy *debvisorv1.VMPolicy) []*debvisorv1.AntiAffinity {
	var once []*debvisorv1.AntiAffinity
	for _, a := range policy.GetAntiAffinity() {
		one := &debvisorv1.AntiAffinity{Group: a.GetGroup(), Level: max(a.GetLevel(), spreadNode)}
		if i := slices.IndexFunc(once, func(o *debvisorv1.AntiAffinity) bool { return o.GetGroup() == a.GetGroup() }); i >= 0 {
			once[i].Level = max(once[i].GetLevel(), one.GetLevel())
		} else {
			once = append(once, one)
		}
	}
	return once
}

// enter puts a VM in the groups of its policy.
func (w *World) enter(g *guest) {
	for _, a := range levels(g.policy) {
		key := group{g.policy.GetTenant(), a.GetGroup()}
		w.apart[key] = append(w.apart[key], member{g, a.GetLevel()})
	}
	for _, name := range g.policy.GetAffinityGroups() {
		key := group{g.policy.GetTenant(), name}
		w.together[key] = append(w.together[key], g)
	}
}

// rivals are the other VMs of the groups that a VM is kept apart in.
func (w *World) rivals(g *guest) []rival {
	var rivals []rival
	for _, a := range levels(g.policy) {
		for _, other := range w.apart[group{g.policy.GetTenant(), a.GetGroup()}] {
			if other.guest != g {
				rivals = append(rivals, rival{other.guest, a.GetGroup(), max(a.GetLevel(), other.level)})
			}
		}
	}
	return rivals
}

// friends are the other VMs of the groups that a VM is better kept with.
func (w *World) friends(g *guest) []*guest {
	var friends []*guest
	for _, name := range g.policy.GetAffinityGroups() {
		for _, other := range w.together[group{g.policy.GetTenant(), name}] {
			if other != g && other.at != nil {
				friends = append(friends, other)
			}
		}
	}
	return friends
}

// near tells whether two nodes are the same, or in the same rack or zone. What
// is not known to be apart counts as close: a rack or zone without a name may
// be any. Racks of one name in different zones are different ones.
func near(level debvisorv1.SpreadLevel, a, b *host) bool {
	if a == b {
		return true
	}
	switch level {
	case spreadRack:
		if apart(a.node.GetZone(), b.node.GetZone()) {
			return false
		}
		return !apart(a.node.GetRack(), b.node.GetRack())
	case spreadZone:
		return !apart(a.node.GetZone(), b.node.GetZone())
	}
	return false
}

func apart(a, b string) bool { return a != "" && b != "" && a != b }

// antiAffinity refuses a node that is too close to a rival.
func antiAffinity(_ *World, h *host, m *mover, o *objections) {
	for i, r := range m.rivals {
		var beside *host
		for place := range r.guest.places {
			if near(r.level, place, h) {
				beside = place
			}
		}
		if beside == nil {
			continue
		}
		if o.terse {
			o.no(AntiAffinity, "")
			return
		}
		// One reason a group and level tells of all its VMs.
		if !m.told(h, m.rivals[:i], r) {
			o.no(AntiAffinity, "VM %s must not share %s with others of group %s: %s", m.guest.name(), where(r.level, beside, h), r.group, m.crowd(h, r))
		}
	}
}

// told tells whether an earlier rival of the same group was reason enough.
func (m *mover) told(h *host, earlier []rival, r rival) bool {
	for _, e := range earlier {
		if e.group != r.group || e.level != r.level {
			continue
		}
		for place := range e.guest.places {
			if near(e.level, place, h) {
				return true
			}
		}
	}
	return false
}

// crowd names the rivals of one group that a node is too close to.
func (m *mover) crowd(h *host, r rival) string {
	const most = 3
	var names []string
	for _, other := range m.rivals {
		if other.group != r.group || other.level != r.level {
			continue
		}
		for place := range other.guest.places {
			if near(other.level, place, h) {
				names = append(names, other.guest.name()+" is on "+place.id)
			}
		}
	}
	return few(names, most, ", ")
}

// where says what two nodes share.
func where(level debvisorv1.SpreadLevel, a, b *host) string {
	named := func(what, one, other string) string {
		if one == "" || other == "" {
			return "a " + what + " (which " + what + " is not known of " + strings.Join(nameless(what, a, b), " and ") + ")"
		}
		return "the " + what + " " + one
	}
	switch {
	case a == b || level == spreadNode:
		return "a node"
	case level == spreadRack:
		return named("rack", a.node.GetRack(), b.node.GetRack())
	}
	return named("zone", a.node.GetZone(), b.node.GetZone())
}

// nameless gives the nodes whose rack or zone has no name.
func nameless(what string, hosts ...*host) []string {
	var ids []string
	for _, h := range hosts {
		if what == "rack" && h.node.GetRack() == "" || what == "zone" && h.node.GetZone() == "" {
			ids = append(ids, h.id)
		}
	}
	return ids
}
