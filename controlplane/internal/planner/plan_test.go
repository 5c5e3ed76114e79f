package planner

import (
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	const two = "node a 16 8\nnode b 16 8\n"
	for name, c := range map[string]struct {
		facts, ask, want string // ask: VM [>target] [<source] [by=operation] [down]
	}{
		"goes":                {two + "vm w a 2", "w >b", "a→b a:ALREADY_THERE"},
		"chosen":              {two + "vm w a 2", "w", "a→b a:ALREADY_THERE"},
		"paused goes":         {two + "vm w a 2 paused", "w", "a→b a:ALREADY_THERE"},
		"most memory":         {two + "node c 16 12\nvm w a 2", "w", "a→c a:ALREADY_THERE"},
		"share, not size":     {two + "node c 64 16\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"idle CPUs":           {"node a 16 8\nnode b 16 8 load=0.9\nnode c 16 8 load=0.1\nvm w a 2", "w", "a→c a:ALREADY_THERE"},
		"same score: by name": {two + "node c 16 8\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"already there":       {two + "vm w a 2", "w >a", "no a:ALREADY_THERE"},
		"wrong source":        {two + "vm w a 2", "w >b <b", "no WRONG_SOURCE a:ALREADY_THERE"},
		"right source":        {two + "vm w a 2", "w >b <a", "a→b a:ALREADY_THERE"},
		"no such VM":          {two, "w", "no VM_NOT_FOUND"},
		"no such node":        {two + "vm w a 2", "w >z", "no a:ALREADY_THERE z:NODE_NOT_FOUND"},
		"no other node":       {"node a 16 8\nvm w a 2", "w", "no a:ALREADY_THERE"},
		"cordoned":            {"node a 16 8\nnode b 16 8 cordoned\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_CORDONED"},
		"from cordoned":       {"node a 16 8 cordoned\nnode b 16 8\nvm w a 2", "w", "a→b a:ALREADY_THERE a:NODE_CORDONED"},
		"suspect":             {"node a 16 8\nnode b 16 8 suspect\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE"},
		"unreachable":         {"node a 16 8\nnode b 16 8 unreachable\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE"},
		"never heard":         {"node a 16 8\nnode b 16 8 new\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE b:CAPACITY_UNKNOWN"},
		"libvirt down":        {"node a 16 8\nnode b 16 8 nolibvirt\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_LIBVIRT_DOWN"},
		"capacity unknown":    {"node a 16 8\nnode b 16 8 nocapacity\nvm w a 2", "w", "no a:ALREADY_THERE b:CAPACITY_UNKNOWN"},
		"source not heard": {
			"node a 16 8 unreachable nolibvirt\nnode b 16 8\nvm w a 2", "w",
			"no SOURCE_NOT_REACHABLE SOURCE_LIBVIRT_DOWN a:ALREADY_THERE a:NODE_NOT_REACHABLE a:NODE_LIBVIRT_DOWN",
		},
		"memory to the byte": {"node a 16 8\nnode b 16 2.25\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"memory":             {"node a 16 8\nnode b 16 2.2\nvm w a 2", "w", "no a:ALREADY_THERE b:MEMORY"},
		"overhead grows":     {"node a 64 8\nnode b 64 32.9\nvm w a 32", "w", "no a:ALREADY_THERE b:MEMORY"},
		"VMs may use more":   {"node a 16 8\nnode b 16 12 vms=14\nvm w a 2", "w", "no a:ALREADY_THERE b:MEMORY"},
		"placed since":       {"node a 16 8\nnode b 16 12\nvm w a 2\nvm x b 8\nvm y b 6\nvm z b 9 off", "w", "no a:ALREADY_THERE b:MEMORY"},
		"promised":           {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2\nop o x b", "w", "no a:ALREADY_THERE b:MEMORY"},
		"promise kept":       {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x b 2\nop o x b", "w", "a→b a:ALREADY_THERE"},
		"promise ended":      {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2\nop o x b ended", "w", "a→b a:ALREADY_THERE"},
		"promise elsewhere":  {two + "node c 16 4\nvm w a 2\nvm x a 2\nop o x b", "w >c", "a→c a:ALREADY_THERE"},
		"promise spreads":    {two + "node c 16 8\nvm w a 2\nvm x a 2\nop o x b", "w", "a→c a:ALREADY_THERE"},
		"being started":      {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x b 2 off\nop o x start", "w", "no a:ALREADY_THERE b:MEMORY"},
		"started":            {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x b 2\nop o x start", "w", "a→b a:ALREADY_THERE"},
		"start has ended":    {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x b 2 off\nop o x start ended", "w", "a→b a:ALREADY_THERE"},
		"in use":             {two + "vm w a 2\nop o w b", "w >b", "no VM_IN_USE a:ALREADY_THERE"},
		"in use by itself":   {"node a 16 8\nnode b 16 2.5\nvm w a 2\nop o w b", "w >b by=o", "a→b a:ALREADY_THERE"},
		"conflict":           {two + "vm w a 2 conflict", "w", "no VM_CONFLICT a:ALREADY_THERE"},
		"not known":          {two + "vm w a 2 lost", "w", "no VM_NOT_RUNNING a:ALREADY_THERE"},
		"being received":     {two + "vm w a 2 incoming", "w", "no VM_NOT_RUNNING a:ALREADY_THERE"},
		"shut off":           {two + "vm w a 2 off", "w", "a→b offline a:ALREADY_THERE"},
		"crashed":            {two + "vm w a 2 crashed", "w", "a→b offline a:ALREADY_THERE"},
		"name clash":         {two + "vm w a 2 uuid=1\nvm w b 1 uuid=2", "1", "no a:ALREADY_THERE b:NAME_CLASH"},
		"UUID clash":         {"node a 16 8\nnode b 16 8 has=w\nvm w a 2", "w", "no a:ALREADY_THERE b:UUID_CLASH"},
		"cache none":         {two + "vm w a 2 disk=file:none disk=block:directsync", "w", "a→b a:ALREADY_THERE"},
		"cache default":      {two + "vm w a 2 disk=file:", "w", "no NOT_LIVE(DISK_CACHE_UNSAFE) a:ALREADY_THERE"},
		"cache writeback":    {two + "vm w a 2 disk=file:none disk=file:writeback", "w", "no NOT_LIVE(DISK_CACHE_UNSAFE) a:ALREADY_THERE"},
		"cache of a CD":      {two + "vm w a 2 disk=file::ro", "w", "a→b a:ALREADY_THERE"},
		"cache of RBD":       {two + "vm w a 2 disk=network:writeback", "w", "a→b a:ALREADY_THERE"},
		"all at once": {
			"node a 16 8\nnode b 16 1 cordoned nolibvirt suspect has=w\nnode c 16 8\nvm w a 2 lost disk=file:\nvm w b 1 uuid=2", "w >b <c",
			"no WRONG_SOURCE VM_NOT_RUNNING NOT_LIVE(DISK_CACHE_UNSAFE) a:ALREADY_THERE " +
				"b:NODE_NOT_REACHABLE b:NODE_LIBVIRT_DOWN b:NODE_CORDONED b:NAME_CLASH b:UUID_CLASH b:MEMORY",
		},
	} {
		t.Run(name, func(t *testing.T) {
			result := ask(t, c.facts, c.ask)
			if got := verdict(result); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if !result.Allowed && result.Refusal() == "" {
				t.Error("refused without a word")
			}
			only := ask(t, c.facts, c.ask+" only")
			if only.Allowed != result.Allowed || only.Target != result.Target || only.Refusal() != result.Refusal() {
				t.Errorf("its target alone: %t %s %q, want %t %s %q", only.Allowed, only.Target, only.Refusal(), result.Allowed, result.Target, result.Refusal())
			}
			if strings.Contains(c.ask, ">") && len(only.Nodes) > 1 {
				t.Errorf("its target alone: %d verdicts", len(only.Nodes))
			}
		})
	}
}

func TestRefusalHasTheFigures(t *testing.T) {
	result := Plan(snapshot(t, "node a 16 8\nnode b 16 2\nnode c 16 8 cordoned\nvm w a 2\nvm x a 1\nop o x b"), Request{VM: "w"})
	text := result.Refusal()
	for _, want := range []string{"2.2 GiB", "2.0 GiB and 256 MiB overhead", "1.2 GiB is promised", "disk swap", "b: ", "c: "} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	result = Plan(snapshot(t, "node a 16 8\nnode b 16 2\nnode c 16 8 cordoned\nvm w a 2"), Request{VM: "w", Target: "c"})
	if text := result.Refusal(); strings.Contains(text, "b: ") || !strings.Contains(text, "c: it is cordoned") {
		t.Errorf("asked for c only: %q", text)
	}
	if !result.Has(NodeCordoned) || result.Has(Memory) {
		t.Error("Has looks at other nodes")
	}
}

func TestOnly(t *testing.T) {
	const facts = "node a 16 8\nnode b 16 8 has=w\nnode c 16 8 has=w cordoned\nvm w a 2"
	for target, want := range map[string]bool{"": true, "b": true, "c": false, "a": false, "z": false} {
		result := Plan(snapshot(t, facts), Request{VM: "w", Target: target})
		if got := result.Only(UUIDClash); got != want {
			t.Errorf("to %q: %v, want %v", target, got, want)
		}
	}
	result := Plan(snapshot(t, facts), Request{VM: "w", Target: "b", Source: "c"})
	if result.Only(UUIDClash) {
		t.Error("the VM's own reasons are not looked at")
	}
}
