package main

import "context"

// auditLog measures what it is worth that changes which come together share a
// sync, with the benchmark of the package that writes the log.
func (b *bench) auditLog(ctx context.Context) error {
	ratio, err := goBenchmark(ctx, "./controlplane/internal/audit", "BenchmarkGroupVsEach", "group/each")
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "audit_group_vs_each", Value: ratio, Goal: 20, Better: "higher", Unit: "ratio",
		Detail: "changes a second of 64 callers, each of which waits for its line to be on disk, ÷ the same with a sync for each line; the median of 7 turns of A B B A",
	})
	return nil
}
