package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// quietness are the flags of how quiet a guest is while its disks are snapshotted.
type quietness struct {
	consistency string
	budget      time.Duration
}

func (q *quietness) addFlags(c *cobra.Command) {
	addConsistency(c, &q.consistency)
	c.Flags().DurationVar(&q.budget, "freeze-budget", 0, "how long the guest may be frozen, at most 1m; 0: 5s")
	complete(c, "freeze-budget", cobra.NoFileCompletions)
}

// addConsistency declares --consistency.
func addConsistency(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "consistency", "", "crash, prefer (the guest's file systems are frozen where its agent runs) or application (no snapshot without)")
	complete(c, "consistency", cobra.FixedCompletions([]string{"crash", "prefer", "application"}, cobra.ShellCompDirectiveNoFileComp))
}

// read gives what the flags say, the budget in milliseconds.
func (q *quietness) read() (debvisorv1.Consistency, uint32, error) {
	if q.budget < 0 || q.budget > time.Minute || q.budget%time.Millisecond != 0 {
		return 0, 0, usage("--freeze-budget %s is not accepted; expected whole milliseconds up to 1m, such as 2s", q.budget)
	}
	consistency, err := readConsistency(q.consistency)
	return consistency, uint32(q.budget / time.Millisecond), err //nolint:gosec // at most a minute
}

func readConsistency(text string) (debvisorv1.Consistency, error) {
	switch text {
	case "":
		return debvisorv1.Consistency_CONSISTENCY_UNSPECIFIED, nil
	case "crash":
		return debvisorv1.Consistency_CONSISTENCY_CRASH, nil
	case "prefer":
		return debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION, nil
	case "application":
		return debvisorv1.Consistency_CONSISTENCY_APPLICATION, nil
	}
	return 0, usage("--consistency %q is not accepted; expected crash, prefer or application", text)
}

// consistencyText tells what becomes of guests; empty: nothing.
func consistencyText(c debvisorv1.Consistency) string {
	switch c {
	case debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION:
		return "frozen where their agents run"
	case debvisorv1.Consistency_CONSISTENCY_APPLICATION:
		return "frozen; no snapshot without"
	}
	return ""
}

// freezeText tells how a guest's freeze went; empty: none was asked for.
func freezeText(f *debvisorv1.FreezeResult) string {
	switch {
	case f == nil:
		return ""
	case f.GetFrozen():
		return fmt.Sprintf("guest frozen for %s (%s)", millis(f.GetFrozenMs()), count(int(f.GetFilesystems()), "file system"))
	}
	return "guest not frozen: " + f.GetReason()
}
