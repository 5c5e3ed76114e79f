// Package answer answers the leader's questions about this host: those that
// change nothing, so that they may be lost or asked twice. What is known without
// asking is in the inventory.
package answer

import (
	"context"
	"errors"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// CodeUnknownQuestion is the error of a question that this agent is too old
// for.
const CodeUnknownQuestion = "QUESTION_UNKNOWN"

// Hypervisor is what is asked of libvirt. Its calls end with their context.
type Hypervisor interface {
	CompareCPU(ctx context.Context, d *agentv1.CPUDescription) (*agentv1.CPUComparison, error)
}

// Answers answers. It is safe for concurrent use.
type Answers struct {
	Hypervisor Hypervisor
	// ZFS answers questions about ZFS; nil: this host has none.
	ZFS *ZFS
	// Ceph answers questions about Ceph; nil: this host has none.
	Ceph *Ceph
}

// Answer gives the answer to a question, which may be that there is none and
// why. Parts before the last are handed to part; where that fails, nobody waits
// for the rest. It ends with ctx.
func (a Answers) Answer(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) *agentv1.Answer {
	switch k := q.GetQuestion().(type) {
	case *agentv1.Ask_ListZfs, *agentv1.Ask_EstimateZfsSend, *agentv1.Ask_EstimateZfsDestroy:
		last, err := a.ZFS.answer(ctx, q, part)
		if err != nil {
			return Refusal(q.GetId(), err)
		}
		last.Id = q.GetId()
		return last
	case *agentv1.Ask_ListRbd:
		last, err := a.Ceph.list(ctx, k.ListRbd, part)
		if err != nil {
			return Refusal(q.GetId(), err)
		}
		last.Id = q.GetId()
		return last
	case *agentv1.Ask_CompareCpu:
		verdict, err := a.Hypervisor.CompareCPU(ctx, k.CompareCpu.GetCpu())
		if err != nil {
			return Refusal(q.GetId(), err)
		}
		return &agentv1.Answer{Id: q.GetId(), Answer: &agentv1.Answer_CpuComparison{CpuComparison: verdict}}
	default:
		return Refusal(q.GetId(), errdefs.New(errdefs.FailedPrecondition, CodeUnknownQuestion, "this agent does not know the question; the leader may be newer"))
	}
}

// Refusal is the answer that there is none.
func Refusal(id uint64, err error) *agentv1.Answer {
	var known *errdefs.Error
	code := "INTERNAL"
	if errors.As(err, &known) && known.Code != "" {
		code = known.Code
	}
	return &agentv1.Answer{Id: id, ErrorCode: code, ErrorMessage: err.Error()}
}
