package inventory_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// defined is a domain that has that definition; empty: none.
func defined(uuid, definition string, state debvisorv1.VMState, bound ...string) *agentv1.Domain {
	d := dom(uuid, state)
	d.BoundToHost = bound
	if definition != "" {
		d.DefinitionHash = "hash of " + definition[:min(len(definition), 20)]
	}
	return d
}

func (l *leader) define(node, uuid, definition string) {
	l.Report(node, &agentv1.Inventory{Definitions: []*agentv1.DomainDefinition{{
		Uuid: uuid, Hash: "hash of " + definition[:min(len(definition), 20)], Xml: definition,
	}}})
}

// TestDefinitions: what is kept of a VM's definition is what the node says that it
// belongs to, for as long as there is the VM.
func TestDefinitions(t *testing.T) {
	l := newLeader(t)
	l.lead()
	// is waits until what is kept is "node generation text [bound]"; "none": nothing.
	is := func(what, want string) {
		t.Helper()
		l.eventually(what, func(s *cluster.Snapshot) bool {
			got := "none"
			if e, ok := s.Definitions["v"]; ok {
				d := e.Value
				got = strings.TrimSpace(fmt.Sprintf("%s %d %s %s", d.GetNode(), d.GetGeneration(), d.GetXml(), strings.Join(d.GetBoundToHost(), ",")))
				if d.GetVmUuid() != "v" || !d.GetReportedAt().IsValid() {
					t.Errorf("the record is %v", d)
				}
			}
			return got == want
		})
	}
	// passed waits until all that was reported before has been looked at.
	passed := func() {
		t.Helper()
		for _, d := range []*agentv1.Domain{dom("w", off), nil} {
			inv := &agentv1.Inventory{Gone: []string{"w"}}
			if d != nil {
				inv = &agentv1.Inventory{Domains: []*agentv1.Domain{d}}
			}
			l.Report("b", inv)
			l.eventually("a look", func(s *cluster.Snapshot) bool { _, ok := s.VMs["w"]; return ok == (d != nil) })
		}
	}
	l.session("b", "boot")
	l.session("a", "boot", defined("v", "one", running))
	l.define("a", "v", "one")
	is("told", "a 1 one")
	l.Report("a", &agentv1.Inventory{Domains: []*agentv1.Domain{defined("v", "two", running, "a TPM")}})
	passed()
	is("the new one is still to be told", "a 1 one")
	l.define("a", "v", "two")
	is("changed", "a 1 two a TPM")
	written := l.view.Current().Definitions["v"].ModRevision

	l.lead()
	l.session("b", "boot", defined("v", "other", off))
	l.define("b", "v", "other")
	l.session("a", "boot", defined("v", "two", running, "a TPM"))
	l.define("a", "v", "two")
	passed()
	if now := l.view.Current().Definitions["v"]; now.ModRevision != written || now.Value.GetXml() != "two" {
		t.Errorf("written again, or by another node: %v", now)
	}
	l.Report("a", &agentv1.Inventory{Gone: []string{"v"}})
	is("adopted by another node", "b 2 other")
	l.Report("b", &agentv1.Inventory{Domains: []*agentv1.Domain{defined("v", "", running, "its definition is too large")}})
	is("it has none any more", "none")
	large := strings.Repeat("x", 256<<10+1)
	l.Report("b", &agentv1.Inventory{Domains: []*agentv1.Domain{defined("v", large, running)}})
	l.define("b", "v", large)
	passed()
	is("larger than any agent tells", "none")
	l.Report("b", &agentv1.Inventory{Domains: []*agentv1.Domain{defined("v", "three", running)}})
	l.define("b", "v", "three")
	is("again", "b 2 three")
	if _, err := l.Open(t.Context(), "b", inventory.Facts{JournalID: "j", BootID: "boot"}); err != nil {
		t.Fatal(err)
	}
	l.Report("b", &agentv1.Inventory{Complete: true, LibvirtDown: true})
	kept := l.view.Current().Definitions["v"]
	if kept.Value.GetXml() != "three" {
		t.Errorf("libvirt is down, and kept is %v", kept)
	}
	l.Report("b", &agentv1.Inventory{Complete: true})
	is("gone with the VM", "none")
}
