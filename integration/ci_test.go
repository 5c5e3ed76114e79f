package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// blocks are the commands of a guide: what its blocks of ```bash hold, in their order.
func blocks(t *testing.T, path string) []string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for rest := string(raw); ; {
		_, after, more := strings.Cut(rest, "\n```bash\n")
		if !more {
			return all
		}
		block, next, closed := strings.Cut(after, "\n```\n")
		if !closed {
			t.Fatalf("%s: a block has no end", path)
		}
		all, rest = append(all, block+"\n"), "\n"+next
	}
}

// TestCIGuide runs the commands of docs/ci.md as they stand, with the real curl, in the place of a CI job.
func TestCIGuide(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	first := c.Replicas[0]
	dir := c.workDir("ci-guide")
	_, err := c.Operator.Run(c.within(time.Minute), c.Program("debvisor-rpcd"), "client", "--data-dir", first.Data, "--name", "ci-cert", "--out", dir)
	c.must(err)
	_, err = c.Hvctl(c.within(time.Minute), a.replica, "principal", "set", "ci-cert", "--type", "service", "--role", "viewer")
	c.must(err)

	all := blocks(t, "../docs/ci.md")
	if len(all) < 7 {
		t.Fatalf("docs/ci.md has %d blocks of commands only", len(all))
	}
	// Only where they are run is said here, and that the first failure ends them.
	script := "cd " + dir + "\nset -Eeuo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n" + strings.Join(all, "")
	env := append(c.HvctlEnv(a.replica),
		"PATH="+filepath.Dir(c.Program("hvctl"))+":/usr/bin:/bin", "HOME="+dir,
		"DEBVISOR_URL="+a.replica.Gateway(), "DEBVISOR_CA="+first.PKI("ca.pem"), "VM="+g.Name,
		"DEBVISOR_CERT="+filepath.Join(dir, "ci-cert.pem"), "DEBVISOR_CERT_KEY="+filepath.Join(dir, "ci-cert-key.pem"),
	)
	out, err := c.Operator.RunInput(c.within(3*time.Minute), env, strings.NewReader(script), "bash")
	t.Logf("it says:\n%s", out)
	if key, unread := os.ReadFile(filepath.Join(dir, "ci.key")); unread == nil {
		c.secret(strings.TrimSpace(string(key)))
	}
	c.must(err)
	for _, want := range []string{
		"ci by CREDENTIAL_KIND_API_KEY", "to " + g.to.Name + ",", "OPERATION_STATE_SUCCEEDED", "403 PERMISSION_DENIED:", " OPERATION_STATE_SUCCEEDED ci\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it says nothing of %q", want)
		}
	}
	g.arrived()
	c.watchedByLine(filepath.Join(dir, "watched.ndjson"), g)
	c.auditedFrom(c.Operator.Addr, "ci")
}

// watchedByLine checks what a watch of the move has left: the operation's states in their order, one a line.
func (c *cluster) watchedByLine(path string, g *mover) {
	c.t.Helper()
	f, err := os.Open(path)
	c.must(err)
	defer func() { _ = f.Close() }()
	var states []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var op struct {
			ID, Kind, State string
			Migration       struct {
				VMID string `json:"vm_id"`
			}
		}
		c.must(json.Unmarshal(lines.Bytes(), &op))
		if op.Kind != "migrate" || op.Migration.VMID != g.UUID {
			c.t.Fatalf("the watch has %s", lines.Bytes())
		}
		states = append(states, op.State)
	}
	final := debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED.String()
	if n := len(states); n < 2 || states[n-1] != final || slices.Contains(states[:n-1], final) {
		c.t.Errorf("the watch has the states %v", states)
	}
}

// auditedFrom checks that the audit log of some replica has the principal's move, from that address.
func (c *cluster) auditedFrom(address, principal string) {
	c.t.Helper()
	c.eventually(10*time.Second, "the audit log has the move", func() error {
		for _, r := range c.Replicas {
			raw, err := os.ReadFile(r.Audit())
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(raw)) {
				var e struct{ Event, Principal, Peer, Method, Operation string }
				if json.Unmarshal([]byte(line), &e) == nil && e.Principal == principal && e.Peer == address &&
					e.Event == "rpc_result" && strings.HasSuffix(e.Method, "/MigrateVM") && e.Operation != "" {
					return nil
				}
			}
		}
		return fmt.Errorf("no move of %s from %s", principal, address)
	})
}

// workDir makes a directory in the lab's that goes with it.
func (c *cluster) workDir(name string) string {
	c.t.Helper()
	dir := filepath.Join(c.Dir, name)
	c.must(os.MkdirAll(dir, 0o700))
	return dir
}
