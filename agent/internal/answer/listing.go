package answer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// partBytes is how much a part holds: a heartbeat behind it waits
	// a moment only, on slow lines too.
	partBytes = 256 << 10
	// maxNamed bounds the datasets that one question names.
	maxNamed = 1000
	// attempts is how often a listing begins anew whose datasets go away while it
	// has not told anything.
	attempts = 3
)

// list answers ListZfs.
func (z *ZFS) list(ctx context.Context, q *agentv1.ListZfs, part func(*agentv1.Answer) error) (*agentv1.Answer, error) {
	if n := len(q.GetDatasets()); n > maxNamed {
		return nil, errdefs.Field("datasets", fmt.Sprint(n), fmt.Sprintf("at most %d", maxNamed))
	}
	for i := 1; ; i++ {
		l := &listing{commands: z.commands, part: part, most: z.partBytes, now: &agentv1.ZfsListing{}}
		err := l.fill(ctx, q)
		switch {
		case err == nil:
			return l.answer(), nil
		case l.told || i == attempts || !isGone(err):
			return nil, err
		}
	}
}

// isGone tells whether an error says that a dataset does not exist.
func isGone(err error) bool { return errdefs.Is(err, errdefs.NotFound) }

// listing makes the parts of an answer.
type listing struct {
	commands Commands
	part     func(*agentv1.Answer) error
	most     int                 // bytes of a part
	now      *agentv1.ZfsListing // of the next part
	size     int                 // of now, about
	held     map[string]*agentv1.ZfsSnapshot
	told     bool
}

func (l *listing) fill(ctx context.Context, q *agentv1.ListZfs) error {
	found, err := l.datasets(ctx, q)
	if err != nil {
		return err
	}
	var roots []string // those of the question that exist
	for _, d := range found {
		if slices.Contains(q.GetDatasets(), d.Name) {
			roots = append(roots, d.Name)
		}
		m := d.Wire()
		m.ResumeToken = d.ResumeToken
		if err := l.add(ctx, m); err != nil {
			return err
		}
		l.now.Datasets = append(l.now.Datasets, m)
	}
	all := len(q.GetDatasets()) == 0
	if !all && len(roots) == 0 {
		return nil
	}
	recursive := all || q.GetRecursive()
	if q.GetBrief() && !all && (q.GetSnapshots() || q.GetBookmarks()) {
		return l.brief(ctx, q, roots)
	}
	if q.GetSnapshots() {
		if err := l.commands.Snapshots(ctx, roots, recursive, func(s zfs.Snapshot) error { return l.snapshot(ctx, s) }); err != nil {
			return err
		}
	}
	if q.GetBookmarks() {
		if err := l.commands.Bookmarks(ctx, roots, recursive, func(b zfs.Bookmark) error { return l.bookmark(ctx, b) }); err != nil {
			return err
		}
	}
	return l.holds(ctx)
}

// brief lists snapshots and bookmarks by one command. Nothing is asked of what holds
// them.
func (l *listing) brief(ctx context.Context, q *agentv1.ListZfs, roots []string) error {
	return l.commands.Brief(ctx, roots, q.GetRecursive(), func(s zfs.Snapshot) error {
		if !q.GetSnapshots() {
			return nil
		}
		return l.snapshot(ctx, s)
	}, func(b zfs.Bookmark) error {
		if !q.GetBookmarks() {
			return nil
		}
		return l.bookmark(ctx, b)
	})
}

// datasets are those that the question means and that exist.
func (l *listing) datasets(ctx context.Context, q *agentv1.ListZfs) ([]zfs.Dataset, error) {
	names := q.GetDatasets()
	if len(names) > 0 && !q.GetRecursive() {
		if q.GetAbove() {
			names = withAbove(names)
		}
		// Of very many that are not there not all complaints are kept.
		if found, err := l.commands.Named(ctx, names...); !isGone(err) {
			return found, err
		}
	}
	found, err := l.commands.Datasets(ctx, names...)
	if isGone(err) && len(names) == 1 {
		return nil, nil
	}
	if isGone(err) {
		found, err = l.commands.Datasets(ctx)
	}
	if err != nil || len(names) == 0 {
		return found, err
	}
	return slices.DeleteFunc(found, func(d zfs.Dataset) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			return d.Name == name || q.GetRecursive() && strings.HasPrefix(d.Name, name+"/")
		})
	}), nil
}

// withAbove adds the datasets that those lie in.
func withAbove(names []string) []string {
	all := slices.Clone(names)
	for _, name := range names {
		for at := strings.LastIndexByte(name, '/'); at > 0; at = strings.LastIndexByte(name, '/') {
			name = name[:at]
			all = append(all, name)
		}
	}
	return all
}

func (l *listing) snapshot(ctx context.Context, s zfs.Snapshot) error {
	m := s.Wire()
	if err := l.add(ctx, m); err != nil {
		return err
	}
	l.now.Snapshots = append(l.now.Snapshots, m)
	if s.UserRefs > 0 {
		if l.held == nil {
			l.held = map[string]*agentv1.ZfsSnapshot{}
		}
		l.held[s.FullName()] = m
		l.size += int(min(s.UserRefs, 1000)) * 64 // its tags, about
	}
	return nil
}

func (l *listing) bookmark(ctx context.Context, b zfs.Bookmark) error {
	m := b.Wire()
	if err := l.add(ctx, m); err != nil {
		return err
	}
	l.now.Bookmarks = append(l.now.Bookmarks, m)
	return nil
}

// add makes room for one more message, by sending what there is if need be.
func (l *listing) add(ctx context.Context, m proto.Message) error {
	size := proto.Size(m) + 8
	if l.size > 0 && l.size+size > l.most {
		if err := l.holds(ctx); err != nil {
			return err
		}
		if err := l.part(l.answer()); err != nil {
			return err
		}
		l.now, l.size, l.told = &agentv1.ZfsListing{}, 0, true
	}
	l.size += size
	return nil
}

// holds fills in the tags of the part's snapshots that are held.
func (l *listing) holds(ctx context.Context) error {
	if len(l.held) == 0 {
		return nil
	}
	names := make([]string, 0, len(l.held))
	for name := range l.held {
		names = append(names, name)
	}
	slices.Sort(names)
	holds, err := l.commands.Holds(ctx, names...)
	if err != nil {
		return err
	}
	for name, m := range l.held {
		m.Holds = zfs.Tags(holds[name])
	}
	clear(l.held)
	return nil
}

func (l *listing) answer() *agentv1.Answer {
	return &agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: l.now}}
}
