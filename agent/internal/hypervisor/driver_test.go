package hypervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"libvirt.org/go/libvirt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The VMs of libvirt's own test driver, which keeps them in memory.
const (
	vmRunning   = "11111111-0000-0000-0000-000000000001"
	vmPaused    = "11111111-0000-0000-0000-000000000002"
	vmOff       = "11111111-0000-0000-0000-000000000003"
	vmTransient = "11111111-0000-0000-0000-000000000004"
	vmNone      = "11111111-0000-0000-0000-000000000009"
)

// testDriver connects to libvirt's test driver with the VMs above.
func testDriver(t *testing.T) *Hypervisor {
	t.Helper()
	xml := "<node>"
	for uuid, of := range map[string]string{
		vmRunning: "<test:runstate>1</test:runstate>", vmPaused: "<test:runstate>3</test:runstate>",
		vmOff: "<test:runstate>5</test:runstate>", vmTransient: "<test:transient/><test:runstate>3</test:runstate>",
	} {
		xml += "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>vm" + uuid[len(uuid)-1:] + "</name><uuid>" + uuid +
			"</uuid><memory>8192</memory><os><type>hvm</type></os>" + of + "</domain>"
	}
	path := filepath.Join(t.TempDir(), "node.xml")
	if err := os.WriteFile(path, []byte(xml+"</node>"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := New(Config{URI: "test://" + path, Log: hclog.NewNullLogger()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	ready, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := h.Ready(ready); err != nil {
		t.Fatal(err)
	}
	return h
}

func look(t *testing.T, h *Hypervisor, uuid string) Sighting {
	t.Helper()
	s, err := h.Look(t.Context(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLooksAtARealLibvirt(t *testing.T) {
	h := testDriver(t)
	for uuid, want := range map[string]agentv1.SideState{
		vmRunning: agentv1.SideState_SIDE_STATE_RUNNING, vmPaused: agentv1.SideState_SIDE_STATE_PAUSED,
		vmOff: agentv1.SideState_SIDE_STATE_SHUTOFF, vmNone: agentv1.SideState_SIDE_STATE_ABSENT,
		vmTransient: agentv1.SideState_SIDE_STATE_PAUSED,
	} {
		s := look(t, h, uuid)
		if s.State != want || s.Handed {
			t.Errorf("%s: %+v, want %s", uuid, s, want)
		}
		if s.Persistent != (uuid != vmTransient && uuid != vmNone) {
			t.Errorf("%s: persistent %v", uuid, s.Persistent)
		}
	}
	list, err := h.Domains(t.Context())
	if err != nil || len(list) != 4 {
		t.Fatalf("%v, %v", list, err)
	}
	if d, err := h.Domain(t.Context(), vmPaused); err != nil || d.GetState() != debvisorv1.VMState_VM_STATE_PAUSED || d.GetMemoryBytes() != 8<<20 {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := h.Domain(t.Context(), vmNone); err != nil || d != nil {
		t.Errorf("%v, %v out of nothing", d, err)
	}
	if caps, err := h.Capabilities(t.Context()); err != nil || caps.GetLibvirtVersion() == "" {
		t.Errorf("%v, %v", caps, err)
	}
}

func TestARunningGuestIsNeverDiscarded(t *testing.T) {
	h := testDriver(t)
	ctx := t.Context()
	if err := h.Discard(ctx, vmRunning); err == nil {
		t.Error("it was")
	}
	if got := look(t, h, vmRunning); got.State != agentv1.SideState_SIDE_STATE_RUNNING || !got.Persistent {
		t.Errorf("it is %+v", got)
	}
	// The driver does not know the flags that QEMU's has to undefine with.
	for _, uuid := range []string{vmTransient, vmNone} {
		if err := h.Discard(ctx, uuid); err != nil {
			t.Error(err)
		}
		if got := look(t, h, uuid).State; got != agentv1.SideState_SIDE_STATE_ABSENT {
			t.Errorf("%s is %s", uuid, got)
		}
	}
}

func TestResumeUndefineAutostart(t *testing.T) {
	h := testDriver(t)
	ctx := t.Context()
	for range 2 { // that it runs already is no error
		if err := h.Resume(ctx, vmPaused); err != nil {
			t.Fatal(err)
		}
	}
	if got := look(t, h, vmPaused).State; got != agentv1.SideState_SIDE_STATE_RUNNING {
		t.Errorf("resumed, it is %s", got)
	}
	if err := h.Undefine(ctx, vmRunning); err != nil || !look(t, h, vmRunning).Persistent {
		t.Errorf("an active VM lost its definition (%v)", err)
	}
	if err := h.Undefine(ctx, vmNone); err != nil {
		t.Errorf("undefining nothing: %v", err)
	}
	if err := h.DisableAutostart(ctx, vmRunning); err != nil {
		t.Error(err)
	}
	if d, err := h.Domain(ctx, vmRunning); err != nil || d.GetAutostart() {
		t.Errorf("autostart %v, %v", d.GetAutostart(), err)
	}
}

func TestWithoutLibvirtNothingWaits(t *testing.T) {
	h := New(Config{URI: "qemu+unix:///system?socket=" + filepath.Join(t.TempDir(), "none"), Log: hclog.NewNullLogger()})
	if _, err := h.Look(t.Context(), vmNone); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("looked: %v", err)
	}
	if err := h.Healthy(); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("healthy: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Migrate(ctx, vmNone, Move{}); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("migrated: %v", err)
	}
}

// TestALibvirtdThatHangsHoldsNobodyUp has a socket that takes connections and
// never answers, as a stopped libvirtd's does.
func TestALibvirtdThatHangsHoldsNobodyUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lv.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := New(Config{URI: "qemu+unix:///system?socket=" + path, CallTimeout: 100 * time.Millisecond, Log: hclog.NewNullLogger()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	for begun := time.Now(); !strings.Contains(reasonOf(h.Healthy()), "takes connections but does not answer"); <-time.After(10 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("it says %v", h.Healthy())
		}
	}
	begun := time.Now()
	if _, err := h.Look(ctx, vmNone); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("looked: %v", err)
	}
	if err := h.Resume(ctx, vmNone); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("resumed: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("all that took %s", took)
	}
	_ = l.Close()
}

// reasonOf is an error's text with what caused it.
func reasonOf(err error) string {
	text := ""
	for ; err != nil; err = errors.Unwrap(err) {
		text += err.Error() + "\n"
	}
	return text
}

// A call that waited for its turn while the connection ended must not reach
// libvirt, which has freed it: that would be the end of the agent.
func TestACallThatComesTooLateDoesNotTouchTheConnection(t *testing.T) {
	if err := loop(); err != nil {
		t.Fatal(err)
	}
	l, err := open("test:///default", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	h := New(Config{URI: "test:///default", Log: hclog.NewNullLogger()})
	h.setUp(l)
	var taken []*libvirt.Connect
	for range maxCalls {
		taken = append(taken, <-l.free)
	}
	reached := false
	done := make(chan error, 1)
	go func() {
		_, err := call(t.Context(), h, "asking", func(*libvirt.Connect) (struct{}, error) {
			reached = true
			return struct{}{}, nil
		})
		done <- err
	}()
	l.retire()
	l.free <- taken[0]
	if err := <-done; !errdefs.Is(err, errdefs.Unavailable) || reached {
		t.Errorf("libvirt was reached: %v, error %v", reached, err)
	}
}
