// Package config reads what a daemon is told: the defaults, one YAML file,
// the environment and the command line, the later before the earlier. One table
// of keys makes the flags, the file's keys, the default file and the
// documentation, so that they cannot differ. What is wrong is told all at once,
// each with the place that it comes from and what would be accepted. It applies
// nothing: what a changed value means is the daemon's business.
package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Table is a daemon's keys, in the order in which people read them. Its methods
// are for one goroutine.
type Table struct {
	program, prefix string
	keys            []*Key
	byName          map[string]*Key
	section         string
	// file is what Load has read; empty: none.
	file string
}

// New makes an empty table. The environment's names of its keys are the prefix
// and the key's name in capitals: RPC_ and listen give RPC_LISTEN.
func New(program, prefix string) *Table {
	return &Table{program: program, prefix: prefix, byName: map[string]*Key{}}
}

// Key is one setting.
type Key struct {
	// Name is how the file calls it; the flag has "-" for its "_".
	Name string
	// Env is the variable of the environment.
	Env string
	// Help says what it is for, what it is measured in, and what its default means.
	Help string
	// Section is the heading that it stands under.
	Section string

	kind   string // for people: "text", "duration", …
	list   bool
	quiet  bool // of a list of flags: no splitting at commas
	live   bool
	secret bool
	value  target
	// otherwise is the default, as the file would have it.
	otherwise []string
	// given is what the command line has said, in its order.
	given []string
	// origin is where the value is from.
	origin origin
}

// target is the variable behind a key.
type target interface {
	// set takes the value from texts: exactly one, but for a list. The error says
	// what would be accepted.
	set(texts []string) error
	texts() []string
}

// Section begins a group of keys.
func (t *Table) Section(title string) { t.section = title }

// String adds a text.
func (t *Table) String(p *string, flag, value, help string) *Key {
	*p = value
	return t.add(flag, help, "text", scalar{
		func(s string) error { *p = s; return nil },
		func() string { return *p },
	})
}

// Int adds a whole number.
func (t *Table) Int(p *int, flag string, value int, help string) *Key {
	*p = value
	return t.add(flag, help, "number", scalar{
		func(s string) (err error) {
			if *p, err = strconv.Atoi(s); err != nil {
				return fmt.Errorf("a whole number")
			}
			return nil
		},
		func() string { return strconv.Itoa(*p) },
	})
}

// Float adds a number that need not be whole.
func (t *Table) Float(p *float64, flag string, value float64, help string) *Key {
	*p = value
	return t.add(flag, help, "number", scalar{
		func(s string) (err error) {
			if *p, err = strconv.ParseFloat(s, 64); err != nil {
				return fmt.Errorf("a number such as 0.1")
			}
			return nil
		},
		func() string { return strconv.FormatFloat(*p, 'g', -1, 64) },
	})
}

// Bool adds a yes or no.
func (t *Table) Bool(p *bool, flag string, value bool, help string) *Key {
	*p = value
	return t.add(flag, help, "bool", scalar{
		func(s string) error {
			switch s {
			case "true", "false":
				*p = s == "true"
				return nil
			}
			return fmt.Errorf("true or false")
		},
		func() string { return strconv.FormatBool(*p) },
	})
}

// Duration adds a length of time.
func (t *Table) Duration(p *time.Duration, flag string, value time.Duration, help string) *Key {
	*p = value
	return t.add(flag, help, "duration", scalar{
		func(s string) (err error) {
			if *p, err = parseDuration(s); err != nil {
				return fmt.Errorf("a duration such as 90s, 5m, 36h or 30d")
			}
			return nil
		},
		func() string { return durationText(*p) },
	})
}

// Strings adds a list of texts; commas part them on the command line and in the
// environment.
func (t *Table) Strings(p *[]string, flag string, help string) *Key {
	k := t.add(flag, help, "list", list{p})
	k.list = true
	return k
}

func (t *Table) add(flag, help, kind string, v target) *Key {
	name := strings.ReplaceAll(flag, "-", "_")
	if t.byName[name] != nil {
		panic("config: the key " + name + " is there twice")
	}
	k := &Key{
		Name: name, Env: t.prefix + strings.ToUpper(name), Help: help, Section: t.section,
		kind: kind, value: v, otherwise: v.texts(),
	}
	t.keys = append(t.keys, k)
	t.byName[name] = k
	return k
}

// Live marks a key that a running daemon takes over on SIGHUP.
func (k *Key) Live() *Key {
	k.live = true
	return k
}

// Secret marks a key whose value is shown to nobody.
func (k *Key) Secret() *Key {
	k.secret = true
	return k
}

// Whole marks a list whose flag is repeated, as its items may hold commas.
func (k *Key) Whole() *Key {
	k.quiet = true
	return k
}

// Flag is the key's flag, without dashes.
func (k *Key) Flag() string { return strings.ReplaceAll(k.Name, "_", "-") }

// IsLive tells whether SIGHUP applies a change of the key.
func (k *Key) IsLive() bool { return k.live }

// Keys are the table's, in their order.
func (t *Table) Keys() []*Key { return slices.Clone(t.keys) }

type scalar struct {
	put func(string) error
	get func() string
}

func (s scalar) set(texts []string) error { return s.put(texts[len(texts)-1]) }

func (s scalar) texts() []string { return []string{s.get()} }

type list struct{ p *[]string }

func (l list) set(texts []string) error {
	*l.p = nil
	if len(texts) > 0 {
		*l.p = slices.Clone(texts)
	}
	if slices.Contains(texts, "") {
		return fmt.Errorf("a list without empty items")
	}
	return nil
}

func (l list) texts() []string { return slices.Clone(*l.p) }

// parseDuration is time.ParseDuration that knows days, alone, as well.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// durationText writes a duration without the units that are nought.
func durationText(d time.Duration) string {
	const day = 24 * time.Hour
	if d != 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
