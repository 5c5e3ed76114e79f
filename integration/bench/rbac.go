package main

import (
	"context"
	"fmt"
)

// rbacRuns is how often the comparison is made, each of many turns A B B A.
const rbacRuns = 3

// rbac measures whether the size of the access policy matters to a check. It is
// the package's own benchmark that runs: through a listener the rest of a call
// would hide it.
func (b *bench) rbac(ctx context.Context) error {
	out, err := goBench(ctx, "./controlplane/internal/authz", "BenchmarkRules", rbacRuns)
	if err != nil {
		return err
	}
	const setting = "one check with 100,000 principals and 10,000 roles ÷ with 900 and 100"
	for _, figure := range []struct {
		name, ratio, ns, detail string
		goal                    float64
	}{
		{"rbac_110k_vs_1k", "110k/1k", "ns/check", "of calls by 500 callers each", 1.3},
		{
			"rbac_110k_vs_1k_all_callers", "110k/1k-all-callers", "ns/check-all-callers",
			"of calls by as many callers as there are principals, in random order, so that neither they nor their grants are in the processor's caches", 0,
		},
	} {
		ratios, err := metric(out, figure.ratio, rbacRuns)
		if err != nil {
			return err
		}
		ns, err := metric(out, figure.ns, rbacRuns)
		if err != nil {
			return err
		}
		b.add(Figure{
			Name: figure.name, Value: median(ratios), Goal: figure.goal, Better: "lower", Unit: "ratio",
			Detail: fmt.Sprintf("%s, %s; %.0f ns with the larger; medians of %d", setting, figure.detail, median(ns), len(ratios)),
		})
	}
	return nil
}
