package storage

import (
	"fmt"
	"strconv"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// create is the next step of taking snapshots. Whatever is done twice finds the
// snapshots that were made the first time: their name is the operation's.
func (d *decision) create() *step {
	t := d.op.GetTakeSnapshots()
	if len(t.GetImages()) > 0 {
		return d.createImages()
	}
	if t.GetNode() == "" || len(t.GetDatasets()) == 0 || t.GetName() == "" {
		return d.broken("the operation does not say of what snapshots are to be taken")
	}
	tries := d.all(taskSnapshot)
	froze(t, tries)
	if len(tries) == 0 || tries[len(tries)-1].ended() && judge(tries[len(tries)-1]) != done {
		return d.takeSet(tries)
	}
	last := tries[len(tries)-1]
	switch {
	case last.ended():
		t.Made = nil
		for _, made := range last.outcome.GetZfs().GetMade() {
			t.Made = append(t.Made, encoded(made))
		}
		return d.succeed(fmt.Sprintf("%d snapshots %s are taken on %s", len(t.GetDatasets()), t.GetName(), t.GetNode()))
	case d.op.GetCancelRequested():
		s, _ := d.stop("cancelling")
		return s
	}
	return d.note("taking snapshots on " + t.GetNode() + d.unheard(t.GetNode()))
}

// takeSet writes the task that takes the set, the first time or again.
func (d *decision) takeSet(tries []*half) *step {
	t := d.op.GetTakeSnapshots()
	if s := d.tryAgain(tries); s != nil {
		return s
	}
	switch {
	case d.op.GetCancelRequested():
		return d.cancelled("cancelled as asked; nothing was done")
	case d.unknown(t.GetNode()) != "":
		return d.fail("NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", t.GetNode()))
	}
	if why := d.waits(t.GetNode()); why != "" {
		return d.note(why)
	}
	if len(tries) > 0 && d.now.Before(ends(tries).Add(d.pace.after(tries))) {
		_, message := tries[len(tries)-1].why()
		return d.note("waiting to try again: " + message)
	}
	freeze, failed := d.freeze(t, t.GetNode())
	if failed != nil {
		return failed
	}
	set := ""
	if len(t.GetDatasets()) > 1 {
		set = d.op.GetId()
	}
	spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
		Datasets: t.GetDatasets(), Name: t.GetName(), Operation: d.op.GetId(), Label: t.GetLabel(), Set: set, Freeze: freeze,
	}}}
	return d.order(stepTask, strconv.Itoa(len(tries)+1), taskSnapshot, t.GetNode(), "zfs/"+t.GetDatasets()[0], spec, "taking snapshots on "+t.GetNode())
}

// tryAgain ends the operation where the last of those tries is not worth another;
// nil: it is, or there was none.
func (d *decision) tryAgain(tries []*half) *step {
	if len(tries) == 0 {
		return nil
	}
	last := tries[len(tries)-1]
	code, message := last.why()
	switch judge(last) {
	case fatal:
		return d.fail(code, message)
	case stopped:
		if d.op.GetCancelRequested() || task.State(last.task.GetState()) == task.Cancelled {
			return d.cancelled("cancelled as asked")
		}
		return d.fail(code, message)
	case passing:
		if passed(tries) >= maxBroken {
			return d.fail(code, fmt.Sprintf("%d times in a row: %s", passed(tries), message))
		}
	case done, absent:
	}
	return nil
}

// passed counts the tries at the end that something refused which may pass.
func passed(tries []*half) int {
	n := 0
	for i := len(tries) - 1; i >= 0 && judge(tries[i]) == passing; i-- {
		n++
	}
	return n
}
