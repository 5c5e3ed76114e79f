package inventory

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func TestCPUDescriptions(t *testing.T) {
	i, _ := leading(t, cluster.Empty())
	tell := func(node string, complete bool, cpus ...*agentv1.CPUDescription) {
		i.Report(node, &agentv1.Inventory{Complete: complete, Cpus: cpus})
	}
	cpu := func(hash, xml string) *agentv1.CPUDescription { return &agentv1.CPUDescription{Hash: hash, Xml: xml} }
	knows := func(when, hash, want string) {
		t.Helper()
		got, ok := i.CPU(hash)
		if got.GetXml() != want || ok != (want != "") {
			t.Errorf("%s: CPU %s is %v, %v; want %q", when, hash, got, ok, want)
		}
	}
	i.Greet("a", "boot")
	tell("a", true, cpu("h1", "<cpu/>"))
	tell("a", false, cpu("h2", "<cpu mode='x'/>"), cpu("", "none"), cpu("big", strings.Repeat("x", maxCPUBytes)))
	knows("told at first", "h1", "<cpu/>")
	knows("told later", "h2", "<cpu mode='x'/>")
	knows("without a hash", "", "")
	knows("too large", "big", "")
	tell("a", true) // libvirt was restarted: each is told once a session
	knows("after another complete inventory", "h1", "<cpu/>")

	i.Greet("a", "boot")
	knows("between two sessions", "h1", "<cpu/>")
	tell("a", true, cpu("h2", "<cpu mode='x'/>"))
	knows("not told in the new session", "h1", "")
	knows("told again", "h2", "<cpu mode='x'/>")

	tell("b", true, cpu("h2", "<cpu mode='x'/>"))
	knows("told by two", "h2", "<cpu mode='x'/>")
	tell("c", true, cpu("h2", "<cpu/>"))
	knows("told differently by two", "h2", "")

	i.end()
	knows("not leading any more", "h2", "")
}
