package zfs

import (
	"context"
	_ "embed"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// takeProgram is a channel program: what it takes, and what it writes on that, is of
// one transaction.
//
//go:embed take.lua
var takeProgram string

// takeAtOnce is how many snapshots one transaction takes, a set more or less: other
// writers of the pool wait for it.
const takeAtOnce = 50

// taking is a set that waits for its turn, or is being taken.
type taking struct {
	spec  SnapshotSpec
	ctx   context.Context //nolint:containedctx // the command serves several callers
	guids []uint64
	err   error
	done  chan struct{}
}

// takers are the sets that wait, by pool. While one command takes some, others come
// together for the next: a command costs far more than a snapshot does.
type takers struct {
	mu      sync.Mutex
	waiting map[string][]*taking
	busy    map[string]bool
}

// Take takes an atomic set of snapshots as Snapshot does and gives their guids, in
// the datasets' order. Sets of one pool for which several callers ask at once are
// taken by one command, each for itself. None, without an error, says that nothing
// was taken and not why: Snapshot tells. After the end of ctx the set may still be
// taken, whole.
func (z *ZFS) Take(ctx context.Context, s SnapshotSpec) ([]uint64, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	for name, value := range s.Properties {
		if err := checkValue(name, value); err != nil {
			return nil, err
		}
	}
	pool, _, _ := strings.Cut(strings.SplitN(names[0], "@", 2)[0], "/")
	t := &taking{spec: s, ctx: ctx, done: make(chan struct{})}
	z.takers.add(pool, t, z.takeSome)
	select {
	case <-t.done:
		return t.guids, t.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// add has a set taken with the next that are.
func (w *takers) add(pool string, t *taking, take func(pool string, some []*taking)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting, w.busy = map[string][]*taking{}, map[string]bool{}
	}
	w.waiting[pool] = append(w.waiting[pool], t)
	if w.busy[pool] {
		return
	}
	w.busy[pool] = true
	go func() {
		for some := w.next(pool); len(some) > 0; some = w.next(pool) {
			take(pool, some)
		}
	}()
}

// next are the sets that are taken together next; none: nobody waits. Those that
// their callers have given up are not taken.
func (w *takers) next(pool string) []*taking {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.DeleteFunc(w.waiting[pool], func(t *taking) bool { return t.ctx.Err() != nil })
	n, snapshots := 0, 0
	for n < len(all) && (n == 0 || snapshots+len(all[n].spec.Datasets) <= takeAtOnce) {
		snapshots += len(all[n].spec.Datasets)
		n++
	}
	some := all[:n:n]
	w.waiting[pool] = all[n:]
	if n == 0 {
		delete(w.waiting, pool)
		delete(w.busy, pool)
	}
	return some
}

// takeSome runs the program, to its end whether or not anybody still waits for it:
// the kernel ends one whose command is killed between any two of its steps, and a
// snapshot that has no properties yet would be nobody's for ever. A pool that hangs
// holds up one command so.
func (z *ZFS) takeSome(pool string, some []*taking) {
	args := []string{"program", "-j", "--", pool, "-"}
	for _, t := range some {
		args = append(args, strconv.Itoa(len(t.spec.Datasets)), strconv.Itoa(len(t.spec.Properties)), t.spec.Name)
		args = append(args, t.spec.Datasets...)
		for _, name := range slices.Sorted(maps.Keys(t.spec.Properties)) {
			args = append(args, name, t.spec.Properties[name])
		}
	}
	said, err := z.runTake(context.Background(), command{program: "zfs", args: args, about: pool, stdin: strings.NewReader(takeProgram)})
	for i, t := range some {
		if t.err = err; err == nil {
			t.guids, t.err = parseGUIDs(said[strconv.Itoa(i+1)], len(t.spec.Datasets))
		}
		close(t.done)
	}
}

// runTake gives what the program says of each set, by its number from 1.
func (z *ZFS) runTake(ctx context.Context, c command) (map[string]string, error) {
	out, err := z.output(ctx, c)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Return map[string]string `json:"return"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, errdefs.New(errdefs.Internal, CodeZFS, "zfs program answers %q", shortened(out)).WithCause(err)
	}
	return answer.Return, nil
}

// parseGUIDs reads a set's guids; Lua's numbers have a sign.
func parseGUIDs(said string, n int) ([]uint64, error) {
	if said == "" {
		return nil, nil
	}
	var guids []uint64
	for s := range strings.SplitSeq(said, ",") {
		guid, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, CodeZFS, "zfs program says %q where guids belong", shortened(said)).WithCause(err)
		}
		guids = append(guids, uint64(guid))
	}
	if len(guids) != n {
		return nil, errdefs.New(errdefs.Internal, CodeZFS, "zfs program says %d guids of %d snapshots", len(guids), n)
	}
	return guids, nil
}
