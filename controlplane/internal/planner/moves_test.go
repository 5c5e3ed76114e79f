package planner

import (
	"fmt"
	"strings"
	"testing"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// told writes a plan of moves in one line: VM→target of each wave, waves apart
// by a bar, then what is blocked, with the codes.
func told(plan MovePlan) string {
	var words []string
	for i, m := range plan.Moves {
		if i > 0 && m.Wave != plan.Moves[i-1].Wave {
			words = append(words, "|")
		}
		words = append(words, m.VM+"→"+m.Target)
	}
	for _, b := range plan.Blocked {
		var codes []string
		for _, r := range b.Reasons {
			codes = append(codes, r.Code)
		}
		words = append(words, b.VM+"!"+strings.Join(codes, ","))
	}
	return strings.Join(words, " ")
}

func TestEvacuate(t *testing.T) {
	for name, c := range map[string]struct {
		facts, want string
		request     EvacuationRequest
	}{
		"by priority, then memory": {
			"node a 64 8\nnode b 64 60\nvm u a 2 prio=1\nvm v a 1 prio=9\nvm w a 3 prio=1\nvm x a 5 off prio=1",
			"v→b w→b | u→b x→b",
			EvacuationRequest{},
		},
		"spread over nodes":  {"node a 64 8\nnode b 64 60\nnode c 64 60\nvm u a 4\nvm v a 4", "u→b v→c", EvacuationRequest{}},
		"one at once":        {"node a 64 8\nnode b 64 60\nnode c 64 60\nvm u a 4\nvm v a 4", "u→b | v→c", EvacuationRequest{Parallel: 1}},
		"limits of the node": {"node a 64 8 parallel=1\nnode b 64 60\nvm u a 4\nvm v a 4", "u→b | v→b", EvacuationRequest{Parallel: 8}},
		"limits of a target": {"node a 64 8 parallel=9\nnode b 64 60 parallel=3\nvm u a 4\nvm v a 4\nvm w a 4\nvm x a 4", "u→b v→b w→b | x→b", EvacuationRequest{}},
		"only some":          {"node a 64 8\nnode b 64 60\nvm u a 4\nvm v a 4", "v→b", EvacuationRequest{Only: []string{"v"}}},
		"none of them":       {"node a 64 8\nnode b 64 60\nvm u a 4\nvm v a 4", "", EvacuationRequest{Only: []string{}}},
		"a tenant's":         {"node a 64 8\nnode b 64 60\nvm u a 4 tenant=t\nvm v a 4", "u→b", EvacuationRequest{Tenant: "t"}},
		"no such node":       {"node b 64 60", "", EvacuationRequest{}},
		"nowhere to go":      {"node a 64 8\nvm u a 4", "u!NODE_NOT_FOUND", EvacuationRequest{}},
		"blocked": {
			"node a 64 8\nnode b 64 60\nnode c 64 1\nnode d 64 1\nvm u a 4 disk=file:\nvm v a 4 anti=g\nvm w b 1 anti=g\nvm x a 2",
			"x→b u!NOT_LIVE,MEMORY v!ANTI_AFFINITY,MEMORY",
			EvacuationRequest{},
		},
		"downtime": {"node a 64 8\nnode b 64 60\nvm u a 4 disk=file:", "u→b", EvacuationRequest{AllowDowntime: true}},
		// The best node for the first is the only one for the second.
		"search for room": {
			"node a 64 8\nnode b 16 10\nnode c 64 6\nvm u a 3 prio=1\nvm v a 9",
			"u→c v→b",
			EvacuationRequest{},
		},
		// Nothing has a place for v until u has left the rack.
		"way is made": {
			"node a 64 8 rack=1 zone=z\nnode b 64 10 rack=1 zone=z\nnode c 64 3 rack=2 zone=z\nvm u a 2 anti=g:rack\nvm v a 4 anti=g:rack",
			"u→c | v→b",
			EvacuationRequest{},
		},
		"priority before number": {"node a 64 8\nnode b 64 5\nvm u a 4 prio=2\nvm v a 2\nvm w a 2", "u→b v!MEMORY w!MEMORY", EvacuationRequest{}},
		"number within one":      {"node a 64 8\nnode b 64 5\nvm u a 4\nvm v a 2\nvm w a 2", "v→b w→b u!MEMORY", EvacuationRequest{}},
	} {
		t.Run(name, func(t *testing.T) {
			c.request.Node = "a"
			if got := told(NewWorld(snapshot(t, c.facts), nil).Evacuate(c.request)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestBlockedNamesTheNodes(t *testing.T) {
	facts := "node a 64 8\nvm u a 4"
	for i := range 5 {
		facts += fmt.Sprintf("\nnode n%d 64 %d", i, i)
	}
	plan := NewWorld(snapshot(t, facts), nil).Evacuate(EvacuationRequest{Node: "a"})
	if len(plan.Blocked) != 1 || len(plan.Blocked[0].Reasons) != 1 {
		t.Fatalf("%+v", plan.Blocked)
	}
	text := plan.Blocked[0].Reasons[0].Message
	for _, want := range []string{"n0: VM u needs 4.2 GiB", "0 MiB is free", "n2: ", "2.0 GiB is free", "and 2 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
}

func TestRebalance(t *testing.T) {
	for name, c := range map[string]struct {
		facts, want string
		request     RebalanceRequest
	}{
		"evens out":           {"node a 32 8\nnode b 32 30\nvm u a 8\nvm v a 8", "u→b", RebalanceRequest{}},
		"nothing to gain":     {"node a 32 8\nnode b 32 30\nvm u a 8", "", RebalanceRequest{}},
		"not worth it":        {"node a 320 8\nnode b 320 300\nvm u a 40\nvm v a 1\nvm w b 38", "", RebalanceRequest{}},
		"worth it":            {"node a 320 8\nnode b 320 300\nvm u a 40\nvm v a 8\nvm w b 20", "v→b", RebalanceRequest{}},
		"at most":             {"node a 64 8\nnode b 64 60\nnode c 64 60\nvm u a 8\nvm v a 8\nvm w a 8", "u→c", RebalanceRequest{MaxMoves: 1}},
		"in waves":            {"node a 64 8\nnode b 64 60\nnode c 64 60\nvm u a 8\nvm v a 8\nvm w a 8", "u→c | v→b", RebalanceRequest{Parallel: 1}},
		"among some":          {"node a 64 8\nnode b 64 60\nnode c 64 60\nvm u a 8\nvm v a 8\nvm w a 8", "u→c", RebalanceRequest{Nodes: []string{"a", "c"}}},
		"not to the cordoned": {"node a 64 8\nnode b 64 60 cordoned\nvm u a 8\nvm v a 8", "", RebalanceRequest{}},
		"nobody is shut down": {"node a 64 8\nnode b 64 60\nvm u a 8 disk=file:\nvm v a 8 disk=file:", "", RebalanceRequest{}},
		"friends stay":        {"node a 64 8\nnode b 64 60\nvm u a 8 with=g\nvm v a 8 with=g", "", RebalanceRequest{}},
		"on its way counts":   {"node a 64 8\nnode b 64 60\nvm u a 8\nvm v a 8\nop o u b", "", RebalanceRequest{}},
	} {
		t.Run(name, func(t *testing.T) {
			plan := NewWorld(snapshot(t, c.facts), nil).Rebalance(c.request)
			if got := told(plan); got != c.want || len(plan.Moves) > 0 && plan.After >= plan.Before {
				t.Errorf("got  %s (%g to %g)\nwant %s", got, plan.Before, plan.After, c.want)
			}
		})
	}
}

func TestEstimates(t *testing.T) {
	const link = "node a 16 12 link=100\nnode b 16 12 link=50\n" // MiB/s
	for name, c := range map[string]struct {
		facts, ask string
		want       string // bytes in MiB, duration and downtime in ms, link in MiB/s [converge]
	}{
		"the slower end":    {link + "vm w a 1", "w", "1024 21980 250 50"},
		"unknown":           {"node a 16 12\nnode b 16 12 \nvm w a 1", "w", "1024 0 0 0"},
		"limit of a node":   {link + "node c 16 12 link=50 limit=10\nvm w a 1", "w >c", "1024 103900 250 10"},
		"dirtying":          {link + "vm w a 1 dirty=25", "w", "2040 42300 410 50"},
		"does not converge": {link + "vm w a 1 dirty=45", "w", "2040 42300 410 50 converge"},
		"disks":             {link + "vm w a 1 copy=raw:10:/dev/x:block:used2", "w", "3072 62940 250 50"},
		"off":               {link + "vm w a 1 off copy=raw:10:/dev/x:block:used2", "w", "2048 42460 0 50"},
		"shut down":         {link + "vm w a 1 disk=file: copy=raw:10:/dev/x:block:used2", "w down", "2048 59460 59460 50"},
		"learned":           {link + "vm w a 1\nop 1 x b ended from=a mib=2000 ms=10000\nop 2 x b ended from=a mib=4000 ms=10000\nop 3 x b ended from=a mib=90000 ms=10000", "w", "1024 4060 250 400"},
		"of the node":       {link + "node c 16 12\nvm w a 1\nop 1 x b ended from=c mib=2000 ms=10000", "w >b", "1024 6620 250 200"},
		"too small, limited, offline": {
			link + "vm w a 1\nop 1 x b ended from=a mib=63 ms=10\nop 2 x b ended from=a mib=900 ms=10 limited\nop 3 x b ended from=a mib=900 ms=10 offline",
			"w", "1024 21980 250 50",
		},
	} {
		t.Run(name, func(t *testing.T) {
			result := ask(t, c.facts, c.ask)
			e := result.Estimate
			got := fmt.Sprintf("%d %d %d %d", e.GetBytes()>>20, e.GetDurationMs(), e.GetDowntimeMs(), e.GetLinkBytesPerSecond()>>20)
			if e.GetNeedsAutoConverge() {
				got += " converge"
			}
			if got != c.want || !result.Allowed {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	s := snapshot(t, link+"vm w a 1 dirty=45")
	e := Plan(s, Request{VM: "w", Options: &debvisorv1.MigrateOptions{BandwidthMib: 5, NoAutoConverge: true}}).Estimate
	if e.GetLinkBytesPerSecond() != 5<<20 || !e.GetNeedsAutoConverge() || e.GetDurationMs() != 0 {
		t.Errorf("limited and not helped: %v", e)
	}
}

// Moves that share a node share its link.
func TestEstimateOfAPlan(t *testing.T) {
	const facts = "node a 64 60 link=100\nnode b 64 60 link=100\nnode c 64 60 link=100\nvm u a 1\nvm v a 1\nvm w a 1"
	plan := NewWorld(snapshot(t, facts), nil).Evacuate(EvacuationRequest{Node: "a"})
	// Two at once from a: 2 GiB over its link and 1.5 s, then the third.
	if e := plan.Estimate; e.GetDurationMs() != 20480+1500+10240+1500 || e.GetBytes() != 3<<30 {
		t.Errorf("%v for %s", e, told(plan))
	}
}
