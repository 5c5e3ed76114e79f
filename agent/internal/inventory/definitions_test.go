package inventory

import (
	"testing"
	"testing/synctest"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// defined is a domain with a definition of so many KiB.
func defined(uuid, hash string, kib uint64) *agentv1.Domain {
	return &agentv1.Domain{Uuid: uuid, Name: uuid, State: running, MemoryBytes: kib << 10, DefinitionHash: hash}
}

// definitionsTold takes all that is told of definitions, as uuid=hash by message.
func definitionsTold(t *testing.T, c *Collector) (messages []string) {
	t.Helper()
	for {
		inv := c.Inventory(false)
		if inv == nil {
			return messages
		}
		if len(inv.GetDefinitions()) == 0 {
			continue
		}
		if len(inv.GetDomains())+len(inv.GetGone()) > 0 || inv.GetComplete() || inv.GetCapacity() != nil {
			t.Errorf("definitions come with %v", inv)
		}
		message := ""
		for _, d := range inv.GetDefinitions() {
			message += d.GetUuid() + "=" + d.GetHash() + " "
		}
		messages = append(messages, message)
	}
}

func TestDefinitionsAreToldOnceASession(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{
		"a": defined("a", "1", 200), "b": defined("b", "1", 200), "c": defined("c", "1", 200), "d": defined("d", "", 1),
	}}
	in(t, l, func(t *testing.T, c *Collector) {
		told := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			got := definitionsTold(t, c)
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || got[i] != want[i] {
					t.Fatalf("%s: told is %q, want %q", what, got, want)
				}
			}
		}
		if inv := c.Inventory(true); len(inv.GetDomains()) != 4 || len(inv.GetDefinitions()) > 0 {
			t.Errorf("the first message is %v", inv)
		}
		select {
		case <-c.Changed():
		default:
			t.Error("nobody hears that definitions are to be told")
		}
		told("a session begins", "a=1 b=1 ", "c=1 ")
		told("nothing happens")
		l.set("a", defined("a", "2", 201))
		l.set("b", nil)
		told("one is changed, one gone", "a=2 ")
		l.set("a", &agentv1.Domain{Uuid: "a", DefinitionHash: "2", MemoryBytes: 201 << 10})
		told("its state alone has changed")
		l.set("c", defined("c", "", 1))
		told("one has become transient")
		l.set("c", defined("c", "1", 200))
		told("and persistent again", "c=1 ")
		c.Inventory(true)
		told("another session", "a=2 c=1 ")
	})
}
