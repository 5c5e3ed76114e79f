package main

import (
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// moveOptions are the flags that tune one move.
type moveOptions struct {
	downtime  bool
	bandwidth uint64
	parallel  uint32
	deadline  time.Duration
	// onDeadline is cancel or pause; empty: not said.
	onDeadline string
	noConverge bool
	maxPause   time.Duration
	stall      time.Duration
	shutdown   time.Duration
}

func (o *moveOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.downtime, "allow-downtime", false, "let the VM be shut down for its move where it cannot move live")
	f.Uint64Var(&o.bandwidth, "bandwidth", 0, "MiB a second at most; 0: as much as the nodes' limits allow")
	f.DurationVar(&o.deadline, "deadline", 0, "how long copying may take; 0: a day")
	f.StringVar(&o.onDeadline, "on-deadline", "", "what is done at the deadline: cancel (default), or pause the guest, where its policy allows that")
	f.Uint32Var(&o.parallel, "parallel-connections", 0, "streams for the memory, up to 16; 0: as many as are of use")
	f.BoolVar(&o.noConverge, "no-auto-converge", false, "do not slow down a guest that dirties memory faster than it can be copied")
	f.DurationVar(&o.maxPause, "max-downtime", 0, "how long the switch-over may take; 0: 300ms")
	f.DurationVar(&o.stall, "stall", 0, "give up when nothing is copied for so long; 0: 2m")
	f.DurationVar(&o.shutdown, "shutdown-timeout", 0, "how long a guest that has to be shut down may take; 0: 2m")
	complete(c, "on-deadline", cobra.FixedCompletions([]string{"cancel", "pause"}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"bandwidth", "deadline", "parallel-connections", "max-downtime", "stall", "shutdown-timeout"} {
		complete(c, flag, cobra.NoFileCompletions)
	}
}

// message gives the options as the API wants them; nil where none is given.
func (o *moveOptions) message() (*debvisorv1.MigrateOptions, error) {
	m := &debvisorv1.MigrateOptions{
		BandwidthMib: o.bandwidth, ParallelConnections: o.parallel, NoAutoConverge: o.noConverge,
	}
	switch o.onDeadline {
	case "":
	case "cancel":
		m.OnDeadline = debvisorv1.DeadlineAction_DEADLINE_ACTION_CANCEL
	case "pause":
		m.OnDeadline = debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE
	default:
		return nil, usage("--on-deadline %q is not accepted; expected cancel or pause", o.onDeadline)
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		unit  time.Duration
		into  *uint32
	}{
		{"deadline", o.deadline, time.Second, &m.DeadlineSeconds},
		{"max-downtime", o.maxPause, time.Millisecond, &m.MaxDowntimeMs},
		{"stall", o.stall, time.Second, &m.StallSeconds},
		{"shutdown-timeout", o.shutdown, time.Second, &m.ShutdownSeconds},
	} {
		count := math.Ceil(float64(d.value) / float64(d.unit))
		if count < 0 || count > math.MaxUint32 {
			return nil, usage("--%s %s is not accepted; expected 0 or more", d.flag, d.value)
		}
		*d.into = uint32(count)
	}
	if *o == (moveOptions{downtime: o.downtime}) {
		return nil, nil //nolint:nilnil // no options is an answer here
	}
	return m, nil
}

// methodWord tells how a VM moves.
func methodWord(m debvisorv1.MoveMethod) string {
	switch m {
	case debvisorv1.MoveMethod_MOVE_METHOD_LIVE:
		return "live"
	case debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY:
		return "live, copying disks"
	case debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE:
		return "offline"
	}
	return ""
}

// estimateText tells what a move is expected to take; empty where nothing is
// known.
func estimateText(e *debvisorv1.MoveEstimate) string {
	if e.GetDurationMs() == 0 && e.GetBytes() == 0 {
		return ""
	}
	text := fmt.Sprintf("%s, downtime %s, %s", millis(e.GetDurationMs()), millis(e.GetDowntimeMs()), size(e.GetBytes()))
	if e.GetLinkBytesPerSecond() > 0 {
		text += " at " + size(e.GetLinkBytesPerSecond()) + "/s"
	}
	if e.GetDirtyBytesPerSecond() > 0 {
		text += ", " + size(e.GetDirtyBytesPerSecond()) + "/s dirtied"
	}
	if e.GetNeedsAutoConverge() {
		text += ", only if the guest is slowed down"
	}
	return text
}
