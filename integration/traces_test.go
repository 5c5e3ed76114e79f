package integration

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs/obstest"
)

// TestTraceOfAMigration follows one migration from hvctl through a replica that does not lead, its operation and the leader to
// both agents, in a collector and in all logs.
func TestTraceOfAMigration(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	col := c.collector()
	c.traced(col)
	a, _ := c.follower()
	marks := map[string]logMark{}
	for _, r := range c.Replicas {
		marks[r.Name] = c.mark(r.LogFile())
	}
	for _, n := range c.Nodes {
		marks[n.Name] = c.mark(n.Agent.LogFile())
	}

	token, err := c.Hvctl(c.within(time.Minute), a.replica, "token", "create", "--replica")
	c.must(err)
	words := strings.Fields(token)
	c.secret(words[len(words)-1])
	out, err := c.Hvctl(c.within(time.Minute), a.replica, "--trace-endpoint", col.endpoint, "--trace-ca", col.ca,
		"-o", "json", "migrate", "run", g.Name, "--to", g.to.Name)
	c.must(err)
	op := &debvisorv1.Operation{}
	c.must(protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(out), op))
	g.arrived()

	var whole obstest.Tree
	c.eventually(20*time.Second, "one whole trace", func() error {
		var err error
		if whole, err = col.Tree(op.GetTraceId()); err != nil {
			return err
		}
		return c.isMigration(whole, g, a.replica)
	})
	t.Logf("%d spans:\n%s", len(whole), whole)
	for _, s := range whole {
		if id := s.Attribute("debvisor.operation_id"); id != "" && id != op.GetId() {
			t.Errorf("%v is said to be of operation %s, and not of %s", s, id, op.GetId())
		}
	}
	for _, secret := range append(c.Tokens(), c.shared.secrets...) {
		if bytes.Contains(col.All(), []byte(core(secret))) {
			t.Errorf("the collector was told the secret %.12s…", secret)
		}
	}
	told := 0
	for name, mark := range marks {
		told += c.tells(name, mark, op)
	}
	t.Logf("%d lines in the logs of %d programs", told, len(marks))
}

// isMigration checks that a trace is that of a migration.
func (c *cluster) isMigration(whole obstest.Tree, g *mover, asked *lab.Replica) error {
	root, err := whole.Root()
	if err != nil {
		return err
	}
	if root.GetName() != "hvctl migrate run" || root.From != "hvctl" {
		return fmt.Errorf("all is below %v\n%s", root, whole)
	}
	const call = "debvisor.v1.MigrationService/MigrateVM"
	rpcd, operation := "debvisor-rpcd of ", []string{"hvctl migrate run", call, call, "operation migrate"}
	for _, want := range []struct {
		name, from string
		above      []string
	}{
		{call, "hvctl", operation[:1]},
		{call, rpcd + asked.Name, operation[:2]},
		{"operation migrate", "", operation[:3]},
		{"task migrate-receive", "", operation},
		{"task migrate-send", "", operation},
		{"do migrate-receive", "debvisor-agent of " + g.to.Name, append(slices.Clone(operation), "task migrate-receive")},
		{"do migrate-send", "debvisor-agent of " + g.from.Name, append(slices.Clone(operation), "task migrate-send")},
		{"open tunnel", "debvisor-agent of " + g.to.Name, append(slices.Clone(operation), "task migrate-receive", "do migrate-receive")},
		{"libvirt: migrating domain", "debvisor-agent of " + g.from.Name, append(slices.Clone(operation), "task migrate-send", "do migrate-send")},
		{"libvirt: resuming domain", "debvisor-agent of " + g.to.Name, append(slices.Clone(operation), "task migrate-receive", "do migrate-receive")},
	} {
		s, err := whole.Named(want.name, want.from)
		for _, r := range c.Replicas { // whoever led then
			if want.from == "" && err != nil {
				s, err = whole.Named(want.name, rpcd+r.Name)
			}
		}
		if err != nil {
			return err
		}
		if above := whole.Above(s); !slices.Equal(above, want.above) {
			return fmt.Errorf("above %v is %q, want %q\n%s", s, above, want.above, whole)
		}
		if s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
			return fmt.Errorf("%v ended before it began", s)
		}
	}
	for _, s := range whole {
		if strings.HasPrefix(s.GetName(), "step: ") && whole[s.Parent()].GetName() == "operation migrate" {
			return nil
		}
	}
	return fmt.Errorf("the operation has no steps\n%s", whole)
}

// tells checks all lines of a log that are in the way of a migration, and gives how many there are: those that name it, and those
// of the packages that are at nothing else meanwhile.
func (c *cluster) tells(name string, mark logMark, op *debvisorv1.Operation) (lines int) {
	c.t.Helper()
	for _, line := range mark.lines() {
		ours := strings.Contains(line, op.GetId())
		for _, of := range []string{"debvisor-agent.worker:", "debvisor-agent.migration:", "debvisor-agent.tunnel:", "debvisor-rpcd.migrate:"} {
			ours = ours || strings.Contains(line, of)
		}
		if !ours {
			continue
		}
		lines++
		if !holds(line, "trace_id="+op.GetTraceId(), "operation_id="+op.GetId()) {
			c.t.Errorf("%s says without its ids: %s", name, line)
		}
		if strings.HasPrefix(name, "n") && !holds(line, "task_id="+op.GetId()+"/") {
			c.t.Errorf("%s says without the task's id: %s", name, line)
		}
	}
	return lines
}
