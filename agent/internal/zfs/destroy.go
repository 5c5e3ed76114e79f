package zfs

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Ref is a snapshot that is meant and no other of its name.
type Ref struct {
	Dataset, Name string
	GUID          uint64
}

// FullName is dataset@name.
func (r Ref) FullName() string { return r.Dataset + "@" + r.Name }

// destroyProgram is a channel program: ZFS runs it within one transaction, so that
// between looking at a guid and destroying nothing else happens.
//
//go:embed destroy.lua
var destroyProgram string

// atOnce is how many snapshots one transaction destroys: other writers of the pool
// wait for it.
const atOnce = 100

// What the program says of a snapshot, besides 0 and numbers of errors.
const (
	saysGone    = -1
	saysChanged = -2
	saysHeld    = -3
)

// DestroySnapshot is DestroySnapshots of one. gone tells that it was gone before,
// which is no error.
func (z *ZFS) DestroySnapshot(ctx context.Context, ref Ref) (gone bool, err error) {
	results, err := z.destroy(ctx, []Ref{ref})
	if err != nil {
		return false, err
	}
	return results[0].gone, results[0].err
}

// DestroySnapshots destroys snapshots of one pool, each only where it has the guid:
// that is looked at in the very transaction that destroys it. errs has one error for
// each: nil where it is gone, SNAPSHOT_HELD, SNAPSHOT_HAS_CLONES, DATASET_CHANGED
// (another has the name), DATASET_BUSY (somebody sends or reads it). Other than by err
// it never ends early; after err any of them may be gone.
//
// One snapshot that is mounted (a file system's .zfs directory does that) is
// destroyed by command, as the transaction cannot unmount it. Between the look at
// its guid and that, it could be destroyed by somebody else, and another be given its
// name: that one would then go, if nobody held, cloned or sent it.
func (z *ZFS) DestroySnapshots(ctx context.Context, refs []Ref) (errs []error, err error) {
	results, err := z.destroy(ctx, refs)
	for _, r := range results {
		errs = append(errs, r.err)
	}
	return errs, err
}

// destroyed is what came of one snapshot.
type destroyed struct {
	gone bool
	err  error
}

func (z *ZFS) destroy(ctx context.Context, refs []Ref) ([]destroyed, error) {
	pool := ""
	for _, r := range refs {
		n, err := parseSnapshot("snapshot", r.FullName())
		if err != nil {
			return nil, err
		}
		if pool == "" {
			pool = n.Pool()
		}
		if r.GUID == 0 || n.Pool() != pool {
			return nil, errdefs.Field("snapshot", r.FullName(), "snapshots of one pool, here "+pool+", each with its guid")
		}
	}
	var results []destroyed
	for some := range slices.Chunk(refs, atOnce) {
		said, err := z.runDestroy(ctx, pool, some)
		if err != nil {
			return results, err
		}
		for i, r := range some {
			results = append(results, z.outcome(ctx, r, said[i]))
			if ctx.Err() != nil {
				return results, fmt.Errorf("destroying snapshots: %w", ctx.Err())
			}
		}
	}
	return results, nil
}

// runDestroy gives what the program says of each.
func (z *ZFS) runDestroy(ctx context.Context, pool string, refs []Ref) ([]int, error) {
	args := []string{"program", "-j", "--", pool, "-"}
	for _, r := range refs {
		args = append(args, r.FullName(), strconv.FormatInt(int64(r.GUID), 10)) // Lua's numbers have a sign
	}
	out, err := z.output(ctx, command{program: "zfs", args: args, about: pool, stdin: strings.NewReader(destroyProgram)})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Return map[string]int `json:"return"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, errdefs.New(errdefs.Internal, CodeZFS, "zfs program answers %q", shortened(out)).WithCause(err)
	}
	said := make([]int, len(refs))
	for i := range refs {
		code, ok := answer.Return[strconv.Itoa(i+1)]
		if !ok {
			return nil, errdefs.New(errdefs.Internal, CodeZFS, "zfs program says nothing of %s", refs[i].FullName())
		}
		said[i] = code
	}
	return said, nil
}

func (z *ZFS) outcome(ctx context.Context, r Ref, code int) destroyed {
	refuse := func(kind errdefs.Kind, code, format string, args ...any) destroyed {
		return destroyed{err: errdefs.New(kind, code, "%s "+format, append([]any{r.FullName()}, args...)...).With("dataset", r.FullName())}
	}
	switch code {
	case 0:
		return destroyed{}
	case saysGone:
		return destroyed{gone: true}
	case saysChanged:
		return refuse(errdefs.Aborted, CodeDatasetChanged, "is not the snapshot with guid %d any more", r.GUID)
	case saysHeld:
		return refuse(errdefs.FailedPrecondition, CodeSnapshotHeld, "is held")
	case int(syscall.EEXIST):
		return refuse(errdefs.FailedPrecondition, CodeSnapshotHasClones, "has clones")
	case int(syscall.EBUSY):
		return z.destroyMounted(ctx, r)
	default:
		return refuse(errdefs.FailedPrecondition, CodeZFS, "cannot be destroyed: %s", syscall.Errno(code))
	}
}

// destroyMounted destroys by command what may be mounted; one that is sent is busy
// here too.
func (z *ZFS) destroyMounted(ctx context.Context, r Ref) destroyed {
	switch is, err := z.guid(ctx, r.FullName()); {
	case has(err, CodeDatasetNotFound):
		return destroyed{gone: true}
	case err != nil:
		return destroyed{err: err}
	case is != r.GUID:
		return destroyed{err: changed(r.FullName(), is, r.GUID)}
	}
	err := z.do(ctx, command{program: "zfs", args: []string{"destroy", "--", r.FullName()}, about: r.FullName()})
	if has(err, CodeDatasetNotFound) {
		return destroyed{gone: true}
	}
	return destroyed{err: err}
}

// maxArgument is how long one argument of a command may be, bytes (MAX_ARG_STRLEN,
// less a margin).
const maxArgument = 120 << 10

// EstimateDestroy tells how many bytes would come free if these snapshots of a
// dataset were destroyed together; those that are not there are left out. Of more
// than some thousand it is what would come free at least: what only two of them share
// is not seen where they are asked of apart. Clones make it SNAPSHOT_HAS_CLONES.
func (z *ZFS) EstimateDestroy(ctx context.Context, dataset string, names []string) (bytes uint64, err error) {
	for _, n := range names {
		if _, err := parseSnapshot("names", dataset+"@"+n); err != nil {
			return 0, err
		}
	}
	for len(names) > 0 {
		argument, n := dataset+"@"+names[0], 1
		for n < len(names) && len(argument)+1+len(names[n]) <= maxArgument {
			argument += "," + names[n]
			n++
		}
		names = names[n:]
		some, err := z.estimate(ctx, command{program: "zfs", args: []string{"destroy", "-nvp", "--", argument}, about: dataset}, "reclaim")
		if err != nil && !strings.Contains(err.Error(), "could not find any snapshots") {
			return 0, err
		}
		bytes += some
	}
	return bytes, nil
}

// estimate gives the number that a command prints behind a word.
func (z *ZFS) estimate(ctx context.Context, c command, word string) (uint64, error) {
	out, err := z.output(ctx, c)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == word {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				return n, nil
			}
		}
	}
	return 0, errdefs.New(errdefs.Internal, CodeZFS, "%s does not tell an estimate: %q", c.verb(), shortened(out)).With("dataset", c.about)
}

func changed(name string, is, want uint64) error {
	return errdefs.New(errdefs.Aborted, CodeDatasetChanged, "%s has the guid %d, not %d: another has taken its name", name, is, want).
		With("dataset", name).With("guid", strconv.FormatUint(is, 10))
}
