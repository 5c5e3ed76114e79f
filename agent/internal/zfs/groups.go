package zfs

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// group is what one listing says of one dataset, snapshot or bookmark.
type group struct {
	name   string
	values map[string]Property
	err    error
}

// groups asks for properties of everything of the types at the places, in one
// command which is read as it comes: more than one pass over many snapshots costs
// more than all their properties do. "zfs get", not "zfs list", since that alone
// tells a property that a snapshot has from one that its dataset has.
func (z *ZFS) groups(ctx context.Context, types, properties string, roots []string, recursive bool, yield func(*group) error) error {
	if err := checkDatasets("roots", roots); err != nil {
		return err
	}
	args := []string{"-t", types}
	about := ""
	if len(roots) > 0 {
		args, about = append(args, depth(recursive)...), roots[0]
	}
	return z.grouped(ctx, command{program: "zfs", args: append(append(args, "--", properties), roots...), about: about}, properties, yield)
}

// depth are the options for what the roots have themselves, or all below them too.
func depth(recursive bool) []string {
	if recursive {
		return []string{"-r"}
	}
	return []string{"-d", "1"}
}

// grouped runs a "zfs get", of which c has the options and what follows them.
func (z *ZFS) grouped(ctx context.Context, c command, properties string, yield func(*group) error) error {
	c.args = append([]string{"get", "-Hpo", "name,property,value,source"}, c.args...)
	g := grouping{yield: yield, asked: strings.Split(properties, ",")}
	if err := z.lines(ctx, c, g.line); err != nil {
		return err
	}
	return g.end()
}

func checkDatasets(field string, names []string) error {
	for _, name := range names {
		if _, err := parseDataset(field, name); err != nil {
			return err
		}
	}
	return nil
}

// grouping makes groups of lines; those of one name follow each other.
type grouping struct {
	asked   []string
	yield   func(*group) error
	current *group
}

// line takes a line of name, property, value and source. A value with tabs or line
// ends, such as a mountpoint that somebody made, is not worth losing the rest for:
// what does not begin as a line must is the end of such a value.
func (g *grouping) line(line string) error {
	name, rest, ok := strings.Cut(line, "\t")
	property, rest, ok2 := strings.Cut(rest, "\t")
	i := strings.LastIndexByte(rest, '\t')
	if !ok || !ok2 || !g.isAsked(property) {
		return nil
	}
	value, source := rest, ""
	if i >= 0 {
		value, source = rest[:i], rest[i+1:]
	}
	if g.current == nil || g.current.name != name {
		if err := g.end(); err != nil {
			return err
		}
		g.current = &group{name: strings.Clone(name), values: make(map[string]Property, len(g.asked))}
	}
	g.current.values[property] = Property{Value: value, Source: source}
	return nil
}

func (g *grouping) isAsked(property string) bool {
	for _, a := range g.asked {
		if a == property {
			return true
		}
	}
	return false
}

func (g *grouping) end() error {
	if g.current == nil {
		return nil
	}
	whole := g.current
	g.current = nil
	return g.yield(whole)
}

// text is a property's value, empty where it has none. Its memory is its own.
func (g *group) text(property string) string {
	v := g.values[property].Value
	if v == "-" {
		return ""
	}
	return strings.Clone(v)
}

// number is a property's value, 0 where it has none. The first that is none is kept
// as the error.
func (g *group) number(property string) uint64 {
	s := g.values[property].Value
	if s == "" || s == "-" || s == "none" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil && g.err == nil {
		g.err = errdefs.New(errdefs.Internal, CodeZFS, "%s: zfs says %q for %s, where a number belongs", g.name, shortened(s), property).
			With("dataset", g.name).WithCause(err)
	}
	return n
}

func (g *group) time(property string) time.Time {
	if s := g.number(property); s != 0 {
		return time.Unix(int64(s), 0)
	}
	return time.Time{}
}

// own gives the org.debvisor properties that are set here, and not inherited; nil
// where there are none.
func (g *group) own() map[string]string {
	var own map[string]string
	for name, p := range g.values {
		if strings.HasPrefix(name, ownPrefix) && (p.Source == "local" || p.Source == "received") {
			if own == nil {
				own = map[string]string{}
			}
			own[strings.Clone(name)] = strings.Clone(p.Value)
		}
	}
	return own
}
