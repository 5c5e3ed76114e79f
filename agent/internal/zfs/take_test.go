package zfs

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestTake: many callers' sets are taken, each with its own name and properties,
// and the guids are the snapshots'; of a set that cannot be taken whole nothing is.
func TestTake(t *testing.T) {
	z, dataset := room(t)
	for _, name := range []string{"/a", "/b", "/c"} {
		raw(t, "zfs", "create", dataset+name)
	}
	raw(t, "zfs", "snapshot", dataset+"/b@there")
	var group sync.WaitGroup
	take := func(name string, taken bool, datasets ...string) {
		group.Go(func() {
			s := SnapshotSpec{Name: name, Properties: map[string]string{PropertyOperation: "op " + name + "'\"", PropertyLabel: "-x"}}
			for _, d := range datasets {
				s.Datasets = append(s.Datasets, dataset+d)
			}
			guids, err := z.Take(t.Context(), s)
			if err != nil || (len(guids) > 0) != taken {
				t.Errorf("%s: %d, %v", name, guids, err)
			}
			for i, guid := range guids {
				found, err := z.Get(t.Context(), s.Datasets[i]+"@"+name, "guid", PropertyOperation, PropertyLabel)
				if err != nil || found["guid"].Value != strconv.FormatUint(guid, 10) || found[PropertyOperation].Value != "op "+name+"'\"" || found[PropertyLabel].Value != "-x" {
					t.Errorf("%s has the guid %d: %v, %v", name, guid, found, err)
				}
			}
		})
	}
	take("there", false, "/a", "/b")
	take("lost", false, "/c", "/nowhere")
	for i := range 6 {
		take(fmt.Sprint("one", i), true, []string{"/a", "/b", "/c"}[i%3])
		group.Wait() // of one dataset one in a transaction
	}
	take("x", true, "/a")
	take("y", true, "/b")
	take("set", true, "", "/c")
	group.Wait()
	for _, name := range []string{"/a@there", "/c@lost"} {
		if found, err := z.Get(t.Context(), dataset+name, "guid"); !has(err, CodeDatasetNotFound) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	if _, err := z.Take(t.Context(), SnapshotSpec{Datasets: []string{dataset}, Name: "a@b"}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a name with an @: %v", err)
	}
}
