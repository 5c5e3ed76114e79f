package facts

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func TestWhatIsKnownOfImages(t *testing.T) {
	web := &agentv1.RbdImageID{Pool: "vms", Namespace: "ns", Name: "web", Id: "i"}
	listed := []*agentv1.RbdSnapshot{
		{
			Snapshot: &agentv1.RbdSnapshotID{Image: web, Name: "s", Id: 4}, Created: 7, Operation: "op-1", Label: "l", Set: "op-1", Protected: true, UsedBytes: 9,
			Children: []*agentv1.RbdImageID{{Pool: "fast", Name: "c"}},
		},
		{Snapshot: &agentv1.RbdSnapshotID{Image: web, Name: "theirs", Id: 5}, Template: true},
	}
	want := []retention.Snapshot{
		{Dataset: "vms/ns/web", Name: "s", GUID: 4, CreateTXG: 4, Created: time.Unix(7, 0), Used: 9, Ours: true, Clones: []string{"fast/c"}, Label: "l", Set: "op-1", Protected: true},
		{Dataset: "vms/ns/web", Name: "theirs", GUID: 5, CreateTXG: 5, Template: true},
	}
	got := Images(listed)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// No policy lets a template go, nor what is protected or cloned; who names a
// template may.
func TestWhatKeepsSnapshotsOfImages(t *testing.T) {
	now := time.Unix(1000, 0)
	of := func(change func(*retention.Snapshot)) retention.Verdict {
		one := retention.Snapshot{Dataset: "vms/web", Name: "s", GUID: 4, Created: time.Unix(7, 0), Ours: true}
		change(&one)
		return retention.Decide([]retention.Snapshot{one}, retention.Policy{}, retention.Protection{}, now, nil).Verdicts[0]
	}
	for what, c := range map[string]struct {
		change  func(*retention.Snapshot)
		keep    bool
		against []string
	}{
		"nothing":    {func(*retention.Snapshot) {}, false, nil},
		"template":   {func(s *retention.Snapshot) { s.Template = true }, true, nil},
		"protection": {func(s *retention.Snapshot) { s.Protected = true }, true, []string{"protected in RBD"}},
		"a clone":    {func(s *retention.Snapshot) { s.Clones = []string{"fast/c"}; s.Template = true }, true, []string{"cloned by fast/c"}},
		"a clock":    {func(s *retention.Snapshot) { s.Created = now.Add(time.Hour) }, true, nil},
		"others":     {func(s *retention.Snapshot) { s.Ours = false }, true, []string{"not ours"}},
		"no guid":    {func(s *retention.Snapshot) { s.GUID = 0 }, true, []string{"its guid or its time is not known"}},
	} {
		v := of(c.change)
		if v.Keep != c.keep || !slices.Equal(v.Against(), c.against) {
			t.Errorf("%s: %v, against it %q", what, v, v.Against())
		}
	}
}
