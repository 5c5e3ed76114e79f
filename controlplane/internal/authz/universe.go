package authz

import (
	"maps"
	"slices"
	"strings"
)

// set is a set of the universe's permissions, a bit each. It stands in the grant
// itself, so that a check looks into one place of the memory; there is room for
// some three times the permissions there are.
type set [4]uint64

func (s *set) has(bit int) bool { return s[bit/64]>>(bit%64)&1 != 0 }

func (s *set) put(bit int) { s[bit/64] |= 1 << (bit % 64) }

func (s *set) add(other set) {
	for i, word := range other {
		s[i] |= word
	}
}

func (s *set) remove(other set) {
	for i, word := range other {
		s[i] &^= word
	}
}

// covers tells whether all of other is in s.
func (s *set) covers(other set) bool {
	for i, word := range other {
		if word&^s[i] != 0 {
			return false
		}
	}
	return true
}

// universe is every permission that a method or a handler asks for. There are
// few, and so are the granted ones that cover any: compiling a list of them is
// one look-up each.
type universe struct {
	// bits gives each permission's place in a set.
	bits map[string]int
	// covering gives, for each permission that can be granted and covers any,
	// what it covers.
	covering map[string]set
	// shared holds those that only callers without a tenant may use.
	shared set
	// operator holds those of the built-in role operator.
	operator set
}

func newUniverse(methods map[string]Rule) *universe {
	// The zero Scope is the strictest: the most lenient row counts.
	scopes := handlers()
	for _, rule := range methods {
		if rule.Permission != "" && scopes[rule.Permission] == ScopeCluster {
			scopes[rule.Permission] = rule.Scope
		}
	}
	u := &universe{bits: make(map[string]int, len(scopes)), covering: map[string]set{}}
	for _, permission := range slices.Sorted(maps.Keys(scopes)) {
		u.bits[permission] = len(u.bits)
	}
	for permission, bit := range u.bits {
		u.cover(permission, bit)
		for at, c := range permission {
			if c == ':' {
				u.cover(permission[:at]+":*", bit)
			}
		}
		if scopes[permission] == ScopeCluster {
			u.shared.put(bit)
		}
	}
	u.operator = u.compile(builtin("operator"))
	return u
}

func (u *universe) cover(granted string, bit int) {
	covered := u.covering[granted]
	covered.put(bit)
	u.covering[granted] = covered
}

// compile gives all that a list of granted permissions covers.
func (u *universe) compile(granted []string) set {
	var s set
	for _, g := range granted {
		s.add(u.covering[g])
	}
	return s
}

// matches tells whether a granted permission covers the wanted one: it is the
// same, or ends in ":*" and the wanted one lies below it, at any depth.
func matches(granted, wanted string) bool {
	if below, ok := strings.CutSuffix(granted, "*"); ok && strings.HasSuffix(below, ":") {
		return len(wanted) > len(below) && strings.HasPrefix(wanted, below)
	}
	return granted == wanted
}
