//go:build ceph_preview

package rbd

import (
	"context"
	"slices"
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// rememberFor is how long a template need not be looked at again: it costs more than
// a clone. What the clone's parent turns out to be is checked in any case.
const rememberFor = 3 * time.Second

// template is an image with snapshots to clone.
type template struct {
	is        *agentv1.RbdImageID
	features  uint64
	depth     uint32
	snapshots []*agentv1.RbdSnapshot
	// snapshot is the one that was asked for.
	snapshot *agentv1.RbdSnapshotID
	at       time.Time
}

// templates are those that were looked at just now, by pool, namespace and name.
type templates struct {
	mu    sync.Mutex
	known map[string]template
}

func (t *templates) get(id *agentv1.RbdImageID) (template, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, known := range t.known {
		if time.Since(known.at) > rememberFor {
			delete(t.known, key)
		}
	}
	known, ok := t.known[Shown(id)]
	return known, ok
}

func (t *templates) put(id *agentv1.RbdImageID, known template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = map[string]template{}
	}
	t.known[Shown(id)] = known
}

func (t *templates) forget(id *agentv1.RbdImageID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, Shown(id))
}

// template looks for what is to be cloned. Only what was looked at just now is
// refused.
func (cl *cloning) template(ctx context.Context) (template, error) {
	id := cl.want.GetTemplate()
	if known, ok := cl.cluster.templates.get(id.GetImage()); ok {
		if t, err := cl.choose(known); err == nil {
			return t, nil
		}
	}
	i, err := cl.cluster.open(ctx, cl.request, id.GetImage(), false)
	if err != nil {
		return template{}, err
	}
	defer i.close()
	fresh := template{is: i.is, at: time.Now()}
	if fresh.features, err = i.GetFeatures(); err != nil {
		return fresh, translate(err, false, "asking %s for its features", Shown(i.is))
	}
	d := &describer{cluster: cl.cluster, request: cl.request, depths: map[string]uint32{}}
	if fresh.snapshots, err = d.snapshots(ctx, i, marks{}); err != nil {
		return fresh, err
	}
	if fresh.depth, err = d.depth(ctx, i, 0); err != nil {
		return fresh, err
	}
	cl.cluster.templates.put(id.GetImage(), fresh)
	return cl.choose(fresh)
}

// choose finds the snapshot that was asked for, and refuses what cannot be cloned.
func (cl *cloning) choose(t template) (template, error) {
	id := cl.want.GetTemplate()
	about := ShownSnapshot(id)
	at := slices.IndexFunc(t.snapshots, func(s *agentv1.RbdSnapshot) bool {
		if id.GetId() != 0 {
			return s.GetSnapshot().GetId() == id.GetId()
		}
		return s.GetSnapshot().GetName() == id.GetName()
	})
	named := slices.ContainsFunc(t.snapshots, func(s *agentv1.RbdSnapshot) bool { return s.GetSnapshot().GetName() == id.GetName() })
	switch most := cl.want.GetMaxDepth(); {
	case id.GetImage().GetId() != "" && id.GetImage().GetId() != t.is.GetId():
		return t, errdefs.New(errdefs.Aborted, CodeImageReplaced, "%s is another image by now", Shown(id.GetImage())).With("image", Shown(id.GetImage()))
	case at < 0 && named:
		return t, errdefs.New(errdefs.Aborted, CodeSnapshotReplaced, "%s is another snapshot by now", about).With("snapshot", about)
	case at < 0:
		return t, errdefs.New(errdefs.NotFound, CodeSnapshotNotFound, "there is no snapshot %s", about).With("snapshot", about)
	case t.snapshots[at].GetGroup() != "":
		return t, errdefs.New(errdefs.FailedPrecondition, CodeNoTemplate, "%s is part of a group's snapshot, which Ceph does not clone", about).With("snapshot", about)
	case most > 0 && t.depth+1 > most:
		return t, errdefs.New(errdefs.FailedPrecondition, CodeCloneTooDeep, "%d parents would stand above the clone; at most %d may: flatten %s first", t.depth+1, most, Shown(t.is)).
			With("image", Shown(t.is))
	}
	t.snapshot = t.snapshots[at].GetSnapshot()
	cl.want.Template = &agentv1.RbdSnapshotID{Image: t.is, Name: t.snapshot.GetName(), Id: t.snapshot.GetId()}
	return t, nil
}
