package drain

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const two = "nodes a b, "

func TestEachStepFollowsFromTheRecords(t *testing.T) {
	for _, c := range []struct{ facts, want, moves string }{
		{two + "vm web a, evacuate", "begin cordon=true", ""},
		{two + "vm web a, cordoned a, evacuate", "begin", ""},
		{two + "vm web a, evacuate cancel", "end CANCELLED", ""},
		{"nodes b, evacuate", "end FAILED NODE_NOT_FOUND", ""},
		{two + "cordoned a, evacuate running", "end SUCCEEDED safe", ""},

		// As many as may be at once, each way; the others wait with the node they will go to.
		{two + "vm web a, cordoned a, evacuate running", "move web>b", "web moving b"},
		{two + "vm u a, vm v a, vm w a, cordoned a, evacuate running", "move u>b v>b", "u moving b, v moving b, w waiting b"},
		{two + "vm u a, vm v a, cordoned a, evacuate running parallel 1", "move u>b", "u moving b, v waiting b"},
		{two + "vm u a, vm v a, vm w a, cordoned a, parallel a 3, parallel b 3, evacuate running", "move u>b v>b w>b", ""},
		{two + "vm u a, vm v a, cordoned a, parallel b 1, evacuate running", "move u>b", ""},
		{two + "vm u a, vm v b, cordoned a, parallel b 1, other v a b, evacuate running", "note", "u waiting b"},
		// What others asked for may wait for a node for ever; it takes no place.
		{two + "vm u a, vm v a, vm w a, cordoned a, queued v a b, queued w a b, evacuate running", "move u>b", "u moving b, v blocked, w blocked"},

		// Its moves end.
		{two + "vm web b, cordoned a, evacuate running, move web a b moving, child web succeeded", "end SUCCEEDED safe", "web moved b"},
		{two + "vm web a, cordoned a, evacuate running, move web a b moving, child web failed MIGRATION_FAILED", "note", "web waiting b"},
		{two + "vm web a, cordoned a, evacuate running, move web a b waiting try 1 was no, child web failed MIGRATION_FAILED 6s", "move web>b", ""},
		{two + "vm web a, cordoned a, evacuate running, move web a b moving try 3, child web failed MIGRATION_FAILED", "end FAILED EVACUATION_BLOCKED", "web failed b"},
		{two + "vm web a, cordoned a, evacuate running, move web a b moving, child web failed SOURCE_NOT_GONE", "end FAILED EVACUATION_BLOCKED", "web failed b"},
		{two + "vm web a, cordoned a, evacuate running, move web a b moving, child web cancelled CANCELLED", "end FAILED EVACUATION_BLOCKED", "web failed b"},
		{two + "vm web b, cordoned a, evacuate running, move web a b moving, child web failed NODE_OFF", "end SUCCEEDED safe", "web moved b"},
		{two + "vm web b, cordoned a, evacuate running, move web a b moving", "end SUCCEEDED safe", "web moved b"},

		// Its target is not heard any more, and it has not begun: others may take the VM.
		{"nodes a b c, vm web a, cordoned a, down b, evacuate running, move web a b moving, child web pending", "cancel-move web", ""},
		{"nodes a b c, vm web a, cordoned a, down b, evacuate running, move web a b moving, child web running", "note", "web moving b"},
		{"nodes a b c, vm web a, cordoned a, evacuate running, move web a b moving, child web pending", "note", "web moving b"},
		{"nodes a b c, vm web a, cordoned a, down b, evacuate running, move web a b moving, child web cancelled CANCELLED 9s", "move web>c", "web moving c"},
		{"nodes a b c, vm web a, cordoned a, down b, evacuate running, move web a b moving try 3, child web pending", "note", "web moving b"},

		// VMs come and go.
		{two + "vm web b, vm new a, cordoned a, evacuate running, move web a b moved try 1", "move new>b", "web moved b, new moving b"},
		{two + "vm web a, cordoned a, evacuate running, move web a b moved try 1", "move web>b", "web moving b"},
		{two + "vm web b, cordoned a, evacuate running, move web a - blocked was full", "end SUCCEEDED safe", "web moved b"},
		{two + "cordoned a, evacuate running, move web a - blocked was full", "end SUCCEEDED safe", "web moved"},

		// Blocked: lasting, passing, our own daemons, and a VM that is off.
		{two + "vm big a 70, cordoned a, evacuate running", "end FAILED EVACUATION_BLOCKED", "big blocked"},
		{two + "vm big a 70, cordoned a, evacuate running wait 60", "note", "big blocked"},
		{two + "vm big a 70, cordoned a, evacuate running wait 60 since 61s", "end FAILED EVACUATION_BLOCKED", "big blocked"},
		{two + "vm dev a device, cordoned a, evacuate running wait 60", "end FAILED EVACUATION_BLOCKED", "dev blocked"},
		{two + "vm web a, vm big a 70, cordoned a, evacuate running", "move web>b", ""},
		{two + "vm web a, cordoned a, down b, evacuate running", "note", "web blocked"},
		{two + "vm web a, cordoned a, down b, evacuate running since 61s", "end FAILED EVACUATION_BLOCKED", "web blocked"},
		{two + "vm web a, cordoned a, down a, evacuate running since 9h", "note", "web blocked"},
		{two + "vm web a, cordoned a, libvirt-down a, evacuate running since 9h", "note", "web blocked"},
		{two + "vm big a 70 off, cordoned a, cordoned b, evacuate running", "end SUCCEEDED safe", "big blocked"},
		{two + "vm off a off, cordoned a, evacuate running", "move off>b", "off moving b"},

		// On its way to the node.
		{two + "vm web b, cordoned a, other web b a, evacuate running", "note", ""},
		// Somebody is against it.
		{two + "vm web a, evacuate running", "end FAILED NODE_UNCORDONED", "web waiting"},
		{two + "vm web a, evacuate running, move web a b moving, child web running percent 40", "note", "web moving b"},

		// Cancelled: one after another, and never what is past the switch-over.
		{two + "vm u a, vm v a, cordoned a, evacuate running cancel, move u a b moving, move v a b moving, child u running, child v running", "cancel-move u", ""},
		{two + "vm u a, vm v a, cordoned a, evacuate running cancel, move u a b moving, move v a b moving, child u running asked, child v running", "cancel-move v", ""},
		{two + "vm u a, cordoned a, evacuate running cancel, move u a b moving, child u running switched", "note", ""},
		{two + "vm u a, vm v a, cordoned a, evacuate running cancel, move u a b moving, move v a b waiting, child u cancelled CANCELLED", "end CANCELLED", "u failed b, v waiting b"},
	} {
		check(t, c.facts, c.want, c.moves)
	}
}

func check(t *testing.T, facts, want, moves string) {
	t.Helper()
	s, entry := records(t, facts)
	got := look(s, entry, noon).step
	if describe(got) != want {
		t.Errorf("%s:\n got %s\nwant %s", facts, describe(got), want)
		if got != nil {
			t.Logf("%s | %s | %s", tell(got.op), got.op.GetStep(), got.op.GetErrorMessage())
		}
		return
	}
	if moves != "" && tell(got.op) != moves {
		t.Errorf("%s: the moves are\n     %s\nwant %s", facts, tell(got.op), moves)
	}
	if again, _ := records(t, facts); !proto.Equal(again.Operations[opID].Value, entry.Value) {
		t.Errorf("%s: deciding changed the record it was decided on", facts)
	}
}

func TestARestoreBringsBackWhatIsStillWhereItWasPut(t *testing.T) {
	const put = "nodes a b c, cordoned a, vm web b, vm db c, vm own b, earlier evacuate cancelled web a b, earlier evacuate succeeded db a c, "
	for _, c := range []struct{ facts, want, moves string }{
		{put + "restore", "begin cordon=false", "web waiting a, db waiting a"},
		{strings.Replace(put, "vm web b", "vm web c", 1) + "restore", "begin cordon=false", "db waiting a"},
		{strings.Replace(put, "vm web b", "vm web a", 1) + "restore", "begin cordon=false", "db waiting a"},
		{put + "earlier restore succeeded own c a, restore", "begin cordon=false", ""},
		{put + "earlier restore failed web b a, restore", "begin cordon=false", "db waiting a"},

		{two + "vm web b, restore running, move web b a waiting", "move web>a", "web moving a"},
		{two + "vm web b, vm db b, restore running, move web b a waiting, move db b a waiting", "move web>a", "web moving a, db waiting a"},
		{two + "vm web a, restore running, move web b a moving, child web succeeded", "end SUCCEEDED", "web moved a"},
		{two + "restore running", "end SUCCEEDED", ""},
		{two + "vm big b 70, restore running, move big b a waiting", "end FAILED RESTORE_BLOCKED", "big blocked a"},
		{two + "vm web b, down a, restore running, move web b a waiting", "note", "web blocked a"},
	} {
		check(t, c.facts, c.want, c.moves)
	}
}

func TestGivenMovesGoInTheirOrderAndStopAtTheFirstThatIsNotAllowed(t *testing.T) {
	const three = "nodes a b c, "
	for _, c := range []struct{ facts, want, moves string }{
		{three + "vm u a, rebalance, move u a b waiting", "begin", ""},
		{three + "vm u a, vm v b, rebalance running, move u a b waiting wave 0, move v b c waiting wave 1", "move u>b", "u moving b, v waiting c"},
		{three + "vm u a, vm v b, rebalance running, move u a b moving wave 0, child u running, move v b c waiting wave 1", "note", ""},
		{three + "vm u b, vm v b, rebalance running, move u a b moving wave 0, child u succeeded, move v b c waiting wave 1", "move v>c", ""},
		{three + "vm u a, vm v b, rebalance running, move u a b moving wave 0, child u running, move v b c waiting wave 0", "move v>c", ""},
		{three + "vm u b, rebalance running, move u a b moving, child u succeeded", "end SUCCEEDED", "u moved b"},
		{three + "vm u b, rebalance running, move u a b waiting", "end SUCCEEDED", "u moved b"},
		{three + "vm u c, vm v b, rebalance running, move u a b waiting, move v b c waiting wave 1", "end FAILED PLAN_STOPPED", "u failed b, v waiting c"},
		{three + "vm u a device, vm v b, rebalance running, move u a b waiting, move v b c waiting wave 1", "end FAILED PLAN_STOPPED", "u failed b, v waiting c"},
		{three + "vm u a device, vm v b, rebalance running, move v b c moving, child v running, move u a b waiting", "note", "v moving c, u failed b"},
		// What another move frees needs time to be seen.
		{three + "vm u a 70, rebalance running, move u a b waiting", "note", "u blocked b"},
		{three + "vm u a 70, rebalance running since 61s, move u a b blocked", "end FAILED PLAN_STOPPED", "u blocked b"},
		// A planned evacuation does what was planned, and says whether that was all.
		{three + "vm u a, vm v a, evacuate plan, move u a b waiting", "begin cordon=true", ""},
		{three + "vm u a, vm v a, cordoned a, evacuate running plan, move u a b waiting", "move u>b", "u moving b"},
		{three + "vm u b, vm v a, cordoned a, evacuate running plan, move u a b moving, child u succeeded", "end SUCCEEDED", "u moved b"},
		{three + "vm u b, cordoned a, evacuate running plan, move u a b moving, child u succeeded", "end SUCCEEDED safe", "u moved b"},
	} {
		check(t, c.facts, c.want, c.moves)
	}
}

func TestAnEndSaysWhatItMeans(t *testing.T) {
	for facts, want := range map[string][]string{
		two + "vm big a 70, vm web b, cordoned a, evacuate running, move web a b moved": {
			"1 of 2 VMs could not be moved off a, which stays cordoned", "big: ", "70.0 GiB",
		},
		two + "vm u a, cordoned a, evacuate running cancel":          {"cancelled as asked", "a stays cordoned", "goes on from here"},
		"nodes a b c, vm u c, rebalance running, move u a b waiting": {"the move of u from a to b did not come off", "is on c and not on a"},
	} {
		s, entry := records(t, facts)
		st := look(s, entry, noon).step
		if st == nil {
			t.Errorf("%s: no step", facts)
			continue
		}
		for _, text := range want {
			if !strings.Contains(st.op.GetErrorMessage(), text) {
				t.Errorf("%s: %q does not say %q", facts, st.op.GetErrorMessage(), text)
			}
		}
	}
}

func TestProgressIsWrittenOnceASecondAndReasonsLessOften(t *testing.T) {
	s, entry := records(t, two+"vm web a, cordoned a, evacuate running, move web a b moving, child web running percent 40")
	first := look(s, entry, noon)
	if first.step == nil || percentOf(t, first.step) != 40 {
		t.Fatalf("the first figures: %s", describe(first.step))
	}
	entry.Value = first.step.op
	if again := look(s, entry, noon.Add(5*time.Second)); again.step != nil {
		t.Errorf("the same figures are written again: %s", describe(again.step))
	}
	s, _ = records(t, two+"vm web a, cordoned a, evacuate running, move web a b moving, child web running percent 60")
	if soon := look(s, entry, noon.Add(300*time.Millisecond)); soon.step != nil {
		t.Errorf("new figures are written after 300 ms: %s", describe(soon.step))
	}
	if later := look(s, entry, noon.Add(1100*time.Millisecond)); later.step == nil || percentOf(t, later.step) != 60 {
		t.Errorf("new figures after 1.1 s: %s", describe(later.step))
	}

	s, entry = records(t, two+"vm big a 70, cordoned a, evacuate running wait 600")
	entry.Value = look(s, entry, noon).step.op
	s, _ = records(t, two+"vm big a 71, cordoned a, evacuate running wait 600")
	if soon := look(s, entry, noon.Add(5*time.Second)); soon.step != nil {
		t.Errorf("other figures in a reason are written after 5 s: %s", describe(soon.step))
	}
	later := look(s, entry, noon.Add(11*time.Second)).step
	if later == nil || !strings.Contains(later.op.GetEvacuate().GetMoves()[0].GetMessage(), "71.0 GiB") {
		t.Errorf("other figures in a reason after 11 s: %s", describe(later))
	}
}

func percentOf(t *testing.T, s *step) float64 {
	t.Helper()
	p := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(s.op.GetProgress(), p); err != nil {
		t.Fatal(err)
	}
	return p.GetPercent()
}

func TestAPlanIsNotMadeAgainWhileNothingEnds(t *testing.T) {
	s, entry := records(t, two+"vm big a 70, cordoned a, evacuate running wait 600")
	first := look(s, entry, noon)
	if !first.planned || first.began {
		t.Fatalf("planned %v, began %v", first.planned, first.began)
	}
	entry.Value = first.step.op
	// A world is not even made: nil would be a panic.
	if v := decide(s, entry, moment{now: noon.Add(time.Second)}); v.planned || v.step != nil {
		t.Errorf("planned again: %s", describe(v.step))
	}
}

func TestAMoveIsItsVMsTenants(t *testing.T) {
	s, entry := records(t, two+"vm web a, vm db a, cordoned a, evacuate running")
	d := s.Draft()
	vm := proto.CloneOf(s.VMs["web"].Value)
	vm.Policy = encode(t, &debvisorv1.VMPolicy{Tenant: "acme"})
	d.VMs.Put("web", vm, 10)
	got := map[string]string{}
	for _, op := range look(d.Snapshot(10), entry, noon).step.begun {
		got[op.GetMigrate().GetVmUuid()] = op.GetTenant()
	}
	if len(got) != 2 || got["web"] != "acme" || got["db"] != "" || entry.Value.GetTenant() != "" {
		t.Errorf("got %v", got)
	}
}
