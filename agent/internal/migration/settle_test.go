package migration

import (
	"fmt"
	"strings"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

var actionNames = map[string]action{
	"wait": wait, "resume-target": resumeTarget, "discard-target": discardTarget, "seal-target": sealTarget,
	"resume-source": resumeSource, "undefine-source": undefineSource, "moved": moved, "stayed": stayed,
	"stopped": stopped, "unclear": unclear, "lost": lost, "CONFLICT": conflict,
	"start-target": startTarget, "start-source": startSource, "deliver": deliver,
}

func (a action) String() string {
	for name, is := range actionNames {
		if is == a {
			return name
		}
	}
	return fmt.Sprint(int(a))
}

var states = map[string]agentv1.SideState{
	"unknown": unknown, "absent": absent, "shutoff": shutoff, "paused": paused,
	"running": running, "incoming": incoming, "outgoing": outgoing,
}

// The table for a guest that is to run: a row a source that has ended, a column
// a target; "x/y" is a target that has not ended / that has.
const table = `
            unknown  absent                     shutoff          paused                 running          incoming         outgoing
unknown     wait     wait                       wait             wait                   wait             wait             wait
absent      wait     seal-target/lost           stopped          wait/resume-target     moved            wait             wait
shutoff     wait     seal-target/stopped        stopped          wait/unclear           undefine-source  wait             wait
paused      wait     seal-target/resume-source  discard-target   discard-target         CONFLICT         discard-target   wait
running     wait     seal-target/stayed         discard-target   discard-target         CONFLICT         discard-target   wait
incoming    wait     wait                       wait             wait                   wait             wait             wait
outgoing    wait     wait                       wait             wait                   wait             wait             wait
`

// For volumes on the target that are behind, what differs, whether the guest is to
// run or not.
const behindTable = `
            shutoff          paused
absent      deliver          wait/deliver
shutoff     stopped          wait/unclear
paused      discard-target   discard-target
running     discard-target   discard-target
`

// For a guest that is to stay paused, what differs.
const pausedTable = `
            absent                paused
absent      seal-target/lost      wait/moved
shutoff     seal-target/stopped   wait/unclear
paused      seal-target/stayed    discard-target
`

// each calls f for every cell: want for a target that has not ended, and that has.
func each(t *testing.T, table string, f func(source, target agentv1.SideState, want [2]action)) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(table), "\n")
	head := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		if len(cells) != len(head)+1 {
			t.Fatalf("row %q has %d cells", line, len(cells))
		}
		for i, cell := range cells[1:] {
			before, after, split := strings.Cut(cell, "/")
			if !split {
				after = before
			}
			want, okBefore := actionNames[before]
			then, okAfter := actionNames[after]
			if !okBefore || !okAfter {
				t.Fatalf("what is %q?", cell)
			}
			f(states[cells[0]], states[head[i]], [2]action{want, then})
		}
	}
}

func TestSettleEveryPair(t *testing.T) {
	seen := 0
	check := func(resume, behind bool) func(source, target agentv1.SideState, want [2]action) {
		return func(source, target agentv1.SideState, want [2]action) {
			for i, ended := range []bool{false, true} {
				seen++
				if got := settle(view{source, true, false}, view{target, ended, behind}, resume); got != want[i] {
					t.Errorf("source %s, target %s (ended %v), resume %v: %s, want %s", source, target, ended, resume, got, want[i])
				}
				if got := settle(view{source, false, false}, view{target, ended, behind}, resume); got != wait {
					t.Errorf("source %s has not ended, target %s: %s", source, target, got)
				}
			}
		}
	}
	each(t, table, check(true, false))
	if seen != 7*7*2 {
		t.Errorf("%d pairs", seen)
	}
	each(t, pausedTable, check(false, false))
	each(t, behindTable, check(true, true))
	each(t, behindTable, check(false, true))
}

// TestNeverTwoRunning holds the rules themselves against every pair, so that a
// wrong table does not pass.
func TestNeverTwoRunning(t *testing.T) {
	for sn, s := range states {
		for tn, g := range states {
			for i := range 16 {
				source, target, resume := view{s, i&1 > 0, false}, view{g, i&2 > 0, i&8 > 0}, i&4 > 0
				got := settle(source, target, resume)
				bad := func(rule string) {
					t.Errorf("source %s/%v, target %s/%v, resume %v: %s, though %s", sn, source.ended, tn, target.ended, resume, got, rule)
				}
				switch got {
				case resumeTarget:
					if !source.ended || s != absent || g != paused || !target.ended || target.behind || !resume {
						bad("a copy runs only when it is whole and libvirt let go of the source: one that merely stopped may have written since")
					}
				case resumeSource:
					if s != paused || !source.ended || g != absent || !target.ended || !resume {
						bad("a source runs again only when nothing can be at the target")
					}
				case discardTarget:
					if s != running && s != paused || g == running || !source.ended {
						bad("the only memory of a guest, and what runs, is never thrown away")
					}
				case deliver:
					if s != absent || !source.ended || !target.behind {
						bad("what is sent last is final only when the source is gone")
					}
				case undefineSource:
					if s != shutoff || g != running {
						bad("only a left definition goes, and only when the copy runs")
					}
				case moved:
					if s != absent || g != running && (g != paused || resume || target.behind) {
						bad("moved means gone here and there")
					}
				case stayed:
					if s != running && s != paused || g != absent || !target.ended {
						bad("stayed means nothing at the target")
					}
				}
			}
		}
	}
}
