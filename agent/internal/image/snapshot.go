package image

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// markFrozen says in the journal that the snapshots were taken of a frozen guest.
const markFrozen = "frozen"

// snapshotKind is rbd-snapshot: a snapshot of each image, all in one moment.
type snapshotKind struct{ i *Images }

// Name is the kind's.
func (snapshotKind) Name() string { return "rbd-snapshot" }

// Do takes the snapshots, or finds them.
func (k snapshotKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	s := &taking{work: k.i.work(t, run), spec: t.GetSpec().GetRbdSnapshotCreate()}
	if !s.makesSense() {
		return failure(codeInternal, "the task %s names no image, no name, no operation or no group", t.GetId())
	}
	return s.tell(s.end(ctx, s.do(ctx)))
}

// Observe looks for the snapshots.
func (k snapshotKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	s := &taking{work: k.i.work(t, run), spec: t.GetSpec().GetRbdSnapshotCreate()}
	err := s.insist(ctx, "looking for the snapshots", s.find)
	if err == nil && (!s.whole() || len(s.made) > 1) { // of a set only another attempt says whether it is complete
		return broken("the agent's journal was lost before the snapshots were known to be taken")
	}
	if err == nil && s.spec.GetFreeze() != nil {
		s.frozen = &agentv1.FreezeOutcome{Reason: whyUnknown}
		if s.spec.GetFreeze().GetRequired() {
			return broken("the agent's journal was lost: %s", whyUnknown)
		}
	}
	return s.tell(observed(ctx, err))
}

// whyUnknown is why snapshots that are there may be of a guest that was not frozen.
const whyUnknown = "whether the guest was frozen when the snapshots were taken, the agent that took them cannot tell any more"

// taking is one rbd-snapshot at work.
type taking struct {
	*work
	spec   *agentv1.RbdSnapshotCreate
	made   []*agentv1.RbdSnapshotID
	frozen *agentv1.FreezeOutcome
}

func (s *taking) makesSense() bool {
	n := len(s.spec.GetImages())
	return n > 0 && s.spec.GetName() != "" && s.spec.GetOperation() != "" && (n == 1 || s.spec.GetGroup() != "")
}

func (s *taking) tell(out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if out != nil {
		out.Rbd, out.Freeze = &agentv1.RbdOutcome{Made: s.made}, s.frozen
	}
	return out
}

func (s *taking) do(ctx context.Context) error {
	if s.spec.GetFreeze() != nil {
		return s.doFrozen(ctx)
	}
	if s.unwanted() {
		return errCancelled
	}
	s.pass(pointSnapshotBefore)
	if err := s.insist(ctx, "taking snapshots", s.create); err != nil {
		return err
	}
	s.pass(pointSnapshotTaken)
	return nil
}

// doFrozen takes the snapshots of a frozen guest, unless they are there: then the
// journal knows of what guest they are.
func (s *taking) doFrozen(ctx context.Context) error {
	if err := s.insist(ctx, "looking for the snapshots", s.find); err != nil {
		return err
	}
	required := s.spec.GetFreeze().GetRequired()
	switch {
	case s.whole() && s.run.Marked(markFrozen):
		s.frozen = &agentv1.FreezeOutcome{Frozen: true}
		return nil
	case s.whole() && !required:
		s.frozen = &agentv1.FreezeOutcome{Reason: whyUnknown}
		return s.insist(ctx, "completing the snapshots", s.create) // a set may be half taken
	}
	if len(s.made) > 0 && required {
		if err := s.undo(ctx); err != nil {
			return err
		}
	}
	if s.unwanted() {
		return errCancelled
	}
	s.pass(pointSnapshotBefore)
	called := false
	var err error
	s.frozen, err = s.cfg.Freezer.Frozen(ctx, s.spec.GetFreeze(), func(context.Context) error {
		called = true
		// To its own end, not to the freeze's: the guest is thawed in time nevertheless,
		// and what was abandoned might be done after it was looked for.
		return s.create(ctx)
	})
	switch {
	case err == nil && s.frozen.GetFrozen():
		s.pass(pointSnapshotTaken)
		err = s.run.Mark(ctx, markFrozen)
		s.pass(pointSnapshotFrozen)
		return err
	case err == nil:
		s.pass(pointSnapshotTaken)
		return nil
	case ctx.Err() != nil, !called:
		return err
	case required:
		return s.withdraw(ctx, err)
	case passing(err):
		s.frozen = &agentv1.FreezeOutcome{Reason: "Ceph did not take the snapshots while the guest was frozen: " + messageOf(err)}
		return s.insist(ctx, "taking snapshots", s.create)
	}
	return err
}

// withdraw ends a task whose snapshots are not what was asked for: what was taken
// of them goes, and nobody has heard of it.
func (s *taking) withdraw(ctx context.Context, why error) error {
	s.unknown = true
	if err := s.undo(ctx); err != nil {
		return errdefs.New(errdefs.KindOf(err), codeOf(err), "%s; and a snapshot %s may be left of it: %s", messageOf(why), s.spec.GetName(), messageOf(err)).WithCause(why)
	}
	return why
}

// undo removes the operation's snapshots.
func (s *taking) undo(ctx context.Context) error {
	s.pass(pointSnapshotUndo)
	return s.insist(ctx, "removing snapshots of a guest that was not frozen", func(ctx context.Context) error {
		if err := s.find(ctx); err != nil {
			return err
		}
		for _, id := range s.made {
			if _, err := s.cfg.Ceph.RemoveSnapshot(ctx, id); err != nil && !missing(err) {
				return err
			}
		}
		s.made = nil
		return nil
	})
}

// create takes the snapshots, or finds those that the operation has taken.
func (s *taking) create(ctx context.Context) error {
	spec := s.spec
	if len(spec.GetImages()) > 1 {
		made, err := s.cfg.Ceph.CreateGroupSnapshot(ctx, rbd.GroupSpec{
			Group: spec.GetGroup(), Images: spec.GetImages(), Name: spec.GetName(), Operation: spec.GetOperation(), Label: spec.GetLabel(), Set: spec.GetSet(),
		})
		if err == nil {
			s.made = made
		}
		return err
	}
	made, err := s.cfg.Ceph.CreateSnapshot(ctx, rbd.SnapshotSpec{
		Image: spec.GetImages()[0], Name: spec.GetName(), Operation: spec.GetOperation(), Label: spec.GetLabel(), Set: spec.GetSet(), Template: spec.GetTemplate(),
	})
	if err == nil {
		s.made = []*agentv1.RbdSnapshotID{made}
	}
	return err
}

// find looks for the snapshots that the operation has taken. That of another is an
// error.
func (s *taking) find(ctx context.Context) error {
	s.made = nil
	for _, image := range s.spec.GetImages() {
		_, snapshots, err := s.cfg.Ceph.Image(ctx, image, false)
		if err != nil {
			return err
		}
		for _, found := range snapshots {
			switch {
			case found.GetSnapshot().GetName() != s.spec.GetName() && found.GetGroupSnapshot() != s.spec.GetName():
			case found.GetOperation() != s.spec.GetOperation():
				return errdefs.New(errdefs.AlreadyExists, rbd.CodeSnapshotExists, "there is a snapshot %s of %s already, of somebody else", s.spec.GetName(), rbd.Shown(image))
			default:
				s.made = append(s.made, found.GetSnapshot())
			}
		}
	}
	return nil
}

func (s *taking) whole() bool { return len(s.made) == len(s.spec.GetImages()) }
