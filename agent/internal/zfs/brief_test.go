package zfs

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestBriefSnapshots: what it tells of snapshots is what the long listing does.
func TestBriefSnapshots(t *testing.T) {
	z, dataset := room(t)
	raw(t, "zfs", "create", dataset+"/empty")
	for i := range 12 {
		raw(t, "zfs", "snapshot", "-r", fmt.Sprintf("%s@s%d", dataset, i))
	}
	raw(t, "zfs", "hold", "-r", "a", dataset+"@s3")
	raw(t, "zfs", "clone", "-o", "mountpoint=none", dataset+"@s4", dataset+"/copy")
	t.Cleanup(func() { _ = exec.Command("zfs", "destroy", dataset+"/copy").Run() })
	roots := []string{dataset, dataset + "/empty", dataset + "/copy"}
	tell := func(all map[string]string) func(Snapshot) error {
		return func(s Snapshot) error {
			all[s.FullName()] = fmt.Sprint(s.GUID, s.CreateTXG, s.Creation.Unix(), s.UserRefs, s.Clones)
			return nil
		}
	}
	long, brief := map[string]string{}, map[string]string{}
	began := time.Now()
	if err := z.Snapshots(t.Context(), roots, false, tell(long)); err != nil {
		t.Fatal(err)
	}
	between := time.Now()
	if err := z.BriefSnapshots(t.Context(), roots, tell(brief)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s by command, %s by program", between.Sub(began), time.Since(between))
	if len(brief) != 24 || fmt.Sprint(brief) != fmt.Sprint(long) {
		t.Errorf("in short\n%v\nin full\n%v", brief, long)
	}
	if err := z.BriefSnapshots(t.Context(), []string{dataset, dataset + "/gone"}, tell(brief)); !has(err, CodeDatasetNotFound) || !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a dataset that is not there: %v", err)
	}
	enough := fmt.Errorf("enough")
	if err := z.BriefSnapshots(t.Context(), roots, func(Snapshot) error { return enough }); err != enough { //nolint:errorlint // the very one
		t.Errorf("an error of yield: %v", err)
	}
}
