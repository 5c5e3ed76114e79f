package api

import (
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	"github.com/debvisor/debvisor/controlplane/internal/retention/facts"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// facts gives what retention decides on, with the names left out that the
// scope's callers may not read. What protects a snapshot protects it whoever
// asks.
func (s *storageService) facts(scope cluster.Scope, node string, listing *agentv1.ZfsListing) ([]retention.Snapshot, retention.Protection) {
	all, protection := facts.Snapshots(listing), facts.Protection(scope.Snapshot(), node, listing)
	if !scope.Confined() {
		return all, protection
	}
	for i := range all {
		all[i].Holds = shownHolds(scope, all[i].Holds)
		var clones []string
		for _, clone := range all[i].Clones {
			clones = append(clones, s.shown(scope, node, clone))
		}
		all[i].Clones = clones
	}
	for _, cursors := range protection.Cursors {
		for i, c := range cursors {
			if cursors[i].Job = shownJob(scope, c.Job); cursors[i].Job == hidden {
				cursors[i].Node = hidden
			}
		}
	}
	for _, jobs := range protection.Resumes {
		for i, job := range jobs {
			jobs[i] = shownJob(scope, job)
		}
	}
	return all, protection
}

// pathInText is what may be a dataset's name: parts with "/" between, which
// begin with a letter and are no path of a file.
var pathInText = regexp.MustCompile(`(^|[^/A-Za-z0-9_.:-])([A-Za-z][A-Za-z0-9_.:-]*(?:/[A-Za-z0-9_.:-]+)+)`) //nolint:gochecknoglobals // constant

// quotePaths leaves out of a text, such as ZFS's own words, the names of
// datasets that are none of those that the caller asked about, nor below them.
func quotePaths(own []string, text string) string {
	return pathInText.ReplaceAllStringFunc(text, func(found string) string {
		at := strings.IndexFunc(found, func(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' })
		name := strings.TrimRight(found[at:], ".:")
		for _, path := range own {
			if name == path || strings.HasPrefix(name, path+"/") {
				return found
			}
		}
		return found[:at] + hidden + found[at+len(name):]
	})
}

// datasetsOf are the datasets that an operation on storage is about.
func datasetsOf(op *storev1.Operation) (paths []string, storage bool) {
	switch {
	case op.GetTakeSnapshots() != nil:
		return append(imageNames(op.GetTakeSnapshots().GetImages()), op.GetTakeSnapshots().GetDatasets()...), true
	case op.GetRemoveSnapshots().GetFsid() != "":
		return removedImages(op.GetRemoveSnapshots()), true
	case op.GetCloneImage() != nil:
		template := decode(op.GetCloneImage().GetTemplate(), &agentv1.RbdSnapshotID{})
		return append(imageNames([][]byte{op.GetCloneImage().GetImage()}), cluster.RBDPath(template.GetImage())), true
	case op.GetChangeImage() != nil:
		return imageNames([][]byte{op.GetChangeImage().GetImage()}), true
	case op.GetRemoveSnapshots() != nil:
		for _, b := range op.GetRemoveSnapshots().GetSnapshots() {
			paths = append(paths, decode(b, &agentv1.ZfsSnapshotID{}).GetDataset())
		}
		return append(paths, op.GetRemoveSnapshots().GetDatasets()...), true
	case op.GetReplicate() != nil:
		return []string{op.GetReplicate().GetDataset(), op.GetReplicate().GetTargetDataset()}, true
	}
	return nil, false
}

// readableStorage leaves others' datasets out of the texts of an operation on
// storage, which is the reader's own copy.
func readableStorage(scope cluster.Scope, op *storev1.Operation) {
	own, storage := datasetsOf(op)
	if !storage {
		return
	}
	op.Step, op.ErrorMessage = discreetText(scope, own, op.GetStep()), discreetText(scope, own, op.GetErrorMessage())
	for key, text := range op.GetErrorContext() {
		op.ErrorContext[key] = discreetText(scope, own, text)
	}
}

// jobInText is how our texts and the tags of our holds name a job.
var jobInText = regexp.MustCompile(`\b(job |debvisor:)([A-Za-z0-9][A-Za-z0-9_.-]*)`) //nolint:gochecknoglobals // constant

// discreetText leaves out of a text about datasets what names others' jobs,
// datasets and all else that has an id.
func discreetText(scope cluster.Scope, own []string, text string) string {
	if !scope.Confined() {
		return text
	}
	text = jobInText.ReplaceAllStringFunc(quotePaths(own, text), func(found string) string {
		parts := jobInText.FindStringSubmatch(found)
		id := strings.TrimRight(parts[2], ".")
		if _, exists := everyJob(scope.Snapshot())[id]; !exists {
			return found
		}
		return parts[1] + shownJob(scope, id) + parts[2][len(id):]
	})
	return quote(scope, func(string) bool { return false }, text)
}

// snapshotDetails and replicationDetails give what is particular to operations
// on storage; nil for others.
func snapshotDetails(scope cluster.Scope, op *storev1.Operation) *debvisorv1.SnapshotDetails {
	if take := op.GetTakeSnapshots(); take != nil {
		d := &debvisorv1.SnapshotDetails{
			Node: nodeRef(take.GetNode()), Datasets: take.GetDatasets(), Name: take.GetName(), Label: take.GetLabel(), Freeze: freezeResult(take),
			Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Template: take.GetTemplate(),
		}
		if len(take.GetImages()) > 0 {
			d.Datasets, d.Backend = imageNames(take.GetImages()), debvisorv1.StorageBackend_BACKEND_RBD
		}
		return d
	}
	r := op.GetRemoveSnapshots()
	if r == nil {
		return nil
	}
	d := &debvisorv1.SnapshotDetails{
		Node: nodeRef(r.GetNode()), Datasets: r.GetDatasets(), Removed: r.GetRemoved(), FreedBytes: r.GetFreedBytes(),
		Policy: r.GetPolicy(), KeptBecause: keptBecause(scope, r), Backend: debvisorv1.StorageBackend_BACKEND_ZFS,
	}
	if r.GetFsid() != "" {
		d.Datasets, d.Backend = removedImages(r), debvisorv1.StorageBackend_BACKEND_RBD
		return d
	}
	for _, b := range r.GetSnapshots() {
		if one := decode(b, &agentv1.ZfsSnapshotID{}); len(d.GetDatasets()) == 0 || d.GetDatasets()[len(d.GetDatasets())-1] != one.GetDataset() {
			d.Datasets = append(d.Datasets, one.GetDataset())
		}
	}
	return d
}

// removedImages are the images that a removal is about, each once.
func removedImages(r *storev1.RemoveSnapshots) []string {
	names := imageNames(r.GetImages())
	for _, b := range r.GetSnapshots() {
		if name := cluster.RBDPath(decode(b, &agentv1.RbdSnapshotID{}).GetImage()); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func replicationDetails(op *storev1.Operation) *debvisorv1.ReplicationDetails {
	r := op.GetReplicate()
	if r == nil {
		return nil
	}
	return &debvisorv1.ReplicationDetails{
		JobId: r.GetJobId(), Source: nodeRef(r.GetSource()), Target: nodeRef(r.GetTarget()), Dataset: r.GetDataset(), TargetDataset: r.GetTargetDataset(),
		Attempt: r.GetAttempt(), Resumes: r.GetResumes(), Policy: r.GetPolicy(), SetAside: r.GetSetAside(),
	}
}

// encodeMessage gives a message as records hold it, always the same.
func encodeMessage(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
