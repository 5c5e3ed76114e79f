// Package look asks both ends of a replication job what they have and has package
// repldiff decide, for a dry run and for the run alike. It changes nothing.
package look

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// estimated is the most steps that are estimated one by one, a command of zfs each;
	// of more the first, and all others together.
	estimated = 16
	// maxListed bounds what is listed of one end.
	maxListed = 500_000
)

// TargetPoolNotFound is the refusal of a copy in a pool that the target has not.
const TargetPoolNotFound = "TARGET_POOL_NOT_FOUND"

// TargetInUse is the refusal to set aside, or to take back, a copy that something on
// the target depends on.
const TargetInUse = "TARGET_IN_USE"

// Ask puts a question to a node's agent; the answer comes in parts. Errors are
// Unavailable, DeadlineExceeded and ResourceExhausted for what passes, and
// FailedPrecondition with the agent's code.
type Ask func(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error

// More is what a run knows besides the records; the zero value is a dry run's.
type More struct {
	// Run: the snapshot that a run takes first has been taken; a dry run counts on it.
	Run bool
	// Confirmed and Accepted, and Modified, are repldiff.Input's.
	Confirmed string
	Accepted  *agentv1.TargetAside
	Modified  bool
}

// Plan is what a run of a job would do now. Errors are Ask's: one end could not
// be asked, and nothing is known. For a dry run less is asked: it is right in what it
// decides (Decision, Steps, Aside, Refusal), and knows no times and no marks.
func Plan(ctx context.Context, ask Ask, s *cluster.Snapshot, job *storev1.ReplicationJob, more More, now time.Time) (*repldiff.Plan, error) {
	l := looker{ask: ask, snapshot: s, job: job, brief: !more.Run && more.Confirmed == ""}
	in := &repldiff.Input{
		Job: job.GetId(), Dataset: job.GetDataset(), TargetDataset: job.GetTargetDataset(), SameNode: job.GetSource() == job.GetTarget(),
		SourceGUID: job.GetDatasetGuid(), Cursor: job.GetCursorGuid(), EncryptedUnsafe: l.unsafe(),
		Confirmed: more.Confirmed, Accepted: more.Accepted, Modified: more.Modified, Now: now,
	}
	options := &debvisorv1.ReplicationOptions{}
	if err := proto.Unmarshal(job.GetOptions(), options); err != nil {
		return nil, fmt.Errorf("the options of job %s cannot be read: %w", job.GetId(), err)
	}
	in.Options(options)
	above, err := l.sides(ctx, in)
	if err != nil {
		return nil, err
	}
	if !more.Run && !options.GetNoSnapshot() && in.Source.Dataset != nil {
		in.Source.Snapshots = append(in.Source.Snapshots, toBeTaken(in))
	}
	if in.Token, err = l.token(ctx, in.Target.Dataset.GetResumeToken()); err != nil {
		return nil, err
	}
	plan := repldiff.Decide(in)
	if why := l.inUse(plan.Aside); why != "" {
		plan.Refuse(TargetInUse, why)
	}
	if plan.Refusal != nil || len(plan.Steps) == 0 {
		return plan, nil
	}
	if err := l.estimate(ctx, plan, in); err != nil {
		return nil, err
	}
	return plan, l.fit(ctx, plan, in.Target.Dataset, above)
}

// toBeTakenName stands for the snapshot that a run takes first, in a dry run. No
// snapshot has such a name.
const toBeTakenName = "(new)"

// toBeTaken is the snapshot that a run takes first.
func toBeTaken(in *repldiff.Input) *agentv1.ZfsSnapshot {
	return &agentv1.ZfsSnapshot{
		Dataset: in.Dataset, Name: toBeTakenName, Guid: math.MaxUint64, CreateTxg: math.MaxUint64, Created: in.Now.Unix(),
		ReferencedBytes: in.Source.Dataset.GetReferencedBytes(),
	}
}

// looker asks about one job.
type looker struct {
	ask      Ask
	snapshot *cluster.Snapshot
	job      *storev1.ReplicationJob
	// brief: holds, clones and times are not asked for.
	brief bool
}

// inUse is why a copy may be neither set aside nor taken back: a VM there has a disk
// on it (somebody has let it take the source's place), or another job's copy lies
// below it and would go along. Empty: nothing is known of.
func (l looker) inUse(aside *agentv1.TargetAside) string {
	if aside == nil {
		return ""
	}
	target := l.job.GetTargetDataset()
	for _, vm := range l.snapshot.VMsOn(l.job.GetTarget()) {
		domain := &agentv1.Domain{}
		if proto.Unmarshal(vm.Value.GetDomain(), domain) != nil {
			continue
		}
		for _, d := range domain.GetDisks() {
			if d.GetZfsDataset() == target || strings.HasPrefix(d.GetZfsDataset(), target+"/") {
				return fmt.Sprintf("the copy %s has diverged and is left as it is: VM %s has its disk %s on it", target, vm.Value.GetUuid(), d.GetTarget())
			}
		}
	}
	for id, other := range l.snapshot.Replications {
		if aside.GetRenameTo() != "" && other.Value.GetTarget() == l.job.GetTarget() && strings.HasPrefix(other.Value.GetTargetDataset(), target+"/") {
			return fmt.Sprintf("the copy %s has diverged and is left as it is: the copy of job %s lies below it, and would be set aside with it", target, id)
		}
	}
	return ""
}

// unsafe is why one of the two ends must not have to do with encrypted streams.
func (l looker) unsafe() string {
	for _, node := range []string{l.job.GetSource(), l.job.GetTarget()} {
		inventory := &agentv1.ZfsInventory{}
		if proto.Unmarshal(l.snapshot.ZFS[node].Value.GetInventory(), inventory) == nil && inventory.GetEncryptedSendUnsafe() != "" {
			return node + ": " + inventory.GetEncryptedSendUnsafe()
		}
	}
	return ""
}

// sides asks both ends at once. above is the nearest dataset above the copy that
// there is; nil: none is told.
func (l looker) sides(ctx context.Context, in *repldiff.Input) (above *agentv1.ZfsDataset, err error) {
	var group sync.WaitGroup
	var source error
	group.Go(func() { in.Source, _, source = l.side(ctx, l.job.GetSource(), l.job.GetDataset(), false) })
	group.Go(func() { in.Target, above, err = l.side(ctx, l.job.GetTarget(), l.job.GetTargetDataset(), true) })
	group.Wait()
	if source != nil {
		return nil, source
	}
	if doomed := l.doomed(); len(doomed) > 0 {
		kept := in.Source.Snapshots[:0]
		for _, s := range in.Source.Snapshots {
			if !doomed[s.GetGuid()] {
				kept = append(kept, s)
			}
		}
		in.Source.Snapshots = kept
	}
	return above, err
}

// doomed are the source's snapshots that are just being destroyed.
func (l looker) doomed() map[uint64]bool {
	found := map[uint64]bool{}
	for _, t := range l.snapshot.OpenTasksOn(l.job.GetSource()) {
		spec := &agentv1.TaskSpec{}
		if !strings.HasSuffix(t.Value.GetId(), "/zfs-destroy") || task.Ended(task.State(t.Value.GetState())) || proto.Unmarshal(t.Value.GetSpec(), spec) != nil {
			continue
		}
		for _, s := range spec.GetZfsSnapshotDestroy().GetSnapshots() {
			found[s.GetGuid()] = true
		}
	}
	return found
}

// side asks one end, and for the nearest dataset above where that is wanted.
func (l looker) side(ctx context.Context, node, dataset string, wanted bool) (side repldiff.Side, above *agentv1.ZfsDataset, err error) {
	listing, err := List(ctx, l.ask, node, &agentv1.ListZfs{Datasets: []string{dataset}, Snapshots: true, Bookmarks: true, Brief: l.brief, Above: wanted})
	if err != nil {
		return side, nil, err
	}
	for _, d := range listing.GetDatasets() {
		if d.GetName() == dataset {
			side.Dataset = d
		}
	}
	above = nearest(listing.GetDatasets(), dataset)
	for _, s := range listing.GetSnapshots() {
		if s.GetDataset() == dataset {
			side.Snapshots = append(side.Snapshots, s)
		}
	}
	for _, b := range listing.GetBookmarks() {
		if b.GetDataset() == dataset {
			side.Bookmarks = append(side.Bookmarks, b)
		}
	}
	return side, above, nil
}

// nearest is the nearest of the datasets that the one of that name lies in; nil: it
// lies in none.
func nearest(datasets []*agentv1.ZfsDataset, name string) *agentv1.ZfsDataset {
	var found *agentv1.ZfsDataset
	for _, d := range datasets {
		if strings.HasPrefix(name, d.GetName()+"/") && len(d.GetName()) > len(found.GetName()) {
			found = d
		}
	}
	return found
}

// List asks a node what it has.
func List(ctx context.Context, ask Ask, node string, q *agentv1.ListZfs) (*agentv1.ZfsListing, error) {
	all := &agentv1.ZfsListing{}
	err := ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: q}}, func(a *agentv1.Answer) error {
		part := a.GetZfsListing()
		all.Datasets = append(all.Datasets, part.GetDatasets()...)
		all.Snapshots = append(all.Snapshots, part.GetSnapshots()...)
		all.Bookmarks = append(all.Bookmarks, part.GetBookmarks()...)
		if n := len(all.GetDatasets()) + len(all.GetSnapshots()) + len(all.GetBookmarks()); n > maxListed {
			return errdefs.New(errdefs.FailedPrecondition, "TOO_MANY_SNAPSHOTS", "node %s has more than %d snapshots there", node, maxListed).With("node", node)
		}
		return nil
	})
	return all, err
}

// token asks the source what the target's resume token stands for; nil: nothing
// that the source could go on with.
func (l looker) token(ctx context.Context, token string) (*agentv1.ZfsSendEstimate, error) {
	if token == "" {
		return nil, nil
	}
	return l.sends(ctx, &agentv1.EstimateZfsSend{Dataset: l.job.GetDataset(), Token: token})
}

// sends asks the source about a stream; nil: its ZFS refuses it.
func (l looker) sends(ctx context.Context, q *agentv1.EstimateZfsSend) (*agentv1.ZfsSendEstimate, error) {
	var estimate *agentv1.ZfsSendEstimate
	err := l.ask(ctx, l.job.GetSource(), &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsSend{EstimateZfsSend: q}}, func(a *agentv1.Answer) error {
		estimate = a.GetZfsSendEstimate()
		return nil
	})
	if err != nil && !Passing(err) {
		return nil, nil //nolint:nilerr // ZFS's own refusal is an answer
	}
	return estimate, err
}

// Passing tells whether a question may be answered when it is asked again.
func Passing(err error) bool {
	return errdefs.Is(err, errdefs.Unavailable) || errdefs.Is(err, errdefs.DeadlineExceeded) || errdefs.Is(err, errdefs.ResourceExhausted) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// fresh is about how much a stream to the snapshot will be that a run takes first:
// up to the newest that there is, and what was written since.
func (l looker) fresh(ctx context.Context, plan *repldiff.Plan, from string, in *repldiff.Input) (uint64, error) {
	var newest *agentv1.ZfsSnapshot
	for _, s := range in.Source.Snapshots {
		if s.GetName() != toBeTakenName && s.GetCreateTxg() >= newest.GetCreateTxg() {
			newest = s
		}
	}
	source := in.Source.Dataset
	switch {
	case from == "":
		return source.GetReferencedBytes(), nil
	case newest == nil || from == "@"+newest.GetName():
		return source.GetWrittenBytes(), nil
	}
	e, err := l.sends(ctx, l.stream(plan, from, newest.GetName()))
	return e.GetBytes() + source.GetWrittenBytes(), err
}

// estimate asks how much the steps are. What ZFS cannot tell stays unknown.
func (l looker) estimate(ctx context.Context, plan *repldiff.Plan, in *repldiff.Input) error {
	bytes, total := map[int]uint64{}, uint64(0)
	n := len(plan.Steps)
	if last := plan.Steps[n-1]; last.GetTo() == toBeTakenName {
		n--
		fresh, err := l.fresh(ctx, plan, last.GetFrom(), in)
		if err != nil {
			return err
		}
		bytes[n] = fresh
	}
	each := n
	if n > estimated {
		each = 1
	}
	for i, step := range plan.Steps[:each] {
		if i == 0 && plan.Decision.GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME {
			bytes[0] = in.Token.GetBytes()
			continue
		}
		e, err := l.sends(ctx, l.stream(plan, step.GetFrom(), step.GetTo()))
		if err != nil {
			return err
		}
		if e != nil {
			bytes[i] = e.GetBytes()
		}
	}
	if n > each {
		e, err := l.sends(ctx, l.stream(plan, "@"+plan.Steps[each-1].GetTo(), plan.Steps[n-1].GetTo()))
		if err != nil {
			return err
		}
		total = e.GetBytes() // and, with all that was estimated by itself:
		for _, b := range bytes {
			total += b
		}
	}
	plan.Estimate(bytes, total)
	return nil
}

func (l looker) stream(plan *repldiff.Plan, from, to string) *agentv1.EstimateZfsSend {
	return &agentv1.EstimateZfsSend{Dataset: l.job.GetDataset(), From: from, To: "@" + to, Raw: plan.Raw}
}

// fit refuses a plan for which the target has no room: that of the copy itself,
// or of the nearest dataset above it.
func (l looker) fit(ctx context.Context, plan *repldiff.Plan, copied, above *agentv1.ZfsDataset) error {
	if copied != nil && plan.Aside == nil {
		plan.Fit(copied.GetAvailableBytes())
		return nil
	}
	if above == nil {
		// There is none, or the agent is too old to have told.
		var err error
		if above, err = l.askAbove(ctx); err != nil {
			return err
		}
	}
	if above == nil {
		pool, _, _ := strings.Cut(l.job.GetTargetDataset(), "/")
		plan.Refuse(TargetPoolNotFound, fmt.Sprintf("node %s has no pool %s", l.job.GetTarget(), pool))
		return nil
	}
	plan.Fit(above.GetAvailableBytes())
	return nil
}

// askAbove asks for the nearest dataset above the copy; nil: there is none.
func (l looker) askAbove(ctx context.Context) (*agentv1.ZfsDataset, error) {
	var names []string
	for name := l.job.GetTargetDataset(); ; {
		at := strings.LastIndexByte(name, '/')
		if at < 0 {
			break
		}
		name = name[:at]
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, nil
	}
	listing, err := List(ctx, l.ask, l.job.GetTarget(), &agentv1.ListZfs{Datasets: names})
	return nearest(listing.GetDatasets(), l.job.GetTargetDataset()), err
}
