package answer

import (
	"context"
	"errors"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

type judge func(*agentv1.CPUDescription) (*agentv1.CPUComparison, error)

func (j judge) CompareCPU(_ context.Context, d *agentv1.CPUDescription) (*agentv1.CPUComparison, error) {
	return j(d)
}

func TestAnswers(t *testing.T) {
	compare := &agentv1.Ask{Id: 7, Question: &agentv1.Ask_CompareCpu{CompareCpu: &agentv1.CompareCPU{Cpu: &agentv1.CPUDescription{Xml: "<cpu/>"}}}}
	for name, c := range map[string]struct {
		ask     *agentv1.Ask
		verdict *agentv1.CPUComparison
		err     error
		code    string
	}{
		"a verdict":           {compare, &agentv1.CPUComparison{Detail: "no avx"}, nil, ""},
		"no libvirt":          {compare, nil, errdefs.New(errdefs.Unavailable, "LIBVIRT_UNAVAILABLE", "x"), "LIBVIRT_UNAVAILABLE"},
		"anything else":       {compare, nil, errors.New("x"), "INTERNAL"},
		"an unknown question": {&agentv1.Ask{Id: 7}, nil, nil, CodeUnknownQuestion},
	} {
		a := Answers{Hypervisor: judge(func(d *agentv1.CPUDescription) (*agentv1.CPUComparison, error) {
			if d.GetXml() != "<cpu/>" {
				t.Errorf("%s: asked about %v", name, d)
			}
			return c.verdict, c.err
		})}.Answer(t.Context(), c.ask, nil)
		if a.GetId() != 7 || a.GetErrorCode() != c.code || (a.GetErrorMessage() == "") != (c.code == "") || a.GetCpuComparison().GetDetail() != c.verdict.GetDetail() {
			t.Errorf("%s: %v", name, a)
		}
	}
}
