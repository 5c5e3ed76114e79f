package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestZFSNames(t *testing.T) {
	long := strings.Repeat("x", 250)
	for _, good := range [][2]string{{"tank", "a"}, {"Tank-1", "vm/web 1.disk:0_x"}, {"t", "a-b"}, {"tank", long}} {
		if path, err := ZFSPath("dataset", good[0], good[1]); err != nil || path != good[0]+"/"+good[1] {
			t.Errorf("%q: %q, %v", good, path, err)
		}
	}
	for _, c := range []struct{ pool, name, field string }{
		{"tank", "", "name"},
		{"tank", "..", "name"},
		{"tank", "a/../b", "name"},
		{"tank", "./a", "name"},
		{"tank", "a//b", "name"},
		{"tank", "/a", "name"},
		{"tank", "a/", "name"},
		{"tank", "a@s", "name"},
		{"tank", "a#b", "name"},
		{"tank", "a%recv", "name"},
		{"tank", "a\x00", "name"},
		{"tank", "a\nb", "name"},
		{"tank", "a\x7f", "name"},
		{"tank", "ä", "name"},
		{"tank", "-rf", "name"},
		{"tank", "a/-r", "name"},
		{"tank", " a", "name"},
		{"tank", "a ", "name"},
		{"tank", "a*", "name"},
		{"tank", "a,b", "name"},
		{"tank", long + "x", "name"},
		{"tank", "$x", "name"},
		{"tank", `a\b`, "name"},
		{"", "a", "pool"},
		{"..", "a", "pool"},
		{"tank/x", "a", "pool"},
		{"1tank", "a", "pool"},
		{"-o", "a", "pool"},
		{"t@s", "a", "pool"},
		{"t%", "a", "pool"},
	} {
		_, err := ZFSPath("dataset", c.pool, c.name)
		e := asField(err)
		if e == nil || e.Context["field"] != "dataset."+c.field || e.Context["expected"] == "" {
			t.Errorf("%q %q: %v", c.pool, c.name, err)
		}
		if c.field == "name" && c.name != "" {
			if err := ZFSDataset("prefix", c.pool+"/"+c.name); asField(err) == nil {
				t.Errorf("%s/%s as a whole: %v", c.pool, c.name, err)
			}
		}
	}
	for _, good := range []string{"tank", "tank/a/b"} {
		if err := ZFSDataset("prefix", good); err != nil {
			t.Error(err)
		}
	}
	for name, ok := range map[string]bool{"auto-1": true, "a:b.c_d": true, "": false, "a/b": false, "a@b": false, "%": false, "-r": false, "a,b": false, strings.Repeat("s", 251): true, strings.Repeat("s", 252): false} {
		if err := ZFSSnapshot("snapshot_name", "tan", name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func asField(err error) *errdefs.Error {
	if e := errdefs.FromStatus(err); err != nil && e.Kind == errdefs.InvalidArgument {
		return e
	}
	return nil
}

func TestSnapshotNames(t *testing.T) {
	name := SnapshotName("op-01jd8q2w3e4r5t6y7v8h9n0pqr", time.Date(2026, 11, 22, 14, 5, 6, 7, time.FixedZone("", 3600)))
	if name != "dv-20261122T130506Z-8h9n0pqr" || len(name)+1 != SnapshotNameLength || !OurSnapshotName(name) {
		t.Error(name)
	}
	for _, other := range []string{"", "dv-1", "auto-" + name, name + "-2", "dv-20261122T130506Z-8H9N0PQR"} {
		if OurSnapshotName(other) {
			t.Error(other)
		}
	}
}
