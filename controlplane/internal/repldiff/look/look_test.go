package look

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// ends are two hosts that answer as agents do, in parts of one.
type ends struct {
	mu     sync.Mutex
	source *agentv1.ZfsListing
	target *agentv1.ZfsListing
	// token is what the target's stands for; nil: the source's ZFS refuses it.
	token *agentv1.ZfsSendEstimate
	// bytes is how much a step carries; 0: ZFS cannot tell.
	bytes uint64
	fails error
	asked []string
	// old: they do not know of brief listings, nor of what lies above.
	old   bool
	lists []string
}

func (e *ends) ask(_ context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	refused := errdefs.New(errdefs.FailedPrecondition, "TOKEN_DEAD", "zfs refuses it")
	switch k := q.GetQuestion().(type) {
	case *agentv1.Ask_ListZfs:
		return e.list(node, k.ListZfs, part)
	case *agentv1.Ask_EstimateZfsSend:
		e.asked = append(e.asked, k.EstimateZfsSend.GetFrom()+">"+k.EstimateZfsSend.GetTo())
		estimate := &agentv1.ZfsSendEstimate{Bytes: e.bytes}
		if k.EstimateZfsSend.GetToken() != "" {
			estimate = e.token
		}
		switch {
		case node != "a":
			return errors.New("only the source can tell")
		case e.fails != nil:
			return e.fails
		case estimate == nil || estimate.GetBytes() == 0:
			return refused
		}
		return part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsSendEstimate{ZfsSendEstimate: estimate}})
	}
	return fmt.Errorf("what is %v?", q)
}

func (e *ends) list(node string, q *agentv1.ListZfs, part func(*agentv1.Answer) error) error {
	has := map[string]*agentv1.ZfsListing{"a": e.source, "b": e.target}[node]
	tell := func(l *agentv1.ZfsListing) error {
		return part(&agentv1.Answer{More: true, Answer: &agentv1.Answer_ZfsListing{ZfsListing: l}})
	}
	e.lists = append(e.lists, strings.Join(append([]string{node}, q.GetDatasets()...), " "))
	for _, d := range has.GetDatasets() {
		for _, name := range q.GetDatasets() {
			if d.GetName() != name && (e.old || !q.GetAbove() || !strings.HasPrefix(name, d.GetName()+"/")) {
				continue
			}
			if err := tell(&agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{d}}); err != nil {
				return err
			}
			for _, s := range has.GetSnapshots() {
				if q.GetBrief() && !e.old {
					s = &agentv1.ZfsSnapshot{Dataset: s.GetDataset(), Name: s.GetName(), Guid: s.GetGuid(), CreateTxg: s.GetCreateTxg()}
				}
				if q.GetSnapshots() && s.GetDataset() == name && d.GetName() == name {
					if err := tell(&agentv1.ZfsListing{Snapshots: []*agentv1.ZfsSnapshot{s}}); err != nil {
						return err
					}
				}
			}
		}
	}
	return part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: &agentv1.ZfsListing{}}})
}

// listing has a dataset with snapshots of those guids.
func listing(name string, d *agentv1.ZfsDataset, guids ...uint64) *agentv1.ZfsListing {
	d.Name = name
	l := &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{d}}
	for _, g := range guids {
		l.Snapshots = append(l.Snapshots, &agentv1.ZfsSnapshot{Dataset: name, Name: fmt.Sprint("s", g), Guid: g, CreateTxg: g})
	}
	return l
}

func job() *storev1.ReplicationJob {
	return &storev1.ReplicationJob{Id: "j", Source: "a", Target: "b", Dataset: "tank/vm", TargetDataset: "backup/x/vm"}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func told(p *repldiff.Plan) string {
	words := []string{strings.ToLower(strings.TrimPrefix(p.Decision.GetMode().String(), "REPLICATION_MODE_"))}
	for _, s := range p.Steps {
		words = append(words, s.GetFrom()+">@"+s.GetTo())
	}
	if p.Refusal != nil {
		words = append(words, p.Refusal.Code)
	}
	return fmt.Sprint(strings.Join(words, " "), " ", p.Decision.GetEstimatedBytes())
}

func TestPlan(t *testing.T) {
	copied := func() *agentv1.ZfsDataset {
		return &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", AvailableBytes: 1000}
	}
	above := func(name string, available uint64) *agentv1.ZfsDataset {
		return &agentv1.ZfsDataset{Name: name, AvailableBytes: available}
	}
	for _, c := range []struct {
		name string
		ends *ends
		set  func(d *cluster.Draft, j *storev1.ReplicationJob)
		want string
	}{
		{
			"the first time", &ends{
				source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), bytes: 10,
				target: &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{above("backup", 1000), above("backup/x", 20)}},
			}, nil, "full >@s1 @s1>@s2 20",
		},
		{
			"no room in the nearest", &ends{
				source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), bytes: 10,
				target: &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{above("backup", 1000), above("backup/x", 19)}},
			}, nil, "refused TARGET_NO_SPACE 20",
		},
		{
			"no such pool", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1), bytes: 10, target: &agentv1.ZfsListing{}},
			nil, "refused TARGET_POOL_NOT_FOUND 10",
		},
		{
			"only what is new", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), target: listing("backup/x/vm", copied(), 1), bytes: 10},
			nil, "incremental @s1>@s2 10",
		},
		{
			"ZFS cannot tell how much", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), target: listing("backup/x/vm", copied(), 1)},
			nil, "incremental @s1>@s2 0",
		},
		{
			"what is just being destroyed is not sent", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2, 3), target: listing("backup/x/vm", copied(), 1), bytes: 10},
			func(d *cluster.Draft, _ *storev1.ReplicationJob) {
				spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotDestroy{ZfsSnapshotDestroy: &agentv1.ZfsSnapshotDestroy{Snapshots: []*agentv1.ZfsSnapshotID{{Guid: 2}}}}}
				d.Tasks.Put("op/1/zfs-destroy", &storev1.Task{Id: "op/1/zfs-destroy", Node: "a", State: storev1.TaskState_TASK_STATE_RUNNING, Spec: encode(t, spec)}, 1)
			}, "incremental @s1>@s3 10",
		},
		{
			"the versions of ZFS are not safe", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1, Encrypted: true}, 1), target: &agentv1.ZfsListing{}},
			func(d *cluster.Draft, _ *storev1.ReplicationJob) {
				d.ZFS.Put("b", &storev1.NodeZFS{Node: "b", Inventory: encode(t, &agentv1.ZfsInventory{EncryptedSendUnsafe: "2.1.0"})}, 1)
			}, "refused ENCRYPTED_SEND_UNSAFE 0",
		},
		{
			"the options are the job's", &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2, 3), target: listing("backup/x/vm", copied(), 1), bytes: 10},
			func(_ *cluster.Draft, j *storev1.ReplicationJob) {
				j.Options = encode(t, &debvisorv1.ReplicationOptions{NewestOnly: true})
			}, "incremental @s1>@s3 10",
		},
	} {
		d, j := cluster.Empty().Draft(), job()
		if c.set != nil {
			c.set(d, j)
		}
		p, err := Plan(t.Context(), c.ends.ask, d.Snapshot(1), j, More{Run: true}, noon)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := told(p); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A copy that something depends on is neither set aside nor taken back.
func TestCopiesInUse(t *testing.T) {
	for _, c := range []struct {
		name, want string
		set        func(d *cluster.Draft)
	}{
		{"nobody's", "full >@s1 @s1>@s2 20", func(d *cluster.Draft) {
			d.VMs.Put("u", &storev1.VM{Uuid: "u", Node: "a", Domain: encode(t, &agentv1.Domain{Disks: []*debvisorv1.VMDisk{{ZfsDataset: "backup/x/vm"}}})}, 1)
			d.Replications.Put("k", &storev1.ReplicationJob{Id: "k", Target: "b", TargetDataset: "backup/x/vm2"}, 1)
		}},
		{"a VM's disk", "refused TARGET_IN_USE 0", func(d *cluster.Draft) {
			d.VMs.Put("u", &storev1.VM{Uuid: "u", Node: "b", Domain: encode(t, &agentv1.Domain{Disks: []*debvisorv1.VMDisk{{ZfsDataset: "backup/x/vm"}}})}, 1)
		}},
		{"another copy below it", "refused TARGET_IN_USE 0", func(d *cluster.Draft) {
			d.Replications.Put("k", &storev1.ReplicationJob{Id: "k", Target: "b", TargetDataset: "backup/x/vm/disk"}, 1)
		}},
	} {
		target := listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", WrittenBytes: 7, AvailableBytes: 1000}, 1)
		target.Datasets = append(target.Datasets, &agentv1.ZfsDataset{Name: "backup/x", AvailableBytes: 1000})
		both := &ends{source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), target: target, bytes: 10}
		d := cluster.Empty().Draft()
		c.set(d)
		p, err := Plan(t.Context(), both.ask, d.Snapshot(1), job(), More{Run: true}, noon)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(p); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A dry run counts on the snapshot that the run takes first.
func TestDryRun(t *testing.T) {
	source := func(guids ...uint64) *agentv1.ZfsListing {
		return listing("tank/vm", &agentv1.ZfsDataset{Guid: 1, WrittenBytes: 3, ReferencedBytes: 500}, guids...)
	}
	room := &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{{Name: "backup", AvailableBytes: 1000}}}
	copied := listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", AvailableBytes: 1000}, 1)
	for _, c := range []struct {
		name    string
		ends    *ends
		options *debvisorv1.ReplicationOptions
		want    string
	}{
		{"no snapshot yet", &ends{source: source(), target: room, bytes: 10}, nil, "full >@(new) 500"},
		{"nothing new yet", &ends{source: source(1), target: copied, bytes: 10}, nil, "incremental @s1>@(new) 3"},
		{"what is there, and the new one", &ends{source: source(1, 2), target: copied, bytes: 10}, nil, "incremental @s1>@s2 @s2>@(new) 13"},
		{"the new one alone", &ends{source: source(1, 2), target: copied, bytes: 10}, &debvisorv1.ReplicationOptions{NewestOnly: true}, "incremental @s1>@(new) 13"},
		{"none is taken", &ends{source: source(1), target: copied, bytes: 10}, &debvisorv1.ReplicationOptions{NoSnapshot: true}, "nothing 0"},
	} {
		j := job()
		j.Options = encode(t, c.options)
		p, err := Plan(t.Context(), c.ends.ask, cluster.Empty(), j, More{}, noon)
		if err != nil || told(p) != c.want {
			t.Errorf("%s: %s, want %s (%v)", c.name, told(p), c.want, err)
		}
	}
}

// TestADryRunAsksLess: no holds, clones and times, and once only for what lies above
// the copy; what it decides is what it would with all of it, and with agents that are
// too old to leave it out. A run asks for all.
func TestADryRunAsksLess(t *testing.T) {
	kept := func(l *agentv1.ZfsListing) *agentv1.ZfsListing {
		for i, s := range l.GetSnapshots() {
			s.Created, s.Holds, s.Clones = int64(1e9-i), []string{"debvisor:j", "x"}, []string{"tank/clone"}
		}
		return l
	}
	source := kept(listing("tank/vm", &agentv1.ZfsDataset{Guid: 1, WrittenBytes: 3, ReferencedBytes: 500}, 1, 2, 3))
	target := func(written uint64, guids ...uint64) *agentv1.ZfsListing {
		l := kept(listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", AvailableBytes: 1000, WrittenBytes: written}, guids...))
		l.Datasets = append(l.Datasets, &agentv1.ZfsDataset{Name: "backup/x", AvailableBytes: 999}, &agentv1.ZfsDataset{Name: "backup", AvailableBytes: 5})
		return l
	}
	nothing := target(0)
	nothing.Datasets = nothing.Datasets[1:]
	for _, c := range []struct {
		name    string
		target  *agentv1.ZfsListing
		options *debvisorv1.ReplicationOptions
		asked   int // for listings, by a leader of agents that are not too old
	}{
		{"no copy", nothing, nil, 2},
		{"no pool", &agentv1.ZfsListing{}, nil, 3},
		{"a copy", target(0, 1, 2), nil, 2},
		{"nothing new", target(0, 1, 2, 3), &debvisorv1.ReplicationOptions{NoSnapshot: true}, 2},
		{"written to", target(7, 1, 2), nil, 2},
		{"newer", target(0, 1, 2, 9), nil, 2},
		{"nothing in common", target(0, 8, 9), &debvisorv1.ReplicationOptions{RefuseDiverged: true}, 2},
	} {
		j := job()
		j.Options = encode(t, c.options)
		plan := func(old bool, more More) (*repldiff.Plan, []string) {
			t.Helper()
			e := &ends{source: source, target: c.target, bytes: 10, old: old}
			p, err := Plan(t.Context(), e.ask, cluster.Empty(), j, more, noon)
			if err != nil {
				t.Fatal(err)
			}
			return p, e.lists
		}
		brief, asked := plan(false, More{})
		long, _ := plan(true, More{})
		if !proto.Equal(brief.Decision, long.Decision) || told(brief) != told(long) || len(asked) != c.asked {
			t.Errorf("%s: %s after %q, want %s (%d questions)\n%v\n%v", c.name, told(brief), asked, told(long), c.asked, brief.Decision, long.Decision)
		}
		run, _ := plan(false, More{Run: true})
		if want, _ := plan(true, More{Run: true}); run.LastCreated != want.LastCreated || run.CommonCreated != want.CommonCreated || run.Unmarked != want.Unmarked {
			t.Errorf("%s: a run knows less: %+v, want %+v", c.name, run, want)
		}
	}
}

func TestTokens(t *testing.T) {
	for _, c := range []struct {
		name  string
		token *agentv1.ZfsSendEstimate
		want  string
	}{
		{"one that fits", &agentv1.ZfsSendEstimate{To: "tank/vm@s2", ToGuid: 2, FromGuid: 1, Bytes: 7}, "resume @s1>@s2 @s2>@s3 17"},
		{"one that leads to nothing", nil, "incremental @s1>@s2 @s2>@s3 20"},
		{"one that lies", &agentv1.ZfsSendEstimate{To: "tank/secret@s2", ToGuid: 2, FromGuid: 1, Bytes: 7}, "incremental @s1>@s2 @s2>@s3 20"},
	} {
		e := &ends{
			source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2, 3), bytes: 10, token: c.token,
			target: listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", AvailableBytes: 1000, Partial: true, ResumeToken: "1-x"}, 1),
		}
		p, err := Plan(t.Context(), e.ask, cluster.Empty(), job(), More{Run: true}, noon)
		if err != nil || told(p) != c.want {
			t.Errorf("%s: %v, %v; want %s", c.name, told(p), err, c.want)
		}
	}
}

// TestManyStepsAreFewQuestions: of many steps the first is estimated, and the
// others as one.
func TestManyStepsAreFewQuestions(t *testing.T) {
	guids := make([]uint64, 100)
	for i := range guids {
		guids[i] = uint64(i + 1)
	}
	e := &ends{
		source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, guids...), bytes: 10,
		target: listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", AvailableBytes: 1000}, 1),
	}
	p, err := Plan(t.Context(), e.ask, cluster.Empty(), job(), More{Run: true}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if last := e.asked[len(e.asked)-1]; len(p.Steps) != 99 || len(e.asked) != 2 || last != "@s2>@s100" || p.Decision.GetEstimatedBytes() != 20 {
		t.Errorf("%d steps of %d bytes after %v", len(p.Steps), p.Decision.GetEstimatedBytes(), e.asked)
	}
}

// TestNothingIsDecidedOnHalfAnAnswer: where one end cannot be asked, there is no
// plan, and the error tells whether it is worth asking again.
func TestNothingIsDecidedOnHalfAnAnswer(t *testing.T) {
	gone := errdefs.New(errdefs.Unavailable, "SESSION_ENDED", "the session ended")
	e := &ends{
		source: listing("tank/vm", &agentv1.ZfsDataset{Guid: 1}, 1, 2), fails: gone,
		target: listing("backup/x/vm", &agentv1.ZfsDataset{Guid: 2, ReplicationJob: "j", Partial: true, ResumeToken: "1-x"}, 1),
	}
	if p, err := Plan(t.Context(), e.ask, cluster.Empty(), job(), More{Run: true}, noon); p != nil || !errors.Is(err, gone) || !Passing(err) {
		t.Errorf("a plan %v, %v", p, err)
	}
	for _, node := range []string{"a", "b"} {
		broken := func(ctx context.Context, asked string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
			if asked == node && q.GetListZfs() != nil {
				return gone
			}
			return e.ask(ctx, asked, q, part)
		}
		if p, err := Plan(t.Context(), broken, cluster.Empty(), job(), More{}, noon); p != nil || !errors.Is(err, gone) {
			t.Errorf("without %s a plan %v, %v", node, p, err)
		}
	}
	if Passing(errdefs.New(errdefs.FailedPrecondition, "ZFS_ERROR", "no")) {
		t.Error("what ZFS refuses does not pass")
	}
}
