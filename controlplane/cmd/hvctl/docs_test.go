package main

import (
	"fmt"
	"os"
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
		if c.HasSubCommands() {
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
