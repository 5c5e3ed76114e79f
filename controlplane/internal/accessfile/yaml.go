package accessfile

import (
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/shared/yamlfile"
)

// reader walks the nodes of one document. It keeps the first fault and reads
// on with empty values after it: who is done asks for it.
type reader struct {
	file  string
	fault *yamlfile.Fault
	// secret keeps values out of messages: where keys are told of, a mistake may
	// have put one.
	secret bool
}

func (r *reader) failf(at *yaml.Node, format string, args ...any) {
	if r.fault == nil {
		r.fault = &yamlfile.Fault{File: r.file, Line: at.Line, Reason: fmt.Sprintf(format, args...)}
	}
}

// refuse names the field, its value and what would be accepted.
func (r *reader) refuse(at *yaml.Node, field, accepted string) {
	r.failf(at, "%s: %s is not accepted; expected %s", field, r.kind(at), accepted)
}

// kind names what a node is, for people.
func (r *reader) kind(n *yaml.Node) string {
	if r.secret && n.Kind == yaml.ScalarNode && n.Tag != "!!null" && n.Style&yaml.TaggedStyle == 0 {
		return "what stands there"
	}
	return yamlfile.Kind(n)
}

// entry is one key of a mapping with its value.
type entry struct {
	key, value *yaml.Node
}

// entries gives a mapping's entries in their order; each key once. Nothing
// instead of a mapping is an empty one.
func (r *reader) entries(n *yaml.Node, field string) []entry {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.failf(n, "%s is %s; expected a mapping", field, r.kind(n))
		return nil
	}
	entries := make([]entry, 0, len(n.Content)/2)
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" || key.Tag == "!!null" {
			r.failf(key, "a key of %s is %s; expected a name", field, r.kind(key))
			return nil
		}
		if line, ok := first[key.Value]; ok {
			r.failf(key, "%q is in %s twice, first in line %d", yamlfile.Clip(key.Value), field, line)
			return nil
		}
		first[key.Value] = key.Line
		entries = append(entries, entry{key: key, value: n.Content[i+1]})
	}
	return entries
}

// fields hands each of a mapping's entries to the function of its name; one
// without is refused.
func (r *reader) fields(n *yaml.Node, field string, known map[string]func(*yaml.Node), accepted string) {
	for _, e := range r.entries(n, field) {
		read, ok := known[e.key.Value]
		if !ok {
			r.failf(e.key, "%s has no field %q; expected one of %s", field, yamlfile.Clip(e.key.Value), accepted)
			return
		}
		read(e.value)
	}
}

// text gives a scalar as it is written, whatever YAML would take it for: a
// name may look like a number.
func (r *reader) text(n *yaml.Node, field, accepted string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Style&yaml.TaggedStyle != 0 {
		r.failf(n, "%s is %s; expected %s", field, r.kind(n), accepted)
		return ""
	}
	return n.Value
}

// match gives a scalar that a pattern matches.
func (r *reader) match(n *yaml.Node, field string, pattern *regexp.Regexp, accepted string) string {
	value := r.text(n, field, accepted)
	if r.fault == nil && !pattern.MatchString(value) {
		r.refuse(n, field, accepted)
	}
	return value
}

// short gives a scalar of at most so many characters.
func (r *reader) short(n *yaml.Node, field string, most int) string {
	accepted := fmt.Sprintf("at most %d characters", most)
	value := r.text(n, field, accepted)
	if len([]rune(value)) > most {
		r.refuse(n, field, accepted)
	}
	return value
}

// list gives the items of a list, at most so many.
func (r *reader) list(n *yaml.Node, field string, most int) []*yaml.Node {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	switch {
	case n.Kind != yaml.SequenceNode:
		r.failf(n, "%s is %s; expected a list", field, r.kind(n))
		return nil
	case len(n.Content) > most:
		r.failf(n, "%s has %d items; expected at most %d", field, len(n.Content), most)
		return nil
	}
	return n.Content
}

// matches gives a list of scalars that a pattern matches, each once.
func (r *reader) matches(n *yaml.Node, field string, most int, pattern *regexp.Regexp, accepted string) []string {
	items := r.list(n, field, most)
	values := make([]string, 0, len(items))
	seen := make(map[string]struct{}, len(items))
	for _, item := range items {
		value := r.match(item, field, pattern, accepted)
		if _, ok := seen[value]; ok {
			r.failf(item, "%q is in %s twice", yamlfile.Clip(value), field)
		}
		seen[value] = struct{}{}
		values = append(values, value)
	}
	return values
}
