package advisor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// agents stand for the nodes' agents: a host takes guests whose hash begins
// with its own node's name. The node "mute" never answers, "dull" answers
// something else, "down" cannot.
type agents struct {
	slow time.Duration

	mu      sync.Mutex
	asked   []string
	at, max int
	// away is how often the node "back" has no session yet.
	away int
}

func (a *agents) Ask(ctx context.Context, node string, q *agentv1.Ask) (*agentv1.Answer, error) {
	guest := q.GetCompareCpu().GetCpu().GetHash()
	a.mu.Lock()
	a.asked = append(a.asked, node+" "+guest)
	a.at++
	a.max = max(a.max, a.at)
	if node == "back" && a.away > 0 {
		a.away, a.at = a.away-1, a.at-1
		a.mu.Unlock()
		return nil, errdefs.New(errdefs.Unavailable, "NO_SESSION", "not heard")
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.at--
	}()
	select {
	case <-time.After(a.slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch node {
	case "mute":
		<-ctx.Done()
		return nil, ctx.Err()
	case "down":
		return nil, errdefs.New(errdefs.FailedPrecondition, "LIBVIRT_DOWN", "no libvirt")
	case "dull":
		return &agentv1.Answer{}, nil
	}
	c := &agentv1.CPUComparison{Compatible: strings.HasPrefix(guest, node)}
	if !c.GetCompatible() {
		c.Detail = strings.Repeat("no avx; ", 100)
	}
	return &agentv1.Answer{Answer: &agentv1.Answer_CpuComparison{CpuComparison: c}}, nil
}

func (a *agents) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.asked)
}

// described has a description of every CPU but those that begin with "?".
type described struct{}

func (described) CPU(hash string) (*agentv1.CPUDescription, bool) {
	return &agentv1.CPUDescription{Hash: hash}, !strings.HasPrefix(hash, "?")
}

func question(node, guest string) planner.Question {
	return planner.Question{Node: node, Guest: guest, Host: "host-of-" + node}
}

func TestLearnOnce(t *testing.T) {
	nodes := &agents{}
	a := New(nodes, described{}, hclog.NewNullLogger())
	fits, not := question("n1", "n1-guest"), question("n2", "n1-guest")
	if _, _, known := a.CompareCPU(fits); known {
		t.Error("known before anybody was asked")
	}
	if !a.Learn(t.Context(), []planner.Question{fits, not, fits}) || nodes.count() != 2 {
		t.Errorf("asked %v", nodes.asked)
	}
	if ok, detail, known := a.CompareCPU(fits); !ok || detail != "" || !known {
		t.Errorf("one that fits: %v, %q, %v", ok, detail, known)
	}
	if ok, detail, known := a.CompareCPU(not); ok || !strings.Contains(detail, "no avx") || len(detail) > maxDetail+8 || !known {
		t.Errorf("one that does not: %v, %q, %v", ok, detail, known)
	}
	other := fits
	other.Node = "n9" // another host just like n1
	if !a.Learn(t.Context(), []planner.Question{other}) || nodes.count() != 2 {
		t.Errorf("the hashes are the same, but asked was %v", nodes.asked)
	}
	if a.Learn(t.Context(), nil) {
		t.Error("learned from no question")
	}
}

func TestNoAnswerIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &agents{}
		a := New(nodes, described{}, hclog.NewNullLogger())
		for _, q := range []planner.Question{question("mute", "g"), question("down", "g"), question("dull", "g"), question("n1", "?")} {
			began := time.Now()
			if a.Learn(t.Context(), []planner.Question{q}) {
				t.Errorf("%s: learned", q.Node)
			}
			if took := time.Since(began); took > learnFor {
				t.Errorf("%s: it took %s", q.Node, took)
			}
			if _, _, known := a.CompareCPU(q); known {
				t.Errorf("%s: known", q.Node)
			}
			before := nodes.count()
			if a.Learn(t.Context(), []planner.Question{q}) || nodes.count() != before {
				t.Errorf("%s: asked again at once", q.Node)
			}
		}
		before := nodes.count()
		time.Sleep(failedFor)
		a.Learn(t.Context(), []planner.Question{question("down", "g")})
		if nodes.count() != before+1 {
			t.Error("never asked again")
		}
		// One slow node keeps no other's answer back.
		if !a.Learn(t.Context(), []planner.Question{question("mute", "h"), question("n1", "n1-h")}) {
			t.Error("nothing learned beside a mute node")
		}
	})
}

func TestAnAgentThatComesBackIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &agents{away: 5}
		a := New(nodes, described{}, hclog.NewNullLogger())
		if q := question("back", "back-guest"); !a.Learn(t.Context(), []planner.Question{q}) || nodes.count() != 6 {
			t.Errorf("asked %v", nodes.asked)
		}
	})
}

func TestAskingIsBoundedAndShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &agents{slow: 10 * time.Millisecond}
		a := New(nodes, described{}, hclog.NewNullLogger())
		var many []planner.Question
		for i := range 2 * maxQuestions {
			many = append(many, question("n1", fmt.Sprintf("n1-%d", i)))
		}
		a.Learn(t.Context(), many)
		if nodes.count() != maxQuestions || nodes.max != atOnce {
			t.Errorf("%d questions, %d at once; want %d and %d", nodes.count(), nodes.max, maxQuestions, atOnce)
		}
		nodes = &agents{slow: time.Second}
		a = New(nodes, described{}, hclog.NewNullLogger())
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if !a.Learn(t.Context(), []planner.Question{question("n1", "n1-shared")}) {
					t.Error("one of those who share learned nothing")
				}
			})
		}
		wg.Wait()
		if nodes.count() != 1 {
			t.Errorf("asked %v", nodes.asked)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	a := New(&agents{}, described{}, hclog.NewNullLogger())
	for i := range maxVerdicts + 100 {
		a.remember(pair{fmt.Sprint(i), "h"}, verdict{compatible: true})
	}
	if len(a.verdicts) != maxVerdicts {
		t.Errorf("%d verdicts are kept, want %d", len(a.verdicts), maxVerdicts)
	}
}
