package zfs

import (
	"context"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Brief hands the snapshots and the bookmarks of the roots to yield, and with
// recursive those of the datasets below, with no more than Dataset, Name, GUID and
// CreateTXG: those the kernel tells while it walks through them, where all else costs
// it a look at each (from ZFS 2.2 on; before, this only takes longer). An error of
// either ends it.
func (z *ZFS) Brief(ctx context.Context, roots []string, recursive bool, snapshot func(Snapshot) error, bookmark func(Bookmark) error) error {
	if err := checkDatasets("roots", roots); err != nil || len(roots) == 0 {
		return err
	}
	args := append([]string{"list", "-Hpo", "name,guid,createtxg", "-t", "snapshot,bookmark"}, depth(recursive)...)
	c := command{program: "zfs", args: append(append(args, "--"), roots...), about: roots[0]}
	return z.fields(ctx, c, 3, func(f []string) error {
		at := strings.IndexAny(f[0], "@#")
		guid, bad := strconv.ParseUint(f[1], 10, 64)
		txg, worse := strconv.ParseUint(f[2], 10, 64)
		if at < 0 || bad != nil || worse != nil {
			return errdefs.New(errdefs.Internal, CodeZFS, "zfs lists %q, where a snapshot or a bookmark belongs", f).With("dataset", roots[0])
		}
		dataset, name := strings.Clone(f[0][:at]), strings.Clone(f[0][at+1:])
		if f[0][at] == '@' {
			return snapshot(Snapshot{Dataset: dataset, Name: name, GUID: guid, CreateTXG: txg})
		}
		return bookmark(Bookmark{Dataset: dataset, Name: name, GUID: guid, CreateTXG: txg})
	})
}
