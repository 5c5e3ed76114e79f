package replication

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// numbers make names and ports unique in this test, machine.TestNumber among those
// that run in the machine at the same time.
var numbers, ports atomic.Int64

// somePorts is the first of ten that nobody else listens on.
func somePorts() int { return 10000 + 500*machine.TestNumber() + 10*int(ports.Add(1)) }

// job is a replication job between two agents of this machine.
type job struct {
	t              *testing.T
	id             string
	source, target string
	from, to       *agent
	volume, raw    bool
	key            string
	attempt        int
	guid           uint64 // the source's, once steps have been made
	mib            uint64
	edit           func(*agentv1.ReplicateSend, *agentv1.ReplicateReceive)
	expires        time.Duration
}

// newJob makes a source in src; the target is to be in the pool.
func newJob(t *testing.T, pool string, volume, encrypted bool) *job {
	t.Helper()
	n := fmt.Sprintf("%dx%d", machine.TestNumber(), numbers.Add(1))
	j := &job{
		t: t, id: "job" + n, source: "src/d" + n, target: pool + "/d" + n,
		volume: volume, raw: encrypted, expires: 10 * time.Minute,
	}
	args := []string{"zfs", "create"}
	if volume {
		args = append(args, "-s", "-V", "64M")
	}
	if encrypted {
		j.key = filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(j.key, []byte("a secret of many letters"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-o", "encryption=on", "-o", "keyformat=passphrase", "-o", "keylocation=file://"+j.key)
	}
	sh(t, append(args, j.source)...)
	return j // the machine goes with all that is made of it
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
	j.from, j.to = startAgent(j.t, "a", edit...), startAgent(j.t, "b")
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
		if _, err := f.Seek(int64(len(seed)%8)<<22, 0); err != nil {
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
	return number(sh(t, "zfs", "get", "-Hp", "-o", "value", "guid", name))
}

// number is 0 for what is none.
func number(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// steps are from the first name, or "#mark", or "" for nothing, through the rest.
func (j *job) steps(names ...string) []*agentv1.ReplicationStep {
	j.t.Helper()
	var out []*agentv1.ReplicationStep
	guids := list(j.t, j.source).guids
	guid := func(name string) uint64 {
		n := number(guids[j.source+name])
		if n == 0 {
			j.t.Fatalf("there is no %s%s", j.source, name)
		}
		return n
	}
	j.guid = guid("")
	for i, name := range names[1:] {
		s := &agentv1.ReplicationStep{To: name, ToGuid: guid("@" + name), EstimatedBytes: 1 << 20}
		if from := names[i]; from != "" {
			if !strings.HasPrefix(from, "#") {
				from = "@" + from
			}
			s.From, s.FromGuid = from, guid(from)
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
		Id: hex.EncodeToString(id), JobId: j.id, SourceNode: "a", TargetNode: "b", SourceDataset: j.source, SourceGuid: j.guid,
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
