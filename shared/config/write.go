package config

import (
	"fmt"
	"io"
	"strings"
)

// lineWidth is how long the lines of comments may be.
const lineWidth = 100

// WriteDefault writes a configuration file with every key, commented out, at its
// default.
func (t *Table) WriteDefault(w io.Writer, path string) error {
	var b strings.Builder
	comment := func(indent, text string) {
		for _, line := range wrap(text, lineWidth-len(indent)-2) {
			b.WriteString(indent + "# " + line + "\n")
		}
	}
	comment("", fmt.Sprintf("Configuration of %s: %s. Every key is here, commented out, with its default. "+
		"The environment (%s…) comes before this file, and flags (--key-with-dashes) before both.", t.program, path, t.prefix))
	comment("", fmt.Sprintf("%s config check tells all that is wrong with it; %s config show tells every value and where it comes from. "+
		"Keys marked \"on SIGHUP\" are taken over at systemctl reload; all others need a restart.", t.program, t.program))
	section := ""
	for _, k := range t.keys {
		if k.Section != section {
			section = k.Section
			fmt.Fprintf(&b, "\n## %s\n", section)
		}
		b.WriteString("\n")
		help := strings.ToUpper(k.Help[:1]) + k.Help[1:] + "."
		if k.live {
			help += " Taken over on SIGHUP."
		}
		comment("", help)
		fmt.Fprintf(&b, "#%s: %s\n", k.Name, k.yaml(k.otherwise))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Uncomment gives a default file with its keys in force, and these in their order.
func Uncomment(file string) (bare string, keys []string) {
	var b strings.Builder
	for line := range strings.Lines(file) {
		if key, _, ok := strings.Cut(line, ":"); ok && len(key) > 1 && key[0] == '#' && !strings.ContainsAny(key[1:], " #") {
			keys, line = append(keys, key[1:]), line[1:]
		}
		b.WriteString(line)
	}
	return b.String(), keys
}

// WriteMarkdown writes the table of keys for the documentation.
func (t *Table) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	section := ""
	for _, k := range t.keys {
		if k.Section != section {
			section = k.Section
			fmt.Fprintf(&b, "\n%s:\n\n| key | default | what it is | change |\n| --- | --- | --- | --- |\n", section)
		}
		change := "restart"
		if k.live {
			change = "SIGHUP"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", k.Name, k.yaml(k.otherwise), strings.ReplaceAll(k.Help, "|", "\\|"), change)
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
}

// wrap breaks a text at spaces into lines of so many characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
