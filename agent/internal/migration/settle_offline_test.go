package migration

import (
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// The table for a VM that is to run in the end: as settle's.
const offlineTable = `
            unknown  absent                     shutoff          paused           running          incoming        outgoing
unknown     wait     wait                       wait             wait             wait             wait            wait
absent      wait     seal-target/lost           start-target     resume-target    moved            wait            wait
shutoff     wait     seal-target/start-source   undefine-source  undefine-source  undefine-source  wait            wait
paused      wait     seal-target/resume-source  discard-target   CONFLICT         CONFLICT         wait            wait
running     wait     seal-target/stayed         discard-target   CONFLICT         CONFLICT         discard-target  wait
incoming    wait     wait                       wait             wait             wait             wait            wait
outgoing    wait     wait                       wait             wait             wait             wait            wait
`

// For one that is to stay off, what differs.
const offTable = `
            absent              shutoff          paused
absent      seal-target/lost    moved            moved
shutoff     seal-target/stayed  undefine-source  undefine-source
paused      seal-target/stayed  discard-target   CONFLICT
`

// For volumes on the target that are behind, what differs.
const offlineBehindTable = `
            shutoff         paused    running
absent      deliver         deliver   moved
shutoff     deliver         deliver   undefine-source
paused      discard-target  CONFLICT  CONFLICT
running     discard-target  CONFLICT  CONFLICT
`

func TestSettleOfflineEveryPair(t *testing.T) {
	seen := 0
	check := func(resume, behind bool) func(source, target agentv1.SideState, want [2]action) {
		return func(source, target agentv1.SideState, want [2]action) {
			for i, ended := range []bool{false, true} {
				seen++
				if got := settleOffline(view{source, true, false}, view{target, ended, behind}, resume); got != want[i] {
					t.Errorf("source %s, target %s (ended %v), resume %v: %s, want %s", source, target, ended, resume, got, want[i])
				}
				if got := settleOffline(view{source, false, false}, view{target, ended, behind}, resume); got != wait {
					t.Errorf("source %s has not ended, target %s: %s", source, target, got)
				}
			}
		}
	}
	each(t, offlineTable, check(true, false))
	if seen != 7*7*2 {
		t.Errorf("%d pairs", seen)
	}
	each(t, offTable, check(false, false))
	each(t, offlineBehindTable, check(true, true))
	each(t, offlineBehindTable, check(false, true))
}

// TestNeverTwoRunningOffline holds the rules themselves against every pair.
func TestNeverTwoRunningOffline(t *testing.T) {
	for sn, s := range states {
		for tn, g := range states {
			for i := range 16 {
				source, target, resume := view{s, i&1 > 0, false}, view{g, i&2 > 0, i&8 > 0}, i&4 > 0
				got := settleOffline(source, target, resume)
				bad := func(rule string) {
					t.Errorf("source %s/%v, target %s/%v, resume %v: %s, though %s", sn, source.ended, tn, target.ended, resume, got, rule)
				}
				switch got {
				case startTarget, resumeTarget:
					if !source.ended || s != absent || target.behind || !resume {
						bad("the target starts only when the source's definition is gone")
					}
				case startSource, resumeSource:
					if !source.ended || g != absent || !target.ended || !resume {
						bad("the source starts only when nothing can be at the target")
					}
				case discardTarget:
					if s != running && s != paused || g == running || g == paused {
						bad("a definition goes only where the other side has begun to run")
					}
				case deliver:
					if s != absent && s != shutoff || !source.ended || !target.behind {
						bad("what is sent last is final only while the source is off")
					}
				case undefineSource:
					if s != shutoff || !source.ended || g != shutoff && g != running && g != paused {
						bad("the source's definition goes only when the target has its own")
					}
				case moved:
					if s != absent || g == absent || resume && g != running {
						bad("moved means gone here and there")
					}
				case stayed:
					if s == absent || g != absent || !target.ended {
						bad("stayed means nothing at the target")
					}
				}
			}
		}
	}
}
