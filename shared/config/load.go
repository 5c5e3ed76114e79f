package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/yamlfile"
)

// maxBytes is the most that a configuration file may hold.
const maxBytes = 1 << 20

// Source says where values come from.
type Source struct {
	// File is the path of the YAML file; empty: there is none.
	File string
	// Optional says that the file need not exist.
	Optional bool
	// Env looks a variable of the environment up; nil: os.LookupEnv. One that is
	// empty says nothing.
	Env func(string) (string, bool)
	// Flags are what the command line has said of keys, by the names of flags, as
	// Given gives it.
	Flags map[string][]string
}

// origin is where a value is from; the zero one is the default.
type origin struct {
	file string
	line int
	env  string
	flag string
}

// String is for people: "default", "FILE:LINE", "environment NAME", "flag --x".
func (o origin) String() string {
	switch {
	case o.flag != "":
		return "flag --" + o.flag
	case o.env != "":
		return "environment " + o.env
	case o.file != "":
		return fmt.Sprintf("%s:%d", o.file, o.line)
	}
	return "default"
}

// fault says what is wrong with a key's value, and where that stands.
func (k *Key) fault(o origin, reason string) error {
	switch {
	case o.flag != "":
		return errors.New("--" + o.flag + ": " + reason)
	case o.env != "":
		return errors.New(o.env + " in the environment: " + reason)
	case o.file != "":
		return &yamlfile.Fault{File: o.file, Line: o.line, Reason: k.Name + ": " + reason}
	}
	return errors.New(k.Name + ": " + reason)
}

// Load fills the variables behind the keys. The error joins all that is wrong,
// each with its place, one line each; what is wrong is at its default then.
func (t *Table) Load(src Source) error {
	for _, k := range t.keys {
		_ = k.value.set(k.otherwise) // a default is well-formed, and an empty list has no items
		k.origin = origin{}
	}
	t.file = ""
	errs := t.loadFile(src)
	look := src.Env
	if look == nil {
		look = os.LookupEnv
	}
	for _, k := range t.keys {
		if text, ok := look(k.Env); ok && text != "" {
			texts := []string{text}
			if k.list {
				texts = strings.Split(text, ",")
			}
			errs = append(errs, k.take(texts, origin{env: k.Env}))
		}
		if texts := src.Flags[k.Flag()]; texts != nil {
			errs = append(errs, k.take(texts, origin{flag: k.Flag()}))
		}
	}
	return errors.Join(errs...)
}

// take sets a key's value.
func (k *Key) take(texts []string, o origin) error {
	k.origin = o
	accepted := k.value.set(texts)
	if accepted == nil {
		return nil
	}
	_ = k.value.set(k.otherwise) // what is judged later must not be half a value
	shown := fmt.Sprintf("%q", yamlfile.Clip(strings.Join(texts, ",")))
	if k.secret {
		shown = "what stands there"
	}
	return k.fault(o, shown+" is not accepted; expected "+accepted.Error())
}

func (t *Table) loadFile(src Source) []error {
	if src.File == "" {
		return nil
	}
	content, _, err := yamlfile.Read(src.File, maxBytes)
	switch {
	case src.Optional && errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return []error{err}
	case len(content) > maxBytes:
		return []error{fmt.Errorf("%s: it has more than %d bytes", src.File, maxBytes)}
	}
	t.file = src.File
	root, err := yamlfile.Document(src.File, content)
	if err != nil {
		return []error{err}
	}
	if root == nil || root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return []error{&yamlfile.Fault{File: src.File, Line: root.Line, Reason: "the file is " + yamlfile.Kind(root) + "; expected keys with their values"}}
	}
	var errs []error
	first := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		fail := func(format string, args ...any) {
			errs = append(errs, &yamlfile.Fault{File: src.File, Line: key.Line, Reason: fmt.Sprintf(format, args...)})
		}
		k := t.byName[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge" || key.Tag == "!!null":
			fail("a key is %s; expected a name", yamlfile.Kind(key))
		case first[key.Value] != 0:
			fail("%q is there twice, first in line %d", yamlfile.Clip(key.Value), first[key.Value])
		case k == nil:
			fail("there is no key %q; %s", yamlfile.Clip(key.Value), t.suggestion(key.Value))
		default:
			errs = append(errs, k.fromNode(src.File, value))
		}
		first[key.Value] = key.Line
	}
	return errs
}

// fromNode takes a value of the file.
func (k *Key) fromNode(file string, n *yaml.Node) error {
	o := origin{file: file, line: n.Line}
	refuse := func(expected string) error {
		kind := yamlfile.Kind(n)
		if k.secret && n.Kind == yaml.ScalarNode {
			kind = "what stands there"
		}
		return k.fault(o, kind+" is not accepted; expected "+expected)
	}
	plain := func(n *yaml.Node) bool {
		return n.Kind == yaml.ScalarNode && n.Tag != "!!null" && n.Style&yaml.TaggedStyle == 0
	}
	switch {
	case plain(n):
		if k.list && n.Value == "" {
			return refuse(k.accepted())
		}
		return k.take([]string{n.Value}, o)
	case k.list && n.Kind == yaml.SequenceNode:
		texts := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if !plain(item) {
				o.line = item.Line
				return k.fault(o, "an item is "+yamlfile.Kind(item)+"; expected a text")
			}
			texts = append(texts, item.Value)
		}
		return k.take(texts, o)
	}
	return refuse(k.accepted())
}

// accepted says what a key's value looks like.
func (k *Key) accepted() string {
	switch k.kind {
	case "list":
		return "a list such as [a, b], or one text"
	case "text":
		return `a text; "" for none`
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 90s, 5m, 36h or 30d"
	}
	return "a number"
}

// Locate says of what has been found wrong with values where these stand: an
// error with the context "field", which names a key or its flag, gets the place
// in the file or the environment. Errors that are joined are each looked at.
func (t *Table) Locate(err error) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, t.Locate(e))
		}
		return errors.Join(errs...)
	}
	var e *errdefs.Error
	if !errors.As(err, &e) {
		return err
	}
	k := t.byName[strings.ReplaceAll(strings.TrimPrefix(e.Context["field"], "--"), "-", "_")]
	if k == nil || k.origin == (origin{}) || k.origin.flag != "" {
		return err
	}
	_, reason, found := strings.Cut(e.Message, e.Context["field"]+": ")
	if !found {
		reason = e.Message
	}
	return k.fault(k.origin, reason)
}

// Given is what the command line has said, for another table of the same keys.
func (t *Table) Given() map[string][]string {
	given := map[string][]string{}
	for _, k := range t.keys {
		if k.given != nil {
			given[k.Flag()] = slices.Clone(k.given)
		}
	}
	return given
}

// Each gives the parts of a joined error, in their order; the error itself
// where it is none.
func Each(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, Each(e)...)
	}
	return all
}

// Brief is an error in one line: its first part, and how many more there are.
func Brief(err error) string {
	all := Each(err)
	if len(all) == 0 {
		return ""
	}
	first, _, _ := strings.Cut(all[0].Error(), "\n")
	if len(all) > 1 {
		first += fmt.Sprintf(" (and %d more)", len(all)-1)
	}
	return first
}
