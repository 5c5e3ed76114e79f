package access

import (
	"fmt"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// limitRecord is a limit as it is kept; nil for none.
func limitRecord(m *debvisorv1.RateLimit) (*storev1.RateLimit, error) {
	if m == nil {
		return nil, nil
	}
	if m.GetUnlimited() && (m.GetPerMinute() > 0 || m.GetBurst() > 0) {
		return nil, errdefs.Field("limit.unlimited", fmt.Sprint(m.GetUnlimited()), "either unlimited, or per_minute and burst")
	}
	return &storev1.RateLimit{PerMinute: m.GetPerMinute(), Burst: m.GetBurst(), Unlimited: m.GetUnlimited()}, nil
}

func limitMessage(r *storev1.RateLimit) *debvisorv1.RateLimit {
	if r == nil {
		return nil
	}
	return &debvisorv1.RateLimit{PerMinute: r.GetPerMinute(), Burst: r.GetBurst(), Unlimited: r.GetUnlimited()}
}
