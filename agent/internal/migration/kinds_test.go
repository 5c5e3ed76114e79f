package migration

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// The VMs of a host whose libvirt is libvirt's own test driver.
const (
	vmRunning   = "11111111-0000-0000-0000-000000000001"
	vmPaused    = "11111111-0000-0000-0000-000000000002"
	vmOff       = "11111111-0000-0000-0000-000000000003"
	vmTransient = "11111111-0000-0000-0000-000000000004"
	vmNone      = "11111111-0000-0000-0000-000000000009"
)

// bench is node "a" with a real worker and a real libvirt driver, whose tunnels'
// children end at once. What the other node says is relayed.
type bench struct {
	t    *testing.T
	hv   *hypervisor.Hypervisor
	m    *Migration
	work *worker.Worker
}

func newBench(t *testing.T) *bench {
	t.Helper()
	xml := "<node>"
	for uuid, of := range map[string]string{
		vmRunning: "<test:runstate>1</test:runstate>", vmPaused: "<test:runstate>3</test:runstate>",
		vmOff: "<test:runstate>5</test:runstate>", vmTransient: "<test:transient/>",
	} {
		xml += "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>vm" + uuid[35:] + "</name><uuid>" + uuid +
			"</uuid><memory>8192</memory><os><type>hvm</type></os>" + of + "</domain>"
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.xml"), []byte(xml+"</node>"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, hv: hypervisor.New(hypervisor.Config{URI: "test://" + filepath.Join(dir, "node.xml"), Log: hclog.NewNullLogger()})}
	b.run(b.hv.Run)
	ready, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.hv.Ready(ready); err != nil {
		t.Fatal(err)
	}
	b.m = New(Config{
		Node: "a", Cluster: "testing", Hypervisor: b.hv, Certificates: newAgents(t).certificate("a"), Log: hclog.NewNullLogger(),
		Tunnels: &tunnel.Tunnels{Root: filepath.Join(dir, "tunnel"), Command: []string{"/bin/false"}, Log: hclog.NewNullLogger()},
	})
	t.Cleanup(func() { _ = b.m.Close() })
	var err error
	if b.work, err = worker.Open(worker.Config{Path: filepath.Join(dir, "journal"), Kinds: b.m.Kinds(), Log: hclog.NewNullLogger()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.work.Close() })
	b.run(b.work.Run)
	return b
}

// run runs a component until the test's end.
func (b *bench) run(component func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- component(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
}

func right(uuid, source, target string) *agentv1.MigrationRight {
	return &agentv1.MigrationRight{
		Id: "right", VmUuid: uuid, VmName: "vm", SourceNode: source, TargetNode: target,
		SendTaskId: "op/1/migrate-send", ReceiveTaskId: "op/1/migrate-receive", ExpiresAt: time.Now().Add(time.Hour).Unix(),
	}
}

func sendOf(uuid string) *agentv1.Task {
	return &agentv1.Task{Id: "op/1/migrate-send", Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateSend{MigrateSend: &agentv1.MigrateSend{
		Right: right(uuid, "a", "b"), TargetPeerAddress: "127.0.0.1:1", TunnelAddress: "127.0.0.1:1", Resume: true,
	}}}}
}

func receiveOf(uuid string) *agentv1.Task {
	return &agentv1.Task{Id: "op/1/migrate-receive", Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateReceive{MigrateReceive: &agentv1.MigrateReceive{
		Right: right(uuid, "b", "a"), SourcePeerAddress: "127.0.0.1:1", Resume: true,
	}}}}
}

// observed is a task that a lost journal may have begun.
func observed(t *agentv1.Task) *agentv1.Task {
	t.ObserveOnly = true
	return t
}

// outcome has the task done, the other node's side being what is given (nil:
// nothing is heard of it), and gives what came of it and how the VM then stands.
func (b *bench) outcome(t *agentv1.Task, uuid string, other *agentv1.Side) (*agentv1.TaskOutcome, hypervisor.Sighting) {
	b.t.Helper()
	if err := b.work.Accept(t); err != nil {
		b.t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if other != nil {
			b.work.Relay(t.GetId(), other)
		}
		for _, r := range b.work.Open() {
			if r.GetOutcome() == nil {
				continue
			}
			seen, err := b.hv.Look(b.t.Context(), uuid)
			if err != nil {
				b.t.Fatal(err)
			}
			return r.GetOutcome(), seen
		}
		<-time.After(10 * time.Millisecond)
	}
	b.t.Fatalf("no outcome: %v", b.work.Open())
	return nil, hypervisor.Sighting{}
}

func ended(state agentv1.SideState) *agentv1.Side { return &agentv1.Side{State: state, Ended: true} }

// TestKinds has each half meet what may be found on a host.
func TestKinds(t *testing.T) {
	for name, c := range map[string]struct {
		task        *agentv1.Task
		uuid        string
		other       *agentv1.Side
		code        string // empty: SUCCEEDED
		interrupted bool
		state       agentv1.SideState // how the VM then stands here
	}{
		"source: no such VM":         {sendOf(vmNone), vmNone, nil, codeNotRunning, false, absent},
		"source: it is off":          {sendOf(vmOff), vmOff, nil, codeNotRunning, false, shutoff},
		"source: somebody paused it": {sendOf(vmPaused), vmPaused, nil, codeNotRunning, false, paused},
		"source: only transient":     {sendOf(vmTransient), vmTransient, nil, codeTransient, false, running},
		"source: no tunnel":          {sendOf(vmRunning), vmRunning, nil, "TUNNEL_FAILED", true, running},
		"source: nothing came of it": {observed(sendOf(vmRunning)), vmRunning, ended(absent), codeInterrupted, true, running},
		"source: it has gone":        {observed(sendOf(vmNone)), vmNone, nil, "", false, absent},
		"source: left paused":        {observed(sendOf(vmPaused)), vmPaused, ended(absent), codeInterrupted, true, running},
		"source: both run":           {observed(sendOf(vmRunning)), vmRunning, ended(running), codeConflict, false, running},
		"source: off, a whole copy":  {observed(sendOf(vmOff)), vmOff, ended(paused), codeUnclear, false, shutoff},
		"source: off on both":        {observed(sendOf(vmOff)), vmOff, ended(shutoff), codeStopped, false, shutoff},
		"source: off, no copy":       {observed(sendOf(vmOff)), vmOff, ended(absent), codeStopped, false, shutoff},

		"target: it is here":          {receiveOf(vmRunning), vmRunning, nil, codeExists, false, running},
		"target: its definition is":   {receiveOf(vmOff), vmOff, nil, codeExists, false, shutoff},
		"target: arrived":             {observed(receiveOf(vmPaused)), vmPaused, ended(absent), "", false, running},
		"target: arrived and resumed": {observed(receiveOf(vmRunning)), vmRunning, ended(absent), "", false, running},
		"target: both run":            {observed(receiveOf(vmRunning)), vmRunning, ended(running), codeConflict, false, running},
		"target: the source went on":  {observed(receiveOf(vmOff)), vmOff, ended(running), codeNotArrived, false, shutoff},
		"target: the source is off":   {observed(receiveOf(vmPaused)), vmPaused, ended(shutoff), codeUnclear, false, paused},
		"target: stopped on the way":  {observed(receiveOf(vmOff)), vmOff, ended(absent), codeStopped, false, shutoff},
		"target: nothing came":        {observed(receiveOf(vmNone)), vmNone, ended(running), codeNotArrived, false, absent},
		"target: it is nowhere":       {observed(receiveOf(vmNone)), vmNone, ended(absent), codeLost, false, absent},
		"target: off before anything": {observed(receiveOf(vmNone)), vmNone, ended(shutoff), codeNotArrived, false, absent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, seen := newBench(t).outcome(c.task, c.uuid, c.other)
			if out.GetErrorCode() != c.code || out.GetInterrupted() != c.interrupted {
				t.Errorf("outcome %v, want code %q", out, c.code)
			}
			if seen.State != c.state || out.GetSide().GetState() != c.state || !out.GetSide().GetEnded() {
				t.Errorf("it is %s here, the outcome says %v; want %s", seen.State, out.GetSide(), c.state)
			}
		})
	}
}

// TestNothingIsDoneInDoubt has each half wait where the other is not known to
// have ended: neither copy is touched.
func TestNothingIsDoneInDoubt(t *testing.T) {
	for name, c := range map[string]struct {
		task  *agentv1.Task
		uuid  string
		other *agentv1.Side
	}{
		"target: nothing is heard":    {observed(receiveOf(vmPaused)), vmPaused, nil},
		"target: source still copies": {observed(receiveOf(vmPaused)), vmPaused, &agentv1.Side{State: outgoing}},
		"target: source may go on":    {observed(receiveOf(vmPaused)), vmPaused, &agentv1.Side{State: absent}},
		"source: nothing is heard":    {observed(sendOf(vmPaused)), vmPaused, nil},
		"source: a copy may come":     {observed(sendOf(vmPaused)), vmPaused, &agentv1.Side{State: absent}},
		"source: a copy stands there": {observed(sendOf(vmPaused)), vmPaused, ended(paused)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if err := b.work.Accept(c.task); err != nil {
				t.Fatal(err)
			}
			for range 30 {
				if c.other != nil {
					b.work.Relay(c.task.GetId(), c.other)
				}
				<-time.After(10 * time.Millisecond)
			}
			seen, err := b.hv.Look(t.Context(), c.uuid)
			if err != nil || seen.State != paused {
				t.Errorf("it is %s, %v", seen.State, err)
			}
			if r := b.work.Open(); len(r) != 1 || r[0].GetOutcome() != nil {
				t.Errorf("the task has ended: %v", r)
			}
		})
	}
}

// TestLeftDefinition: what libvirt handed over, and left defined, has not ended
// until the copy was seen or is known to be none.
func TestLeftDefinition(t *testing.T) {
	handed := hypervisor.Sighting{State: shutoff, Handed: true}
	for name, c := range map[string]struct {
		seen  hypervisor.Sighting
		other agentv1.SideState
		want  bool
	}{
		"nothing is heard":       {handed, unknown, true},
		"the copy arrives":       {handed, incoming, true},
		"the copy stands there":  {handed, paused, true},
		"the copy runs":          {handed, running, true},
		"the copy has gone":      {handed, absent, false},
		"the copy has stopped":   {handed, shutoff, false},
		"it stopped by itself":   {hypervisor.Sighting{State: shutoff}, paused, false},
		"it is not even stopped": {hypervisor.Sighting{State: running}, paused, false},
	} {
		s := &sender{half: &half{other: &agentv1.Side{State: c.other}}}
		if got := s.leftOver(c.seen); got != c.want {
			t.Errorf("%s: left over %v", name, got)
		}
	}
}
