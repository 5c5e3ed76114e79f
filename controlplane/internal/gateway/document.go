package gateway

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// openAPI is the OpenAPI document; .ci/generate makes it.
//
//go:embed openapi.json
var openAPI []byte

// document is the OpenAPI document and the paths that it has.
type document struct{ paths []documented }

type documented struct {
	form    *regexp.Regexp
	methods []string
}

var placeholder = regexp.MustCompile(`\\\{[^}]*\\\}`)

func newDocument() (*document, error) {
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	d := &document{}
	for path, item := range doc.Paths {
		form, err := regexp.Compile("^" + placeholder.ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$")
		if err != nil {
			return nil, fmt.Errorf("reading the OpenAPI document: path %s: %w", path, err)
		}
		p := documented{form: form}
		for method := range item {
			p.methods = append(p.methods, strings.ToUpper(method))
		}
		d.paths = append(d.paths, p)
	}
	return d, nil
}

// allowed are the methods of a path, as the header Allow has them.
func (d *document) allowed(path string) string {
	var methods []string
	for _, p := range d.paths {
		if p.form.MatchString(path) {
			methods = append(methods, p.methods...)
		}
	}
	slices.Sort(methods)
	return strings.Join(slices.Compact(methods), ", ")
}

// index is what / answers.
const index = `{"name":"DebVisor","openapi":"/openapi.json","health":"/healthz"}` + "\n"

// open tells what needs no identity, since it is the same for all and no secret.
func open(path string) (body []byte, ok bool) {
	switch path {
	case "/":
		return []byte(index), true
	case "/openapi.json":
		return openAPI, true
	}
	return nil, false
}
