package image

import (
	"context"
	"slices"
	"time"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// fenceKind is rbd-fence: nobody but us can write to the images any more.
type fenceKind struct{ i *Images }

// Name is the kind's.
func (fenceKind) Name() string { return "rbd-fence" }

// Do blocklists whoever has the images open. The outcome says who, also where it
// has failed or was cancelled: those entries are ours to take off again. Who was
// found is in the journal before anybody is blocklisted, so that this is so after
// a death of the agent, too.
func (k fenceKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdFence()
	if len(spec.GetImages()) == 0 || spec.GetFsid() == "" || spec.GetExpireSeconds() == 0 {
		return failure(codeInternal, "the task %s names no image, no cluster or no time", t.GetId())
	}
	f := &fencing{work: k.i.work(t, run), spec: spec, evidence: &agentv1.FenceEvidence{Fsid: spec.GetFsid()}}
	out := f.end(ctx, f.do(ctx))
	if out != nil {
		out.Rbd = &agentv1.RbdOutcome{Evidence: f.evidence}
	}
	return out
}

// Observe leaves it to another attempt: only that proves that nobody is there.
func (k fenceKind) Observe(context.Context, *agentv1.Task, worker.Run) *agentv1.TaskOutcome {
	return broken("the agent's journal was lost before the images were known to be fenced")
}

// fencing is one rbd-fence at work.
type fencing struct {
	*work
	spec     *agentv1.RbdFence
	evidence *agentv1.FenceEvidence
	// noted are those that this process has found, before it blocklists anybody.
	noted []*agentv1.FencedImage
}

func (f *fencing) do(ctx context.Context) error {
	if f.unwanted() {
		return errCancelled
	}
	if err := f.insist(ctx, "looking who has the images open", f.note); err != nil {
		return err
	}
	f.pass(pointFenceFound)
	if isCancelled(f.run) && !f.run.Resumed() {
		return errCancelled
	}
	calls := 0
	err := f.insist(ctx, "fencing", func(ctx context.Context) error {
		calls++
		found, err := f.cfg.Ceph.Fence(ctx, f.spec.GetImages(), f.spec.GetFsid(), time.Duration(f.spec.GetExpireSeconds())*time.Second)
		f.add(found)
		return err
	})
	if passing(err) {
		// Each of them may be on the blocklist: whoever takes them off harms nobody.
		f.add(&agentv1.FenceEvidence{Fsid: f.spec.GetFsid(), Images: f.noted, Blocklisted: addresses(f.noted)})
	}
	if err != nil {
		return err
	}
	f.pass(pointFenced)
	if calls == 1 && !f.run.Resumed() {
		return nil
	}
	return f.remember(ctx)
}

// addresses are those of the clients, each once.
func addresses(images []*agentv1.FencedImage) (all []string) {
	for _, image := range images {
		for _, client := range slices.Concat(image.GetWatchers(), image.GetLockers()) {
			if !slices.Contains(all, client.GetAddress()) {
				all = append(all, client.GetAddress())
			}
		}
	}
	return all
}

// note writes down who has the images open.
func (f *fencing) note(ctx context.Context) error {
	f.noted = nil
	for _, id := range f.spec.GetImages() {
		image, _, err := f.cfg.Ceph.Image(ctx, id, true)
		if err != nil {
			return err
		}
		for _, client := range slices.Concat(image.GetWatchers(), image.GetLockers()) {
			if err := f.run.Mark(ctx, found(id, client.GetAddress())); err != nil {
				return err
			}
		}
		f.noted = append(f.noted, &agentv1.FencedImage{Image: id, Watchers: image.GetWatchers(), Lockers: image.GetLockers()})
	}
	return nil
}

// found is the mark that a client was found at an image.
func found(id *agentv1.RbdImageID, address string) string {
	return "found " + id.GetPool() + "/" + id.GetNamespace() + "/" + id.GetId() + " " + address
}

// add adds what a call has found and done to what former ones have.
func (f *fencing) add(found *agentv1.FenceEvidence) {
	if found == nil {
		return
	}
	before := f.evidence
	f.evidence = found
	for _, image := range before.GetImages() {
		for _, client := range image.GetWatchers() {
			f.addClient(image.GetImage(), client, false)
		}
		for _, client := range image.GetLockers() {
			f.addClient(image.GetImage(), client, true)
		}
	}
	for _, entry := range before.GetBlocklisted() {
		f.addEntry(entry)
	}
}

func (f *fencing) addEntry(entry string) {
	if !slices.Contains(f.evidence.GetBlocklisted(), entry) {
		f.evidence.Blocklisted = append(f.evidence.Blocklisted, entry)
	}
}

// addClient adds a client to those found at an image.
func (f *fencing) addClient(id *agentv1.RbdImageID, client *agentv1.CephClient, locker bool) {
	var at *agentv1.FencedImage
	for _, image := range f.evidence.GetImages() {
		if rbd.Shown(image.GetImage()) == rbd.Shown(id) {
			at = image
		}
	}
	if at == nil {
		at = &agentv1.FencedImage{Image: id}
		f.evidence.Images = append(f.evidence.Images, at)
	}
	list := &at.Watchers
	if locker {
		list = &at.Lockers
	}
	if !slices.ContainsFunc(*list, func(c *agentv1.CephClient) bool { return c.GetAddress() == client.GetAddress() }) {
		*list = append(*list, client)
	}
}

// remember adds what a former process of this agent, or a call that Ceph did not
// answer, has found and blocklisted: those clients may not be at the images any more.
func (f *fencing) remember(ctx context.Context) error {
	var entries []string
	err := f.insist(ctx, "reading the blocklist", func(ctx context.Context) (err error) {
		entries, err = f.cfg.Ceph.Blocklist(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		for _, id := range f.spec.GetImages() {
			if f.run.Marked(found(id, entry)) {
				f.addEntry(entry)
				f.addClient(id, &agentv1.CephClient{Address: entry}, false)
			}
		}
	}
	return nil
}

// unfenceKind is rbd-unfence: entries go off the blocklist.
type unfenceKind struct{ i *Images }

// Name is the kind's.
func (unfenceKind) Name() string { return "rbd-unfence" }

// Do takes the entries off. One that is off is done. It does not go on where a former
// process of this agent was: that may be long ago, another node have done it since,
// and the same clients have been fenced again.
func (k unfenceKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdUnfence()
	if spec.GetFsid() == "" {
		return failure(codeInternal, "the task %s names no cluster", t.GetId())
	}
	w := k.i.work(t, run)
	switch {
	case run.Resumed():
		return broken("the agent died before the blocklist was known to be cleared")
	case w.unwanted():
		return w.end(ctx, errCancelled)
	}
	w.pass(pointUnfenceBefore)
	err := w.insist(ctx, "taking entries off the blocklist", func(ctx context.Context) error {
		return w.cfg.Ceph.Unfence(ctx, spec.GetFsid(), spec.GetEntries())
	})
	if err == nil {
		w.pass(pointUnfenced)
	}
	return w.end(ctx, err)
}

// Observe looks at the blocklist.
func (k unfenceKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	w := k.i.work(t, run)
	var entries []string
	err := w.insist(ctx, "reading the blocklist", func(ctx context.Context) (err error) {
		entries, err = w.cfg.Ceph.Blocklist(ctx)
		return err
	})
	left := func(entry string) bool { return slices.Contains(entries, entry) }
	if err == nil && slices.ContainsFunc(t.GetSpec().GetRbdUnfence().GetEntries(), left) {
		return broken("the agent's journal was lost before the blocklist was cleared")
	}
	return observed(ctx, err)
}
