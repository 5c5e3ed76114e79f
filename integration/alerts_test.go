package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const rulesDir = "../docs/prometheus"

// alertName is where a rule says what its alert is called.
var alertName = regexp.MustCompile(`(?m)^ *- alert: (\S+)$`)

// alerts are the names of all alerts, in the order of the rules.
func alerts(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(rulesDir, "debvisor.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range alertName.FindAllStringSubmatch(string(raw), -1) {
		names = append(names, m[1])
	}
	if len(names) < 20 {
		t.Fatalf("there are %d alerts only: %v", len(names), names)
	}
	return names
}

// promtool runs Debian's promtool on the files in docs.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir = rulesDir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestAlertRules has promtool check the rules and the example of a configuration, and run the rules' tests, of which each alert has
// at least one in which it fires and another moment at which it does not.
func TestAlertRules(t *testing.T) {
	tests := []string{"debvisor.rules.test.yml", "debvisor.rules.days.test.yml"}
	promtool(t, "check", "rules", "debvisor.rules.yml")
	promtool(t, "check", "config", "--syntax-only", "prometheus.yml")
	promtool(t, append([]string{"test", "rules"}, tests...)...)
	var all []byte
	for _, name := range tests {
		raw, err := os.ReadFile(filepath.Join(rulesDir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, raw...)
	}
	for _, name := range alerts(t) {
		if !bytes.Contains(all, []byte(`{alertname="`+name+`"}`)) {
			t.Errorf("no test has %s fire", name)
		}
	}
}

// TestAlertsDocumented compares docs/alerts.md with the rules: each alert has its chapter there, to which the rule points.
func TestAlertsDocumented(t *testing.T) {
	guide, err := os.ReadFile("../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(filepath.Join(rulesDir, "debvisor.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	names := alerts(t)
	for _, name := range names {
		if !strings.Contains(string(guide), "\n### "+name+"\n") {
			t.Errorf("docs/alerts.md has nothing of %s", name)
		}
		if !strings.Contains(string(rules), "runbook: docs/alerts.md#"+strings.ToLower(name)+"\n") {
			t.Errorf("%s does not point to its chapter", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)$`).FindAllStringSubmatch(string(guide), -1) {
		if !slices.Contains(names, m[1]) {
			t.Errorf("docs/alerts.md has %s, which is no alert", m[1])
		}
	}
}
