package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestGuideHasEveryCommandAndExitCode keeps docs/hvctl.md true.
func TestGuideHasEveryCommandAndExitCode(t *testing.T) {
	data, err := os.ReadFile("../../../docs/hvctl.md")
	if err != nil {
		t.Fatal(err)
	}
	guide := string(data)
	for code, meaning := range exitMeanings() {
		if !strings.Contains(guide, fmt.Sprintf("| %d | %s |", code, meaning)) {
			t.Errorf("docs/hvctl.md does not say of exit code %d: %s", code, meaning)
		}
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			visit(sub)
		}
		if c.HasSubCommands() || c.Hidden {
			return
		}
		name := commandName(c)
		if !c.Runnable() {
			name = "help " + name
		}
		if !strings.Contains(guide, "`"+name) {
			t.Errorf("docs/hvctl.md does not have `%s`", name)
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(guide, "--"+f.Name) {
				t.Errorf("docs/hvctl.md does not have --%s of `%s`", f.Name, name)
			}
		})
	}
	visit(newRoot(&app{out: os.Stdout, errOut: os.Stderr}))
}

// written finds hvctl's commands in a line: of a block of code, or between backticks.
var (
	inBlock = regexp.MustCompile(`(?:^|[$( ])hvctl ([a-z-].*)`)
	inLine  = regexp.MustCompile("`hvctl ([^`]+)`")
	// lineEnd is where a command of a shell ends, or its explanation begins.
	lineEnd = regexp.MustCompile(` #|\s+[>|] |; | && | \|\| |\).*|\s+#`)
)

// documented are the commands in a document, each with the place where it stands.
func documented(t *testing.T, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found, fenced := map[string]string{}, false
	for number, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		pattern := inLine
		if fenced {
			pattern = inBlock
		}
		for i, m := range pattern.FindAllStringSubmatch(line, -1) {
			found[fmt.Sprintf("%s:%d.%d", file, number+1, i+1)] = lineEnd.Split(m[1], 2)[0]
		}
	}
	return found
}

// isCommand fails for words that are no command of hvctl's with the flags that they have.
func isCommand(words []string) error {
	root := newRoot(&app{out: os.Stdout, errOut: os.Stderr})
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	for i, w := range rest {
		name, isFlag := strings.CutPrefix(w, "--")
		name, _, _ = strings.Cut(name, "=")
		switch {
		case isFlag && name != "help" && cmd.Flag(name) == nil:
			return fmt.Errorf("%s has no --%s", cmd.CommandPath(), name)
		case i == 0 && !isFlag && cmd.HasSubCommands() && !strings.Contains(cmd.Use, " "):
			return fmt.Errorf("%s has no command %s", cmd.CommandPath(), w)
		}
	}
	return nil
}

// TestDocumentedCommands looks whether the commands in all documents are there, with their flags: those of guides are run by other tests,
// those that an alert or a chapter about a failure names are not, and are needed when there is no time for a mistake.
func TestDocumentedCommands(t *testing.T) {
	files, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "../../../README.md", "../../../CHANGELOG.md")
	looked := 0
	for _, file := range files {
		for where, line := range documented(t, file) {
			words := strings.Fields(line)
			// "cert issue|list" are two commands.
			for _, alternative := range strings.Split(words[min(1, len(words)-1)], "|") {
				one := append([]string(nil), words...)
				one[min(1, len(words)-1)] = alternative
				if err := isCommand(one); err != nil {
					t.Errorf("%s: hvctl %s: %v", where, line, err)
				}
				looked++
			}
		}
	}
	if looked < 200 {
		t.Errorf("%d commands only were found", looked)
	}
}
