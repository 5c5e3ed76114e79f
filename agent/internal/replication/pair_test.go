package replication

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

var numbers atomic.Int64

// job is a replication job between two agents of this machine.
type job struct {
	t              *testing.T
	id             string
	source, target string
	from, to       *agent
	volume, raw    bool
	key            string
	attempt        int
	mib            uint64
	edit           func(*agentv1.ReplicateSend, *agentv1.ReplicateReceive)
	expires        time.Duration
}

// newJob makes a source in src; the target is to be in the pool.
func newJob(t *testing.T, pool string, volume, encrypted bool) *job {
	t.Helper()
	n := int(numbers.Add(1))
	j := &job{
		t: t, id: fmt.Sprintf("job%d", n), source: fmt.Sprintf("src/d%d", n), target: fmt.Sprintf("%s/d%d", pool, n),
		volume: volume, raw: encrypted, expires: 10 * time.Minute,
	}
	args := []string{"zfs", "create"}
	if volume {
		args = append(args, "-s", "-V", "256M")
	}
	if encrypted {
		j.key = filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(j.key, []byte("a secret of many letters"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-o", "encryption=on", "-o", "keyformat=passphrase", "-o", "keylocation=file://"+j.key)
	}
	sh(t, append(args, j.source)...)
	t.Cleanup(func() {
		for _, d := range []string{j.source, j.target} {
			release(d)
			try("zfs", "destroy", "-r", d)
		}
	})
	return j
}

// release takes every hold below a dataset away.
func release(dataset string) {
	for _, line := range strings.Split(try("sh", "-c", "zfs list -H -o name -t snapshot -r "+dataset+" 2>/dev/null | xargs -r zfs holds -H"), "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			try("zfs", "release", f[1], f[0])
		}
	}
}

func (j *job) agents(edit ...func(*agentConfig)) *job {
	base := 18000 + 20*int(numbers.Add(1))
	j.from = startAgent(j.t, "a", base, edit...)
	j.to = startAgent(j.t, "b", base+10)
	return j
}

// write writes MiB of random bytes, the same for the same seed.
func (j *job) write(mib int, seed string) {
	j.t.Helper()
	path := "/mnt/" + j.source + "/f-" + seed
	if j.volume {
		path = "/dev/zvol/" + j.source
		j.until("the volume's device", func() bool { _, err := os.Stat(path); return err == nil })
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		j.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if j.volume {
		if _, err := f.Seek(int64(len(seed)%8)<<24, 0); err != nil {
			j.t.Fatal(err)
		}
	}
	buf := make([]byte, 1<<20)
	for range mib {
		_, _ = rand.Read(buf)
		if _, err := f.Write(buf); err != nil {
			j.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		j.t.Fatal(err)
	}
}

func (j *job) until(what string, is func() bool) {
	j.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(within); !is(); {
		select {
		case <-deadline:
			j.t.Fatalf("%s: not within %s", what, within)
		case <-tick.C:
		}
	}
}

func (j *job) snapshot(name string) { j.t.Helper(); sh(j.t, "zfs", "snapshot", j.source+"@"+name) }

func guid(t *testing.T, name string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(sh(t, "zfs", "get", "-Hp", "-o", "value", "guid", name), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// steps are from the first name, or "#mark", or "" for nothing, through the rest.
func (j *job) steps(names ...string) []*agentv1.ReplicationStep {
	j.t.Helper()
	var out []*agentv1.ReplicationStep
	for i, name := range names[1:] {
		s := &agentv1.ReplicationStep{To: name, ToGuid: guid(j.t, j.source+"@"+name), EstimatedBytes: 1 << 20}
		if from := names[i]; from != "" {
			if !strings.HasPrefix(from, "#") {
				from = "@" + from
			}
			s.From, s.FromGuid = from, guid(j.t, j.source+from)
		}
		out = append(out, s)
	}
	return out
}

// tasks makes a pair of tasks for the steps.
func (j *job) tasks(steps []*agentv1.ReplicationStep) (receive, send *agentv1.Task) {
	j.t.Helper()
	j.attempt++
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	op := fmt.Sprintf("op-%s/%d/", j.id, j.attempt)
	term := &agentv1.Term{Epoch: 1, Revision: 9}
	right := &agentv1.ReplicationRight{
		Id: hex.EncodeToString(id), JobId: j.id, SourceNode: "a", TargetNode: "b", SourceDataset: j.source, SourceGuid: guid(j.t, j.source),
		TargetDataset: j.target, Term: term, ExpiresAt: time.Now().Add(j.expires).Unix(), SendTaskId: op + "replicate-send", ReceiveTaskId: op + "replicate-receive",
	}
	in := &agentv1.ReplicateReceive{Right: right, Steps: steps, Raw: j.raw, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM}
	if j.volume {
		in.Type = agentv1.ZfsType_ZFS_TYPE_VOLUME
	}
	out := &agentv1.ReplicateSend{Right: right, Steps: steps, Raw: j.raw, BandwidthMib: j.mib}
	if len(steps) > 0 && steps[0].GetFromGuid() != 0 {
		in.TargetGuid = guid(j.t, j.target)
		in.Cursor = &agentv1.ZfsSnapshotID{Dataset: j.target, Name: steps[0].GetFrom()[1:], Guid: steps[0].GetFromGuid()}
		out.Cursor = &agentv1.ZfsSnapshotID{Dataset: j.source, Name: steps[0].GetFrom()[1:], Guid: steps[0].GetFromGuid()}
	}
	if j.edit != nil {
		j.edit(out, in)
	}
	receive = &agentv1.Task{Id: right.GetReceiveTaskId(), Term: term, Resource: "zfs-copy/" + j.target, Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicateReceive{ReplicateReceive: in}}}
	send = &agentv1.Task{Id: right.GetSendTaskId(), Term: term, Resource: "replication/" + j.id, Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicateSend{ReplicateSend: out}}}
	return receive, send
}

// begin has the target listen, and tells the source where.
func (j *job) begin(receive, send *agentv1.Task) {
	j.t.Helper()
	r := j.to.await(receive, "the address", func(r *agentv1.TaskReport) bool {
		return r.GetProgress().GetReplicateReceive().GetAddress() != "" || r.GetOutcome() != nil
	})
	if r.GetOutcome() != nil {
		j.t.Fatalf("the target ended: %v", r.GetOutcome())
	}
	send.GetSpec().GetReplicateSend().TargetAddress = r.GetProgress().GetReplicateReceive().GetAddress()
	j.from.accept(send)
}

// run runs the steps to both ends.
func (j *job) run(steps []*agentv1.ReplicationStep) (received, sent *agentv1.TaskOutcome) {
	j.t.Helper()
	receive, send := j.tasks(steps)
	j.begin(receive, send)
	sent = j.from.outcome(send)
	return j.to.outcome(receive), sent
}

// must runs the steps, which is to succeed.
func (j *job) must(steps []*agentv1.ReplicationStep) *agentv1.ZfsOutcome {
	j.t.Helper()
	received, sent := j.run(steps)
	if received.GetErrorCode() != "" || sent.GetErrorCode() != "" {
		j.t.Fatalf("received: %v; sent: %v", received, sent)
	}
	return sent.GetZfs()
}

// holds lists "name tag" of a dataset's held snapshots.
func holds(t *testing.T, dataset string) []string {
	t.Helper()
	var out []string
	for _, line := range strings.Split(sh(t, "sh", "-c", "zfs list -H -o name -t snapshot "+dataset+" | xargs -r zfs holds -H"), "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			out = append(out, strings.TrimPrefix(f[0], dataset+"@")+" "+f[1])
		}
	}
	slices.Sort(out)
	return out
}

// atRest makes sure that both sides keep the cursor and nothing else, that the copy
// is equal and read-only, and that nothing partial is left.
func (j *job) atRest(cursor string) {
	j.t.Helper()
	j.kept(cursor)
	j.same(cursor)
	j.nothingPartial()
	for property, want := range map[string]string{"readonly": "on", "org.debvisor:job": j.id} {
		if got := sh(j.t, "zfs", "get", "-H", "-o", "value", property, j.target); got != want {
			j.t.Errorf("%s of %s is %q", property, j.target, got)
		}
	}
	if !j.volume {
		if got := sh(j.t, "zfs", "get", "-H", "-o", "value", "mounted", j.target); got != "no" {
			j.t.Error("the copy is mounted")
		}
	}
}

// kept makes sure that both sides keep the cursor and nothing else.
func (j *job) kept(cursor string) {
	j.t.Helper()
	for _, dataset := range []string{j.source, j.target} {
		if got := holds(j.t, dataset); !slices.Equal(got, []string{cursor + " debvisor:" + j.id}) {
			j.t.Errorf("holds of %s: %v; want one of @%s", dataset, got, cursor)
		}
	}
	marks := strings.Fields(sh(j.t, "zfs", "list", "-H", "-o", "name", "-t", "bookmark", j.source))
	if want := fmt.Sprintf("%s#debvisor-%s-%x", j.source, j.id, guid(j.t, j.source+"@"+cursor)); !slices.Equal(marks, []string{want}) {
		j.t.Errorf("bookmarks %v; want %s", marks, want)
	}
}

// chained makes sure that some snapshot is held on both sides, and that of one which
// the target holds the source has a bookmark. It fits every moment between two runs'
// ends, whichever agent is dead: the other does not go back.
func (j *job) chained(when string) {
	held, marked := map[string][]string{}, []string(nil)
	for _, line := range strings.Split(try("zfs", "list", "-Hp", "-o", "name,guid,userrefs", "-d", "1", "-t", "snapshot,bookmark", j.source, j.target), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			j.t.Errorf("%s: %q", when, line)
			return
		}
		if dataset, _, snapshot := strings.Cut(f[0], "@"); !snapshot {
			marked = append(marked, f[1])
		} else if f[2] != "0" {
			held[dataset] = append(held[dataset], f[1])
		}
	}
	both := func(a, b []string) bool {
		return slices.ContainsFunc(a, func(one string) bool { return slices.Contains(b, one) })
	}
	if !both(held[j.source], held[j.target]) || !both(marked, held[j.target]) {
		j.t.Errorf("%s: held are %v, bookmarks are of %v", when, held, marked)
	}
}

// same compares snapshots by guid and by content.
func (j *job) same(names ...string) {
	j.t.Helper()
	for _, name := range names {
		if s, t := guid(j.t, j.source+"@"+name), guid(j.t, j.target+"@"+name); s != t {
			j.t.Errorf("@%s: guids %d and %d", name, s, t)
		}
		if s, t := j.sum(j.source, name), j.sum(j.target, name); s != t {
			j.t.Errorf("@%s: sums %s and %s", name, s, t)
		}
	}
}

// sum is a checksum of a snapshot's content, of a clone with the key loaded.
func (j *job) sum(dataset, name string) string {
	j.t.Helper()
	clone := fmt.Sprintf("%s-clone%d", dataset, numbers.Add(1))
	pool, _, _ := strings.Cut(dataset, "/")
	if j.raw && pool != "src" && sh(j.t, "zfs", "get", "-H", "-o", "value", "keystatus", dataset) != "available" {
		sh(j.t, "zfs", "load-key", "-L", "file://"+j.key, dataset)
		defer func() { try("zfs", "unload-key", dataset) }()
	}
	sh(j.t, "zfs", "clone", "-o", "readonly=on", dataset+"@"+name, clone)
	defer func() { sh(j.t, "zfs", "destroy", clone) }()
	if j.volume {
		path := "/dev/zvol/" + clone
		j.until("the clone's device", func() bool { _, err := os.Stat(path); return err == nil })
		return sh(j.t, "sh", "-c", "sha256sum < "+path)
	}
	return sh(j.t, "sh", "-c", "cd /mnt/"+clone+" && find . -type f | sort | xargs -r sha256sum | sha256sum")
}

// nothingPartial makes sure that no rest of a receive is there.
func (j *job) nothingPartial() {
	j.t.Helper()
	pool, _, _ := strings.Cut(j.target, "/")
	for _, line := range strings.Split(sh(j.t, "zfs", "get", "-H", "-o", "name,value", "-t", "filesystem,volume", "-r", "receive_resume_token", pool), "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[1] != "-" {
			j.t.Errorf("partial: %s", f[0])
		}
	}
}
