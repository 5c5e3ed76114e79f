package repldiff

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	job        = "nightly"
	sourceName = "tank/vm"
	targetName = "backup/vm"
	sourceGUID = 1000
	targetGUID = 2000
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// side reads what one end has, oldest first; the idea of such a notation is
// zrepl's (internal/replication/logic/diff).
//
//	@7 #7         a snapshot s7, a bookmark b7: 7 is the guid, and the transaction
//	@7=x          its name is x
//	@7+tag @7*ds  it is held, or cloned
//	none          there is no such dataset
//	volume, encrypted, partial, written N, job J, guid N, clone ORIGIN
func side(t testing.TB, name, notation string) Side {
	t.Helper()
	d := &agentv1.ZfsDataset{Name: name, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM, Guid: sourceGUID}
	if name == targetName {
		d.Guid, d.ReplicationJob = targetGUID, job
	}
	s := Side{Dataset: d}
	words := strings.Fields(notation)
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "none":
			return Side{}
		case w == "volume":
			d.Type = agentv1.ZfsType_ZFS_TYPE_VOLUME
		case w == "encrypted":
			d.Encrypted = true
		case w == "partial":
			d.Partial = true
		case w == "written":
			i++
			d.WrittenBytes = number(t, words[i])
		case w == "job":
			i++
			d.ReplicationJob = strings.Trim(words[i], "-")
		case w == "guid":
			i++
			d.Guid = number(t, words[i])
		case w == "clone":
			i++
			d.Origin = words[i]
		case w[0] == '@':
			w, clone, _ := strings.Cut(w[1:], "*")
			w, hold, _ := strings.Cut(w, "+")
			w, as, _ := strings.Cut(w, "=")
			one := &agentv1.ZfsSnapshot{Dataset: name, Guid: number(t, w), CreateTxg: uint64(len(s.Snapshots) + 1), Name: "s" + w}
			if name == sourceName {
				one.CreateTxg = one.GetGuid()
			}
			if as != "" {
				one.Name = as
			}
			if hold != "" {
				one.Holds = []string{hold}
			}
			if clone != "" {
				one.Clones = []string{clone}
			}
			s.Snapshots = append(s.Snapshots, one)
		case w[0] == '#':
			guid := number(t, w[1:])
			s.Bookmarks = append(s.Bookmarks, &agentv1.ZfsBookmark{Dataset: name, Guid: guid, CreateTxg: guid, Name: "b" + w[1:]})
		default:
			t.Fatalf("what is %q?", w)
		}
	}
	return s
}

func number(t testing.TB, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// with reads what else counts: newest, strict, unsafe REASON, cursor N,
// token FROM>TO[=NAME], modified, source N, samenode.
func with(t testing.TB, in *Input, notation string) {
	t.Helper()
	words := strings.Fields(notation)
	for i := 0; i < len(words); i++ {
		switch w := words[i]; w {
		case "newest":
			in.NewestOnly = true
		case "strict":
			in.RefuseDiverged = true
		case "modified":
			in.Modified = true
		case "samenode":
			in.SameNode = true
		case "unsafe", "cursor", "token", "source":
			i++
			switch w {
			case "unsafe":
				in.EncryptedUnsafe = words[i]
			case "cursor":
				in.Cursor = number(t, words[i])
			case "source":
				in.SourceGUID = number(t, words[i])
			default:
				from, to, _ := strings.Cut(words[i], ">")
				to, name, renamed := strings.Cut(to, "=")
				in.Token = &agentv1.ZfsSendEstimate{FromGuid: number(t, from), ToGuid: number(t, to), To: sourceName + "@s" + to}
				if renamed {
					in.Token.To = name
				}
			}
		default:
			t.Fatalf("what is %q?", w)
		}
	}
}

func input(t testing.TB, source, target, more string) *Input {
	t.Helper()
	in := &Input{
		Job: job, Dataset: sourceName, TargetDataset: targetName, Now: noon,
		Source: side(t, sourceName, source), Target: side(t, targetName, target),
	}
	with(t, in, more)
	return in
}

// told is a plan in one line: what becomes of the copy, the mode, the steps by
// name, why it is diverged.
func told(p *Plan) string {
	var b strings.Builder
	switch {
	case p.Aside.GetRenameTo() != "":
		fmt.Fprintf(&b, "aside %s; ", p.Aside.GetRenameTo())
	case p.Aside != nil:
		fmt.Fprintf(&b, "back to %d", p.Aside.GetKeepGuid())
		for _, s := range p.Aside.GetDestroy() {
			fmt.Fprintf(&b, " -%d", s.GetGuid())
		}
		b.WriteString("; ")
	}
	b.WriteString(strings.ToLower(strings.TrimPrefix(p.Decision.GetMode().String(), "REPLICATION_MODE_")))
	for _, s := range p.Steps {
		fmt.Fprintf(&b, " %s>@%s", s.GetFrom(), s.GetTo())
	}
	if p.Refusal != nil {
		b.WriteString(" " + p.Refusal.Code)
	}
	if d := p.Decision.GetDivergence(); d != debvisorv1.Divergence_DIVERGENCE_NONE {
		b.WriteString(" [" + strings.TrimPrefix(d.String(), "DIVERGENCE_") + "]")
	}
	return b.String()
}

const aside = "aside backup/vm.diverged-20261122t120000; "

func TestDecide(t *testing.T) {
	for _, c := range []struct{ name, source, target, more, want string }{
		{"nothing there yet", "@1 @2 @3", "none", "", "full >@s1 @s1>@s2 @s2>@s3"},
		{"nothing there yet, the newest only", "@1 @2 @3", "none", "newest", "full >@s3"},
		{"only what is new", "@1 @2 @3 @4", "@1 @2", "", "incremental @s2>@s3 @s3>@s4"},
		{"only the newest of what is new", "@1 @2 @3 @4", "@1 @2", "newest", "incremental @s2>@s4"},
		{"nothing new", "@1 @2", "@1 @2", "", "nothing"},
		{"nothing new, with later bookmarks", "@1 @2 #3", "@2", "", "nothing"},
		{"the target has pruned", "@1 @2 @3", "@2", "", "incremental @s2>@s3"},
		{"the source has pruned, its bookmark is left", "#2 @3 @4", "@1 @2", "", "incremental #b2>@s3 @s3>@s4"},
		{"a snapshot rather than its bookmark", "#2 @2 @3", "@2", "", "incremental @s2>@s3"},
		{"all but the bookmark are pruned on the source", "#2", "@2", "", "refused NO_SNAPSHOT"},
		{"names are nothing: renamed on both ends", "@2=a @3=b", "@2=c", "", "incremental @a>@b"},
		{"names are nothing: the same ones of others", "@5=s1 @6=s2", "@1 @2", "", aside + "full >@s1 @s1>@s2 [NOTHING_COMMON]"},
		{"the target was rolled back", "@1 @2 @3 #3", "@1 @2", "cursor 3", "incremental @s2>@s3"},
		{"a name that the copy has of another", "@2 @3=s1 @4", "@1 @2", "", "incremental @s2>@s4"},
		{"all names are taken", "@2 @3=s1", "@1 @2", "", "refused SNAPSHOT_NAME_CLASH"},
		{"a clone", "clone tank/x@y @1", "none", "", "full >@s1"},
		{"volumes", "volume @1 @2", "volume @1", "", "incremental @s1>@s2"},
		{"encrypted", "encrypted @1 @2", "encrypted @1", "", "incremental @s1>@s2"},
		{"into an encrypted place", "@1 @2", "encrypted @1", "", "incremental @s1>@s2"},

		{"the copy has a snapshot of its own", "@1 @2 @4", "@1 @2 @3", "", aside + "full >@s1 @s1>@s2 @s2>@s4 [TARGET_NEWER]"},
		{"the copy was written to", "@1 @2", "@1 written 7", "", aside + "full >@s1 @s1>@s2 [TARGET_WRITTEN]"},
		{"zfs says that the copy was written to", "@1 @2", "@1", "modified", aside + "full >@s1 @s1>@s2 [TARGET_WRITTEN]"},
		{"rolled back behind the cursor", "@1 @4", "@1 @2 @3", "cursor 3", aside + "full >@s1 @s1>@s4 [SOURCE_ROLLED_BACK]"},
		{"rolled back behind all", "@9", "@2 @3", "cursor 3", aside + "full >@s9 [SOURCE_ROLLED_BACK]"},
		{"nothing in common", "@8 @9", "@1 @2", "", aside + "full >@s8 @s8>@s9 [NOTHING_COMMON]"},
		{"a copy without snapshots", "@1", "", "cursor 1", aside + "full >@s1 [NOTHING_COMMON]"},
		{"a volume by now", "volume @1 @2", "@1", "", aside + "full >@s1 @s1>@s2 [NOTHING_COMMON]"},
		{"encrypted by now", "encrypted @1 @2", "@1", "", aside + "full >@s1 @s1>@s2 [NOTHING_COMMON]"},
		{"diverged, and that is not to be mended", "@1 @2", "@1 written 7", "strict", "refused REPLICATION_DIVERGED [TARGET_WRITTEN]"},

		{"no such source", "none", "@1", "", "refused SOURCE_NOT_FOUND"},
		{"no snapshot", "", "@1", "", "refused NO_SNAPSHOT"},
		{"another source of the same name", "@1", "@1", "source 77", "refused SOURCE_REPLACED [SOURCE_REPLACED]"},
		{"the same source", "@1", "@1", "source 1000", "nothing"},
		{"a copy that is nobody's", "@1", "@1 job -", "", "refused TARGET_UNRELATED [UNRELATED]"},
		{"a copy that is another job's", "@1", "@1 job weekly", "", "refused TARGET_UNRELATED [UNRELATED]"},
		{"a place that is somebody's and empty", "@1", "job -", "", "refused TARGET_UNRELATED [UNRELATED]"},
		{"encrypted, and not safe", "encrypted @1", "none", "unsafe #1234", "refused ENCRYPTED_SEND_UNSAFE"},
		{"not encrypted, so safe", "@1", "none", "unsafe #1234", "full >@s1"},

		{"the first stream was cut", "@1 @2", "partial", "token 0>1", "resume >@s1 @s1>@s2"},
		{"the first stream was cut before the mark", "@1 @2", "partial job -", "token 0>1", "resume >@s1 @s1>@s2"},
		{"the first stream was cut, its snapshot is not the oldest any more", "@1 @2 @3", "partial", "token 0>2", "resume >@s2 @s2>@s3"},
		{"the first stream was cut, its snapshot is gone", "@2", "partial", "token 0>1", "full >@s2"},
		{"the first stream was cut, nobody knows the token", "@1", "partial", "", "full >@s1"},
		{"not marked, and nobody knows the token", "@1", "partial job -", "", "refused TARGET_UNRELATED [UNRELATED]"},
		{"not marked, and the token lies", "@1", "partial job -", "token 0>5", "refused TARGET_UNRELATED [UNRELATED]"},
		{"an increment was cut", "@1 @2 @3", "@1 partial", "token 1>2", "resume @s1>@s2 @s2>@s3"},
		{"an increment from a bookmark was cut", "#1 @2 @3", "@1 partial", "token 1>2", "resume #b1>@s2 @s2>@s3"},
		{"an increment that leaves one out was cut", "@1 @2 @3", "@1 partial", "token 1>3", "incremental @s1>@s2 @s2>@s3"},
		{"the newest was cut, there is a newer one", "@1 @2 @3 @4", "@1 partial", "newest token 1>3", "resume @s1>@s3 @s3>@s4"},
		{"its snapshot is gone", "@1 @3", "@1 partial", "token 1>2", "incremental @s1>@s3"},
		{"a token from elsewhere", "@1 @2 @3", "@1 @2 partial", "token 1>3", "incremental @s2>@s3"},
		{"a token of another dataset", "@1 @2", "@1 partial", "token 1>2=tank/secret@s2", "incremental @s1>@s2"},
		{"a token to what only a bookmark is of", "@1 #2 @3", "@1 partial", "token 1>2", "incremental @s1>@s3"},
		{"a token into the past", "@1 @2 @3", "@2 partial", "token 2>1", "incremental @s2>@s3"},
		{"cut and diverged", "@1 @2", "@1 @9 partial", "token 0>1", aside + "full >@s1 @s1>@s2 [TARGET_NEWER]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := told(Decide(input(t, c.source, c.target, c.more))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestOneNode(t *testing.T) {
	for target, want := range map[string]string{
		"tank/vm": "refused SAME_DATASET", "tank/vm/copy": "refused SAME_DATASET", "tank": "refused SAME_DATASET",
		"tank/vm2": "full >@s1",
	} {
		in := input(t, "@1", "none", "samenode")
		in.TargetDataset = target
		if got := told(Decide(in)); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

// TestDestruction: what is newer on the target is destroyed only by the id of a
// plan that says so, and only while that is all that would be lost.
func TestDestruction(t *testing.T) {
	const source, target = "@1 @2 @5", "@1 @2 @3 @4"
	seen := Decide(input(t, source, target, ""))
	if got, want := fmt.Sprint(seen.Decision.GetDestroy()), "[@s3 @s4]"; got != want || seen.Decision.GetCommonGuid() != "2" {
		t.Fatalf("it would destroy %s after %s", got, seen.Decision.GetCommonGuid())
	}
	for _, c := range []struct{ name, source, target, confirmed, want string }{
		{"confirmed", source, target, "", "back to 2 -3 -4; incremental @s2>@s5 [TARGET_NEWER]"},
		{"confirmed, the source has one more", source + " @6", target, "", "back to 2 -3 -4; incremental @s2>@s5 @s5>@s6 [TARGET_NEWER]"},
		{"confirmed, the source has one less", "@2 @5", target, "", "back to 2 -3 -4; incremental @s2>@s5 [TARGET_NEWER]"},
		{"more would be lost", source, target + " @7", "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"what was written would be lost", source, target + " written 9", "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"another dataset by now", source, target + " guid 3", "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"it would go back further", "@1 @5", target, "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"another plan", source, target, "plan-0", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"nothing to go back to", "@5", target, "", "refused PLAN_CHANGED [NOTHING_COMMON]"},
		{"held by another", source, "@1 @2 @3+legal @4", "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"held by us", source, "@1 @2 @3 @4+debvisor:nightly", "", "back to 2 -3 -4; incremental @s2>@s5 [TARGET_NEWER]"},
		{"cloned", source, "@1 @2 @3 @4*backup/x", "", "refused PLAN_CHANGED [TARGET_NEWER]"},
		{"for nothing", "@1 @2", target, "", "refused NO_SNAPSHOT [TARGET_NEWER]"},
		{"none of it is left", source, "@1 @2", "", "incremental @s2>@s5"},
	} {
		in := input(t, c.source, c.target, "")
		in.Confirmed = c.confirmed
		if c.confirmed == "" {
			in.Confirmed = seen.Decision.GetPlanId()
		}
		if got := told(Decide(in)); got != c.want {
			t.Errorf("%s: got %s\nwant %s", c.name, got, c.want)
		}
	}
	// An attempt that broke off half-way through it may go on with the rest.
	in := input(t, source, target, "")
	in.Confirmed = seen.Decision.GetPlanId()
	begun := Decide(in)
	for target, want := range map[string]string{
		"@1 @2 @3":    "back to 2 -3; incremental @s2>@s5 [TARGET_NEWER]",
		"@1 @2 @3 @8": "refused PLAN_CHANGED [TARGET_NEWER]",
	} {
		in := input(t, source, target, "")
		in.Confirmed, in.Accepted = seen.Decision.GetPlanId(), begun.Aside
		if got := told(Decide(in)); got != want {
			t.Errorf("after a cut, %s: %s, want %s", target, got, want)
		}
	}
}

// TestManyWouldBeLost: a plan that speaks of very many snapshots still fits into a
// record; else its run would stand still for ever.
func TestManyWouldBeLost(t *testing.T) {
	in := input(t, "@1 @2 @5", "@1 @2", "")
	for guid := uint64(100); guid < 20_000; guid++ {
		in.Target.Snapshots = append(in.Target.Snapshots, &agentv1.ZfsSnapshot{
			Name: fmt.Sprintf("%0150d", guid), Guid: guid, CreateTxg: guid, Holds: []string{"a", "b"}, Clones: []string{"backup/c"},
		})
	}
	plan := Decide(in)
	if plan.Aside.GetRenameTo() == "" || len(plan.Decision.GetDestroy()) != MaxDestroyed || proto.Size(plan.Decision) > 300<<10 {
		t.Errorf("%d bytes, %d to destroy: %.300s", proto.Size(plan.Decision), len(plan.Decision.GetDestroy()), told(plan))
	}
	for _, most := range []int{len(in.Target.Snapshots), 2 + MaxDestroyed} {
		in.Target.Snapshots = in.Target.Snapshots[:most]
		in.Confirmed = ""
		in.Confirmed = Decide(in).Decision.GetPlanId()
		if p := Decide(in); p.Refusal == nil || p.Refusal.Code != PlanChanged || proto.Size(p.Decision)+len(p.Refusal.Message) > 300<<10 {
			t.Errorf("of %d snapshots: %.300s", most, told(p))
		}
	}
}

func TestWhatCannotBeSetAside(t *testing.T) {
	for _, name := range []string{"backup", "backup/" + strings.Repeat("x", 240)} {
		in := input(t, "@1 @2", "@1 written 7", "")
		in.TargetDataset = name
		if p := Decide(in); p.Refusal == nil || p.Refusal.Code != Diverged || p.Aside != nil {
			t.Errorf("%s: %s", name, told(p))
		}
	}
}

func TestRoom(t *testing.T) {
	p := Decide(input(t, "@1 @2 @3", "@1", ""))
	p.Estimate(map[int]uint64{0: 10, 1: 20, 9: 1}, 0)
	if p.Decision.GetEstimatedBytes() != 30 || p.Steps[1].GetEstimatedBytes() != 20 || p.Decision.GetSteps()[1].GetEstimatedBytes() != 20 {
		t.Errorf("estimated %v", p.Decision)
	}
	if p.Fit(30); p.Refusal != nil {
		t.Errorf("30 fit into 30: %v", p.Refusal)
	}
	if p.Fit(29); p.Refusal == nil || p.Refusal.Code != NoSpace || told(p) != "refused TARGET_NO_SPACE" {
		t.Errorf("30 do not fit into 29: %s", told(p))
	}
}

// TestMarks: with nothing to send, whether the marks are as they should be.
func TestMarks(t *testing.T) {
	const held = "+debvisor:nightly"
	for _, c := range []struct {
		source, target string
		marks          []uint64
		want           bool
	}{
		{"@1 @2" + held, "@1 @2" + held, []uint64{2}, true},
		{"@1 @2", "@1 @2" + held, []uint64{2}, false},
		{"@1 @2" + held, "@1 @2", []uint64{2}, false},
		{"@1 @2" + held, "@1 @2" + held, nil, false},
		{"@1 @2" + held, "@1 @2" + held, []uint64{1, 2}, false},
		{"@1" + held + " @2" + held, "@2" + held, []uint64{2}, false},
		{"@2" + held, "@1" + held + " @2" + held, []uint64{2}, false},
	} {
		in := input(t, c.source, c.target, "")
		for _, guid := range c.marks {
			in.Source.Bookmarks = append(in.Source.Bookmarks, &agentv1.ZfsBookmark{Name: fmt.Sprintf("debvisor-nightly-%x", guid), Guid: guid, CreateTxg: guid})
		}
		in.Source.Bookmarks = append(
			in.Source.Bookmarks, &agentv1.ZfsBookmark{Name: "debvisor-other-1", Guid: 1, CreateTxg: 1},
			&agentv1.ZfsBookmark{Name: "debvisor-nightly-1-1", Guid: 1, CreateTxg: 1}, // of the job "nightly-1"
		)
		if p := Decide(in); told(p) != "nothing" || p.Unmarked == c.want {
			t.Errorf("%s | %s %v: %s, unmarked %v", c.source, c.target, c.marks, told(p), p.Unmarked)
		}
	}
}
