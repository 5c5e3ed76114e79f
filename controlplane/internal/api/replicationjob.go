package api

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// pair is what a replication job keeps alike: a dataset and its copy.
type pair struct {
	source, dataset, target, copied string
}

// words are what a pair is called in messages.
func (p pair) String() string {
	return p.source + ":" + p.dataset + " → " + p.target + ":" + p.copied
}

// id is the job's id where the caller gives none: the same for the same pair, so
// that two who ask for the same at once ask for one job.
func (p pair) id() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", p.source, p.dataset, p.target, p.copied))
	return "repl-" + base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding).EncodeToString(sum[:])[:20]
}

func pairOf(job *storev1.ReplicationJob) pair {
	return pair{job.GetSource(), job.GetDataset(), job.GetTarget(), job.GetTargetDataset()}
}

// jobName is what ids of jobs are made of: they are in the names of bookmarks
// and in the tags of holds.
var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`) //nolint:gochecknoglobals // constant

func checkJob(id string) error {
	if jobName.MatchString(id) {
		return nil
	}
	return errdefs.Field("job_id", clip(id), `1 to 64 letters, digits, "-", "_" and ".", the first a letter or digit`)
}

// findJob gives a job of the scope. The error is NotFound.
func findJob(scope cluster.Scope, id string) (cluster.Entry[*storev1.ReplicationJob], error) {
	if err := checkJob(id); err != nil {
		return cluster.Entry[*storev1.ReplicationJob]{}, err
	}
	entry, ok := scope.Replication(id)
	if !ok {
		return entry, errdefs.New(errdefs.NotFound, "JOB_NOT_FOUND", "no replication job %q", id).With("job", id)
	}
	return entry, nil
}

// jobs are replication jobs by their ids.
type jobs map[string]cluster.Entry[*storev1.ReplicationJob]

// everyJob is for what must be true among all jobs, whosever they are: that no
// two write one copy, and that no chain of them leads back. What is told of it
// goes through the scope.
func everyJob(s *cluster.Snapshot) jobs { return s.Replications }

// of gives the job that keeps a pair alike, whosever it is.
func (j jobs) of(p pair) (cluster.Entry[*storev1.ReplicationJob], bool) {
	for _, entry := range j {
		if pairOf(entry.Value) == p {
			return entry, true
		}
	}
	return cluster.Entry[*storev1.ReplicationJob]{}, false
}

// resolvePair finds what is to be kept alike. fields name the request's source,
// target and copy. copied is the copy's full name; empty: the same.
func (s *storageService) resolvePair(
	ctx context.Context, scope cluster.Scope, field string, ref *debvisorv1.DatasetRef, targetField string, target *debvisorv1.NodeRef, copyField, copied string,
) (pair, dataset, error) {
	d, err := s.resolve(ctx, scope, field, ref, "replicate")
	if err != nil {
		return pair{}, d, err
	}
	to, err := needNode(scope.Snapshot(), targetField, target)
	if err != nil {
		return pair{}, d, err
	}
	p := pair{d.node, d.path, to.Value.GetId(), copied}
	if p.copied == "" {
		p.copied = p.dataset
	}
	pool, name, _ := strings.Cut(p.copied, "/")
	copyRef := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name}
	if _, err := cluster.ZFSPath(copyField, pool, name); err != nil {
		return p, d, err
	}
	if err := s.own(scope, copyRef); err != nil {
		return p, d, err
	}
	if p.source == p.target {
		return p, d, errdefs.Field(targetField, p.target, "another node than the source's: a copy on the same node is lost with it")
	}
	of, to2 := s.ownerOfAll(scope.Snapshot(), p.dataset), s.ownerOfAll(scope.Snapshot(), p.copied)
	if of != "" && to2 != "" && of != to2 {
		return p, d, errdefs.New(errdefs.FailedPrecondition, "TENANTS_DIFFER", "%s belongs to tenant %s and %s to tenant %s: a tenant's data is not put into another's storage",
			p.dataset, of, p.copied, to2).With("dataset", p.dataset).With("target_dataset", p.copied)
	}
	return p, d, nil
}

// longest is how long a dataset's name may be so that what we add to it fits: a
// bookmark of the job ("#debvisor-<job>-<16 hex digits>"), a snapshot of ours, the
// name under which a copy is set aside.
func longest(job string) int {
	return 255 - max(len("#debvisor--")+len(job)+16, cluster.SnapshotNameLength, len(".diverged-20060102t150405"))
}

// fits refuses a pair that a job could not be made for: a name too long, a copy
// that another job writes, or a chain of jobs that comes back to its source.
func fits(scope cluster.Scope, all jobs, copyField, id string, p pair) error {
	if n := longest(id); len(p.dataset) > n || len(p.copied) > n {
		return errdefs.Field(copyField, clip(p.copied), fmt.Sprintf("datasets of at most %d bytes, so that the names of their snapshots, bookmarks and set-aside copies fit", n))
	}
	for _, entry := range all {
		job := entry.Value
		if job.GetId() == id || job.GetTarget() != p.target || job.GetTargetDataset() != p.copied {
			continue
		}
		return errdefs.New(errdefs.FailedPrecondition, "TARGET_TAKEN", "%s on %s is the copy of another replication job (%s) already; give the copy another name",
			p.copied, p.target, shownJob(scope, job.GetId())).With("field", copyField).With("target_dataset", p.copied)
	}
	if chain := all.loop(id, p); chain != nil {
		return errdefs.New(errdefs.FailedPrecondition, "REPLICATION_LOOP", "the copy would be replicated back over its own source, %s on %s, by %s", p.dataset, p.source, chainText(scope, chain)).
			With("field", copyField).With("jobs", chainText(scope, chain))
	}
	return nil
}

// loop gives the jobs, in order, by which what is written to a pair's copy comes
// back to its source; nil: it does not.
func (j jobs) loop(id string, p pair) []string {
	type place struct{ node, path string }
	from := map[place][]string{{p.target, p.copied}: {}}
	for todo := []place{{p.target, p.copied}}; len(todo) > 0; todo = todo[1:] {
		at := todo[0]
		if at.node == p.source && overlap(at.path, p.dataset) {
			return append(from[at], id)
		}
		for _, entry := range j {
			job := entry.Value
			next := place{job.GetTarget(), job.GetTargetDataset()}
			if _, seen := from[next]; seen || job.GetId() == id || job.GetSource() != at.node || !overlap(job.GetDataset(), at.path) {
				continue
			}
			from[next] = append(append([]string{}, from[at]...), job.GetId())
			todo = append(todo, next)
		}
	}
	return nil
}

func chainText(scope cluster.Scope, jobs []string) string {
	shown := make([]string, 0, len(jobs))
	for _, id := range jobs[:len(jobs)-1] { // the last is the one that is asked for
		shown = append(shown, shownJob(scope, id))
	}
	return strings.Join(append(shown, "this one"), ", then ")
}

// overlap tells whether one name is the other, or lies in it.
func overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}

// newJob makes a job of a pair.
func (s *storageService) newJob(ctx context.Context, scope cluster.Scope, id string, p pair, guid uint64) *storev1.ReplicationJob {
	return &storev1.ReplicationJob{
		Id: id, Source: p.source, Target: p.target, Dataset: p.dataset, TargetDataset: p.copied, DatasetGuid: guid,
		Tenant:    s.ownerOfAll(scope.Snapshot(), p.dataset, p.copied),
		CreatedAt: timestamppb.New(time.Now()), CreatedBy: authn.From(ctx).Name,
	}
}

// needsSnapshots refuses to replicate a copy on with snapshots of its own, by
// which it would diverge from what it is the copy of.
func needsSnapshots(field string, d dataset, o *debvisorv1.ReplicationOptions) error {
	if d.known.GetReplicationJob() == "" || o.GetNoSnapshot() {
		return nil
	}
	return errdefs.Field(field+".no_snapshot", "false", fmt.Sprintf("true: %s on %s is a copy itself, and would diverge by snapshots of its own", d.path, d.node))
}

// beingDeleted refuses a job that is on its way out.
func beingDeleted(job *storev1.ReplicationJob) error {
	if !job.GetDeleting() {
		return nil
	}
	return errdefs.New(errdefs.Aborted, "JOB_DELETING", "replication job %s is being deleted; try again once it is gone", job.GetId()).
		With("job", job.GetId()).WithRetry(2 * time.Second)
}
