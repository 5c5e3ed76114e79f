package advisor

import (
	"context"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// askAgain is how often a question is tried again whose node has no session
// yet: after a change of leaders agents dial anew within a second or two.
const askAgain = 100 * time.Millisecond

// ask puts one question to the node's agent, again while the agent is not there.
func (a *Advisor) ask(ctx context.Context, q planner.Question) (verdict, error) {
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		v, err := a.askOnce(ctx, q)
		if err == nil || !errdefs.Is(err, errdefs.Unavailable) {
			return v, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return verdict{}, err
		}
	}
}

func (a *Advisor) askOnce(ctx context.Context, q planner.Question) (verdict, error) {
	cpu, ok := a.descriptions.CPU(q.Guest)
	if !ok {
		return verdict{}, errdefs.New(errdefs.Unavailable, "CPU_NOT_DESCRIBED", "no agent has described the CPU %s yet", q.Guest)
	}
	answer, err := a.asker.Ask(ctx, q.Node, &agentv1.Ask{
		Question: &agentv1.Ask_CompareCpu{CompareCpu: &agentv1.CompareCPU{Cpu: cpu}},
	})
	if err != nil {
		return verdict{}, err
	}
	comparison := answer.GetCpuComparison()
	if comparison == nil {
		return verdict{}, errdefs.New(errdefs.Internal, "NO_COMPARISON", "node %s answered something else", q.Node)
	}
	return verdict{compatible: comparison.GetCompatible(), detail: clip(comparison.GetDetail())}, nil
}

// clip shortens what an agent says, so that it can be kept and shown.
func clip(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetail], "") + "…"
}
