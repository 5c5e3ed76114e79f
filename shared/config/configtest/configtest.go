// Package configtest holds the files that are made from a daemon's keys, the
// default file and its part of the documentation, against these. With UPDATE=1
// in the environment they are written.
package configtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/debvisor/debvisor/shared/config"
)

// Made checks a daemon's default file, and that it says the defaults, and its
// part of docs/configuration.md, which stands between two comments that name the
// program. root is the repository's, as seen from the test.
func Made(t *testing.T, d config.Daemon, root, file string) {
	t.Helper()
	table, _, _ := d.Fresh()
	var text, markdown strings.Builder
	if err := table.WriteDefault(&text, d.File); err != nil {
		t.Fatal(err)
	}
	if err := table.WriteMarkdown(&markdown); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(root, file), func(string) string { return text.String() })
	begin, end := "<!-- keys of "+d.Program+" -->\n", "<!-- end of the keys of "+d.Program+" -->\n"
	same(t, filepath.Join(root, "docs", "configuration.md"), func(old string) string {
		before, rest, found := strings.Cut(old, begin)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			t.Fatalf("docs/configuration.md lacks %s or %s", begin, end)
		}
		return before + begin + markdown.String() + end + after
	})
	saysDefaults(t, d, text.String())
}

// saysDefaults checks the default file as it is, and with all its keys in force.
func saysDefaults(t *testing.T, d config.Daemon, file string) {
	t.Helper()
	bare, keys := config.Uncomment(file)
	nothing := func(string) (string, bool) { return "", false }
	for i, content := range []string{file, bare} {
		path := filepath.Join(t.TempDir(), "d.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		defaults, _, _ := d.Fresh()
		got, judge, _ := d.Fresh()
		if err := got.Load(config.Source{File: path, Env: nothing}); err != nil {
			t.Fatal(err)
		}
		if err := judge(); err != nil {
			t.Errorf("the default file's values are refused: %v", err)
		}
		if changes := defaults.Changes(got); len(changes) > 0 {
			t.Errorf("the default file (%d) says other than the defaults: %v", i, changes)
		}
	}
	table, _, _ := d.Fresh()
	var names []string
	for _, k := range table.Keys() {
		names = append(names, k.Name)
	}
	if !slices.Equal(keys, names) {
		t.Errorf("the default file has the keys %v, not %v", keys, names)
	}
}

// same compares a file with what it should hold, or writes that.
func same(t *testing.T, path string, want func(old string) string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil && os.Getenv("UPDATE") == "" {
		t.Fatal(err)
	}
	text := want(string(raw))
	if text == string(raw) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Errorf("%s is not what the keys make: UPDATE=1 go test writes it", path)
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Flags checks that every flag of a daemon's command is a key, so that the file
// can say all that the command line can.
func Flags(t *testing.T, d config.Daemon, cmd *cobra.Command) {
	t.Helper()
	table, _, _ := d.Fresh()
	known := map[string]bool{"config": true, "help": true}
	for _, k := range table.Keys() {
		known[k.Flag()] = true
		if cmd.Flags().Lookup(k.Flag()) == nil {
			t.Errorf("%s has no flag --%s", cmd.CommandPath(), k.Flag())
		}
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !known[f.Name] {
			t.Errorf("--%s of %s is no key of the configuration: add it to the table", f.Name, cmd.CommandPath())
		}
	})
}
