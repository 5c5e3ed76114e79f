package replication

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// liar is a test that has the certificate of a node and speaks as it likes.
func liar(t *testing.T, node string) *certs.Reloader {
	t.Helper()
	r, err := certs.NewReloader(certificate(t, node), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func streamOf(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("zfs", append([]string{"send"}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLyingSource: whatever a source sends that is not planned, the target refuses,
// and nothing of it stays.
func TestLyingSource(t *testing.T) {
	j := newJob(t, "dst", false, false)
	j.to = startAgent(t, "b")
	j.write(1, "1")
	j.snapshot("s1")
	j.write(1, "22")
	j.snapshot("s2")
	steps := j.steps("", "s1", "s2")
	good := begin{ToGUID: steps[0].GetToGuid()}
	s1 := streamOf(t, "-c", "-L", "-e", j.source+"@s1")
	renamed := bytes.Clone(streamOf(t, "-c", "-L", "-e", j.source+"@s2"))
	copy(renamed[zfs.StreamOffsetToGUID:], s1[zfs.StreamOffsetToGUID:zfs.StreamOffsetToGUID+8])
	for _, c := range []struct {
		name   string
		begin  begin
		stream []byte
		stays  bool
		code   string
	}{
		{"another step", begin{Step: 1, ToGUID: steps[1].GetToGuid(), FromGUID: steps[1].GetFromGuid()}, nil, false, CodeStreamRefused},
		{"another guid", begin{ToGUID: 7}, nil, false, CodeStreamRefused},
		{"resumed what was not begun", begin{ToGUID: good.ToGUID, Resumed: true}, nil, false, CodeStreamRefused},
		{"garbage", good, bytes.Repeat([]byte("x"), 4096), false, CodeStreamRefused},
		{"too little", good, []byte("x"), false, CodeStreamRefused},
		{"nothing", good, nil, false, CodeStreamRefused},
		{"another snapshot", good, streamOf(t, j.source+"@s2"), false, CodeStreamRefused},
		{"an increment", good, streamOf(t, "-i", "@s1", j.source+"@s2"), false, CodeStreamRefused},
		{"a package", good, streamOf(t, "-R", j.source+"@s2"), false, CodeStreamRefused},
		{"another snapshot under the planned guid", good, renamed, false, ""},
		{"more than the stream", good, append(bytes.Clone(s1), bytes.Repeat(s1, 8)...), true, CodeStreamRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			receive, _ := j.tasks(steps)
			right := receive.GetSpec().GetReplicateReceive().GetRight()
			l := j.dial(t, receive, liar(t, "a"), right.GetId())
			if err := l.send(frameHello, helloOf(right)); err != nil {
				t.Fatal(err)
			}
			expect(t, l, frameState)
			_ = l.send(frameBegin, c.begin)
			for p := c.stream; len(p) > 0; {
				n := min(len(p), frameSize)
				buf := newFrame(n)
				copy(buf[headSize:], p[:n])
				if l.sendData(buf, n) != nil {
					break
				}
				p = p[n:]
			}
			_ = l.send(frameEnd, nil)
			if c.code == "" {
				expect(t, l, frameFailed)
				j.to.say("cancel %s", receive.GetId())
				c.code = "CANCELLED"
			}
			if out := j.to.outcome(receive); out.GetErrorCode() != c.code {
				t.Errorf("%v", out)
			}
			if there := !strings.HasPrefix(try("zfs", "list", j.target), "cannot"); there != c.stays {
				t.Errorf("the target is there: %t", there)
			}
			j.nothingPartial()
			release(j.target)
			try("zfs", "destroy", "-r", j.target)
		})
	}
}

// dial connects to a target as whoever has the certificate.
func (j *job) dial(t *testing.T, receive *agentv1.Task, as *certs.Reloader, id string) *link {
	t.Helper()
	address := j.to.await(receive, "the address", func(r *agentv1.TaskReport) bool {
		return r.GetProgress().GetReplicateReceive().GetAddress() != ""
	}).GetProgress().GetReplicateReceive().GetAddress()
	conn, err := tunnel.DialStream(t.Context(), address, tunnel.StreamRight{ID: id, Cluster: cluster, Peer: "b", Certificates: as})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return newLink(conn)
}

func expect(t *testing.T, l *link, kind byte) []byte {
	t.Helper()
	got, content, err := l.next(make([]byte, frameSize))
	if err != nil || got != kind {
		t.Fatalf("got %q, %s, %v; want %q", got, content, err, kind)
	}
	return content
}

// TestStrangers: another node, another right and another greeting open nothing; the
// right's own source still gets in.
func TestStrangers(t *testing.T) {
	j := newJob(t, "dst", false, false).agents()
	j.write(1, "1")
	j.snapshot("s1")
	receive, send := j.tasks(j.steps("", "s1"))
	right := receive.GetSpec().GetReplicateReceive().GetRight()
	for who, id := range map[string]string{"c": right.GetId(), "a": "another"} {
		l := j.dial(t, receive, liar(t, who), id)
		if _, _, err := l.next(make([]byte, frameSize)); err == nil {
			t.Errorf("%s with %s was let in", who, id)
		}
	}
	other := helloOf(right)
	other.Epoch++
	l := j.dial(t, receive, liar(t, "a"), right.GetId())
	_ = l.send(frameHello, other)
	if kind, _, err := l.next(make([]byte, frameSize)); err == nil {
		t.Errorf("another term was answered with %q", kind)
	}
	j.to.await(receive, "the refusals", func(r *agentv1.TaskReport) bool {
		return r.GetProgress().GetReplicateReceive().GetRefused() == 2 && r.GetProgress().GetReplicateReceive().GetRefusedLast() != ""
	})
	j.begin(receive, send)
	if a, b := j.from.outcome(send), j.to.outcome(receive); a.GetErrorCode() != "" || b.GetErrorCode() != "" {
		t.Errorf("%v, %v", a, b)
	}
	j.atRest("s1")
}

// TestLyingTarget: a target gets nothing but what is planned, whatever it claims to
// have; what cannot be ends the run.
func TestLyingTarget(t *testing.T) {
	j := newJob(t, "dst", false, false)
	j.from = startAgent(t, "a")
	j.write(1, "1")
	j.snapshot("s1")
	j.write(1, "secret")
	j.snapshot("secret")
	steps := j.steps("", "s1")
	token := tokenOf(t, j.source+"@secret", j.target+"-cut")
	for _, c := range []struct {
		name   string
		states []state
		sends  bool
	}{
		{"a step that was not sent", []state{{Have: 1, GUID: steps[0].GetToGuid()}}, false},
		{"another guid", []state{{Have: 1, GUID: 7}}, false},
		{"more steps than there are", []state{{Have: 9}}, false},
		{"fewer than none", []state{{Have: -1}}, false},
		{"a token of another snapshot", []state{{Token: token}, {Token: token}}, true},
		{"a token of two others", []state{{Token: token}, {Token: "1-0-0-0"}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			j.t = t
			_, send := j.tasks(steps)
			spec := send.GetSpec().GetReplicateSend()
			first := somePorts()
			streams, err := tunnel.ListenStreams(t.Context(), tunnel.StreamsConfig{
				StreamRight: tunnel.StreamRight{ID: spec.GetRight().GetId(), Cluster: cluster, Peer: "a", Certificates: liar(t, "b")},
				Host:        "127.0.0.1", FirstPort: first, LastPort: first + 9, Log: hclog.NewNullLogger(),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer streams.Close()
			spec.TargetAddress = streams.Address()
			j.from.accept(send)
			conn, err := streams.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := lie(t, conn, c.states)
			if out := j.from.outcome(send); out.GetErrorCode() != CodeTargetRefused {
				t.Errorf("%v", out)
			}
			if (len(got) > 0) != c.sends {
				t.Errorf("%d bytes were sent", len(got))
			}
			if len(got) > 0 {
				if h, err := readHeader(got); err != nil || h.ToGUID != steps[0].GetToGuid() || h.FromGUID != 0 {
					t.Errorf("what was sent is %+v, %v", h, err)
				}
			}
			if left := holds(t, j.source); len(left) > 0 {
				t.Errorf("holds %v", left)
			}
		})
	}
}

// lie answers a source with the states, and gives the stream that it sends.
func lie(t *testing.T, conn net.Conn, states []state) (stream []byte) {
	t.Helper()
	l := newLink(conn)
	expect(t, l, frameHello)
	buf := make([]byte, frameSize)
	for _, st := range states {
		if l.send(frameState, st) != nil {
			return stream
		}
		for {
			kind, content, err := l.next(buf)
			if err != nil || kind == frameGiveUp {
				return stream
			}
			if kind == frameBegin && bytes.Contains(content, []byte(`"Resumed":true`)) {
				t.Error("what the token names is resumed")
			}
			if kind == frameData {
				stream = append(stream, content...)
			}
			if kind == frameEnd {
				break
			}
		}
	}
	_, _, _ = l.next(buf)
	return stream
}

// tokenOf is the token of a receive that was cut off.
func tokenOf(t *testing.T, snapshot, dataset string) string {
	t.Helper()
	p := streamOf(t, "-c", snapshot)
	z := zfs.New(zfs.Config{})
	r, err := z.Receive(t.Context(), zfs.ReceiveSpec{Dataset: dataset, Resumable: true, Unmounted: true})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.Write(p[:len(p)*3/4])
	_ = r.Finish()
	t.Cleanup(func() { try("zfs", "receive", "-A", dataset) })
	token := sh(t, "zfs", "get", "-H", "-o", "value", propertyToken, dataset)
	if len(token) < 20 {
		t.Fatalf("token %q", token)
	}
	return token
}

// marks is a run of which only the journal's marks count.
type marks map[string]bool

func (marks) Progress(*agentv1.TaskProgress)              {}
func (marks) ProgressNow(*agentv1.TaskProgress)           {}
func (m marks) Mark(_ context.Context, name string) error { m[name] = true; return nil }
func (m marks) Marked(name string) bool                   { return m[name] }
func (marks) Overtaken() (uint64, bool)                   { return 0, false }
func (marks) Resumed() bool                               { return true }
func (marks) Cancelled() <-chan struct{}                  { return nil }
func (marks) Relayed() <-chan *agentv1.Side               { return nil }

// TestWrongSnapshotNeverStays: what was received under a planned name with another
// guid is destroyed when it is looked at, if this task has received it.
func TestWrongSnapshotNeverStays(t *testing.T) {
	for _, full := range []bool{true, false} {
		for _, received := range []bool{true, false} {
			t.Run(fmt.Sprintf("full=%t/received=%t", full, received), func(t *testing.T) {
				j := newJob(t, "dst", false, false)
				sh(t, "zfs", "create", "-o", "org.debvisor:job="+j.id, j.target)
				from := uint64(0)
				if !full {
					sh(t, "zfs", "snapshot", j.target+"@s0")
					from = guid(t, j.target+"@s0")
				}
				sh(t, "zfs", "snapshot", j.target+"@s1")
				run := marks{markTook(0): received}
				log := hclog.NewNullLogger()
				r := New(Config{ZFS: zfs.New(zfs.Config{}), Log: log})
				right := &agentv1.ReplicationRight{JobId: j.id, TargetDataset: j.target}
				c := &receiver{
					r: r, run: run, right: right, log: log, keep: keeper{r.zfs, j.id, j.target},
					spec: &agentv1.ReplicateReceive{Right: right, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM, Steps: []*agentv1.ReplicationStep{{To: "s1", ToGuid: 7, FromGuid: from}}},
				}
				err := c.survey(t.Context())
				gone := strings.HasPrefix(try("zfs", "list", j.target+"@s1"), "cannot")
				if gone != received || (err == nil) != received {
					t.Errorf("gone: %t, %v", gone, err)
				}
				if left := !strings.HasPrefix(try("zfs", "list", j.target), "cannot"); left != (!full || !received) {
					t.Errorf("the dataset is left: %t", left)
				}
			})
		}
	}
}

// TestTrouble: what is tried again, and how often.
func TestTrouble(t *testing.T) {
	full, cut := failed{Code: zfs.CodeNoSpace}, failed{Code: zfs.CodeStreamBroken, Again: true}
	var tr trouble
	if err := tr.meet(full, "", time.Hour); err != nil {
		t.Error(err)
	}
	if err := tr.meet(full, "", 0); !isDefinite(err) || codeOf(err) != zfs.CodeNoSpace {
		t.Error(err)
	}
	tr = trouble{}
	for i := range streamTries {
		if err := tr.meet(cut, "same", time.Hour); (err == nil) != (i < streamTries-1) {
			t.Errorf("try %d: %v", i, err)
		}
	}
	if err := tr.meet(cut, "another", time.Hour); err != nil {
		t.Error(err)
	}
	if err := tr.meet(failed{Code: "evil code", Message: "m"}, "", time.Hour); codeOf(err) != zfs.CodeZFS {
		t.Error(err)
	}
}
