// Package yamlfile reads the one YAML document of a file that people write. What
// is wrong with it is told in one line that names the file and the line.
package yamlfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Fault is what is wrong with a file, and where.
type Fault struct {
	File   string
	Line   int
	Reason string
}

// Error is "FILE:LINE: reason".
func (f *Fault) Error() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Reason) }

// Read reads a file of at most so many bytes, which must be a regular one that
// not everybody may write to. The info is of what was opened, nil where nothing
// could be; the error names the path.
func Read(path string, most int64) (content []byte, info fs.FileInfo, err error) {
	// Not to wait for a writer, should it be a pipe.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	defer func() { _ = file.Close() }()
	if info, err = file.Stat(); err != nil {
		return nil, nil, unreadable(path, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, info, fmt.Errorf("%s: it is not a regular file", path)
	case info.Mode().Perm()&0o002 != 0:
		return nil, info, fmt.Errorf("%s: anyone on this host can write to it (mode %04o); chmod o-w it", path, info.Mode().Perm())
	}
	if content, err = io.ReadAll(io.LimitReader(file, most+1)); err != nil {
		return nil, info, unreadable(path, err)
	}
	return content, info, nil
}

func unreadable(path string, err error) error {
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err
	}
	return fmt.Errorf("%s: it cannot be read: %w", path, err)
}

// Document gives the root of the one document that the content holds, nil for
// an empty one. The error is a *Fault with the file's name.
func Document(file string, content []byte) (*yaml.Node, error) {
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
		return nil, &Fault{File: file, Line: more.Line, Reason: "a second document begins; expected one only"}
	case !errors.Is(err, io.EOF):
		return nil, syntax(file, err)
	}
	if len(doc.Content) != 1 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// Clip keeps a value that is quoted in a message to a length fit for a line.
func Clip(value string) string {
	const most = 64
	if len(value) > most {
		return strings.ToValidUTF8(value[:most], "") + "…"
	}
	return value
}

// Kind names what a node is, for people.
func Kind(n *yaml.Node) string {
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
	}
	return fmt.Sprintf("%q", Clip(n.Value))
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
	return &Fault{File: file, Line: line, Reason: "it is no YAML: " + Clip(found[2])}
}

// legible refuses what is no text, which the YAML package does without a line.
func legible(file string, content []byte) error {
	line := 1
	for rest := content; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return &Fault{File: file, Line: line, Reason: "it is not UTF-8 text"}
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return &Fault{File: file, Line: line, Reason: fmt.Sprintf("it holds the control character %#x", r)}
		}
		rest = rest[size:]
	}
	return nil
}
