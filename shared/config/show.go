package config

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// hidden stands for a secret.
const hidden = "(hidden)"

// shown is a value fit to be shown: a secret is not, and a password in an
// address is not either.
func (k *Key) shown(texts []string) []string {
	all := make([]string, 0, len(texts))
	for _, text := range texts {
		if k.secret && text != "" {
			text = hidden
		} else if u, err := url.Parse(text); err == nil && u.User != nil {
			text = u.Redacted()
		}
		all = append(all, text)
	}
	return all
}

// Show writes every key with its value and where that comes from, as a table, as
// YAML that a file could hold, or as JSON.
func (t *Table) Show(w io.Writer, format string) error {
	switch format {
	case "table":
		return t.showTable(w)
	case "yaml":
		return t.showYAML(w)
	case "json":
		return t.showJSON(w)
	}
	return errdefs.Field("--output", format, "table, yaml or json")
}

func (t *Table) showTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "KEY\tVALUE\tFROM") // Flush tells the error
	for _, k := range t.keys {
		value := strings.Join(k.shown(k.value.texts()), ",")
		if value == "" {
			value = `""`
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\n", k.Name, value, k.origin)
	}
	return tw.Flush()
}

func (t *Table) showYAML(w io.Writer) error {
	for _, k := range t.keys {
		if _, err := fmt.Fprintf(w, "%s: %s # %s\n", k.Name, k.yaml(k.shown(k.value.texts())), k.origin); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) showJSON(w io.Writer) error {
	type row struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
		From  string `json:"from"`
	}
	rows := make([]row, 0, len(t.keys))
	for _, k := range t.keys {
		r := row{Key: k.Name, From: k.origin.String()}
		if texts := k.shown(k.value.texts()); k.list {
			r.Value = texts
		} else {
			r.Value = texts[0]
		}
		rows = append(rows, r)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(rows)
}

// yaml writes a value as the file has it.
func (k *Key) yaml(texts []string) string {
	items := make([]string, 0, len(texts))
	for _, text := range texts {
		items = append(items, yamlText(text, k.kind == "text" || k.list))
	}
	if k.list {
		return "[" + strings.Join(items, ", ") + "]"
	}
	return items[0]
}

// yamlText quotes a text where YAML would take it for something else, or for
// more than a text.
func yamlText(text string, quote bool) string {
	if !quote {
		return text
	}
	var n yaml.Node
	err := yaml.Unmarshal([]byte("["+text+"]"), &n)
	if err == nil && len(n.Content) == 1 {
		if items := n.Content[0].Content; len(items) == 1 && items[0].Kind == yaml.ScalarNode && items[0].Tag == "!!str" &&
			items[0].Value == text && items[0].Style == 0 && !strings.ContainsAny(text, "#\n") {
			return text
		}
	}
	quoted, err := json.Marshal(text) // a string of JSON is one of YAML
	if err != nil {
		return `""` // a string always encodes
	}
	return string(quoted)
}

// Change is a key whose value differs from the one that the daemon runs with.
type Change struct {
	Key string
	// Old and New are fit to be shown; lists are joined by commas.
	Old, New string
	// Live says that a running daemon takes it over; otherwise it needs a restart.
	Live bool
}

// Changes tells what differs in a next state of the same table.
func (t *Table) Changes(next *Table) []Change {
	var all []Change
	for i, k := range t.keys {
		was, is := k.value.texts(), next.keys[i].value.texts()
		if slices.Equal(was, is) {
			continue
		}
		all = append(all, Change{
			Key: k.Name, Live: k.live,
			Old: strings.Join(k.shown(was), ","), New: strings.Join(k.shown(is), ","),
		})
	}
	return all
}

// Adopt takes over the values of the next table's live keys: they are in force
// now, so that a later Changes compares with them.
func (t *Table) Adopt(next *Table) {
	for i, k := range t.keys {
		if k.live {
			_ = k.value.set(next.keys[i].value.texts()) // it was accepted there
			k.origin = next.keys[i].origin
		}
	}
}
