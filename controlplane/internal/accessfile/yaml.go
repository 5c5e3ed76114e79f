package accessfile

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// fault is what is wrong with a file, and where.
type fault struct {
	file   string
	line   int
	reason string
}

func (f *fault) Error() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.reason) }

// reader walks the nodes of one document. It keeps the first fault and reads
// on with empty values after it: who is done asks for it.
type reader struct {
	file  string
	fault *fault
	// secret keeps values out of messages: where keys are told of, a mistake may
	// have put one.
	secret bool
}

func (r *reader) failf(at *yaml.Node, format string, args ...any) {
	if r.fault == nil {
		r.fault = &fault{file: r.file, line: at.Line, reason: fmt.Sprintf(format, args...)}
	}
}

// refuse names the field, its value and what would be accepted.
func (r *reader) refuse(at *yaml.Node, field, accepted string) {
	r.failf(at, "%s: %s is not accepted; expected %s", field, r.kind(at), accepted)
}

// clip keeps a value that is quoted in a message to a length fit for a line.
func clip(value string) string {
	const most = 64
	if len(value) > most {
		return strings.ToValidUTF8(value[:most], "") + "…"
	}
	return value
}

// kind names what a node is, for people.
func (r *reader) kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case n.Tag == "!!null":
		return "nothing"
	case n.Style&yaml.TaggedStyle != 0:
		return "a value with a tag"
	case r.secret:
		return "what stands there"
	}
	return fmt.Sprintf("%q", clip(n.Value))
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
			r.failf(key, "%q is in %s twice, first in line %d", clip(key.Value), field, line)
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
			r.failf(e.key, "%s has no field %q; expected one of %s", field, clip(e.key.Value), accepted)
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
			r.failf(item, "%q is in %s twice", clip(value), field)
		}
		seen[value] = struct{}{}
		values = append(values, value)
	}
	return values
}

// document gives the root of the one document that the content holds; nil for
// an empty one.
func document(file string, content []byte) (*yaml.Node, error) {
	if err := legible(file, content); err != nil {
		return nil, err
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	var doc, more yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, syntax(file, err)
	}
	switch err := decoder.Decode(&more); {
	case err == nil:
		return nil, &fault{file: file, line: more.Line, reason: "a second document begins; expected one only"}
	case !errors.Is(err, io.EOF):
		return nil, syntax(file, err)
	}
	if len(doc.Content) != 1 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// lineOf finds the line in the YAML package's own message.
var lineOf = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// below are the messages whose line that package counts from 0.
var below = regexp.MustCompile(`^(did not find expected (<|node content|'-' indicator|key|',' or)|found (duplicate|undefined|incompatible) )`)

// syntax says where YAML itself is broken, in our form.
func syntax(file string, err error) error {
	message, _, _ := strings.Cut(err.Error(), "\n")
	found := lineOf.FindStringSubmatch(message)
	line, numbered := 1, found[1] != ""
	if numbered {
		_, _ = fmt.Sscan(found[1], &line) // digits only
	}
	if numbered && below.MatchString(found[2]) {
		line++
	}
	return &fault{file: file, line: line, reason: "it is no YAML: " + clip(found[2])}
}

// legible refuses what is no text, which the YAML package does without a line.
func legible(file string, content []byte) error {
	line := 1
	for rest := content; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return &fault{file: file, line: line, reason: "it is not UTF-8 text"}
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return &fault{file: file, line: line, reason: fmt.Sprintf("it holds the control character %#x", r)}
		}
		rest = rest[size:]
	}
	return nil
}
