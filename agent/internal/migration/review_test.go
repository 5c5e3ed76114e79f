package migration

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// journal is a task's run whose journal is a list.
type journal struct {
	marks []string
	// cancel is closed when the leader asks for an end.
	cancel chan struct{}
}

func (j *journal) Progress(*agentv1.TaskProgress)    {}
func (j *journal) ProgressNow(*agentv1.TaskProgress) {}
func (j *journal) Marked(name string) bool           { return slices.Contains(j.marks, name) }
func (j *journal) Overtaken() (uint64, bool)         { return 0, false }
func (j *journal) Resumed() bool                     { return true }
func (j *journal) Cancelled() <-chan struct{}        { return j.cancel }
func (j *journal) Relayed() <-chan *agentv1.Side     { return nil }

func (j *journal) Mark(_ context.Context, name string) error {
	j.marks = append(j.marks, name)
	return nil
}

// half is a task of a VM of the bench, with a journal.
func (b *bench) half(uuid string, j *journal) *half {
	return &half{
		m: b.m, log: b.m.cfg.Log, run: j, right: right(uuid, "a", "b"), bell: make(chan struct{}, 1), other: &agentv1.Side{},
		cell: &sideCell{side: &agentv1.Side{}, changed: make(chan struct{})}, tunnel: b.m.cfg.Tunnels.Find("right"),
	}
}

// TestNoDisksAreNone: a right without disks lets in no definition with some.
func TestNoDisksAreNone(t *testing.T) {
	written, err := json.Marshal(tunnel.Config{DiskPaths: diskset(nil).paths()})
	if err != nil {
		t.Fatal(err)
	}
	var read tunnel.Config
	if err := json.Unmarshal(written, &read); err != nil || read.DiskPaths == nil {
		t.Errorf("the tunnel's end reads %#v, %v: it does not look at disks", read.DiskPaths, err)
	}
}

// TestADeadlinePausesInTheEnd: that the agent died, or that libvirt refused, between
// the mark and the pause does not have the guest run for ever.
func TestADeadlinePausesInTheEnd(t *testing.T) {
	b := newBench(t)
	j := &journal{marks: []string{markPaused}}
	s := &sender{half: b.half(vmRunning, j), spec: &agentv1.MigrateSend{DeadlineMs: 1000, PauseAtDeadline: true}}
	s.recall()
	s.treat(t.Context(), &hypervisor.Job{Elapsed: 2 * time.Second}, 0, hypervisor.Sighting{State: outgoing})
	if seen, err := b.hv.Look(t.Context(), vmRunning); err != nil || seen.State != paused {
		t.Errorf("the guest is %s, %v", seen.State, err)
	}
	// Somebody lets it run again: it is his decision.
	if err := b.hv.Resume(t.Context(), vmRunning); err != nil {
		t.Fatal(err)
	}
	s.treat(t.Context(), &hypervisor.Job{Elapsed: 3 * time.Second}, 0, hypervisor.Sighting{State: outgoing})
	if seen, err := b.hv.Look(t.Context(), vmRunning); err != nil || seen.State != running {
		t.Errorf("the guest is %s, %v", seen.State, err)
	}
}

// TestWhyItStayed: a migration that was given up tells so, though the leader asks for
// an end a moment later, as it does once the target's side has ended of it.
func TestWhyItStayed(t *testing.T) {
	b := newBench(t)
	asked := make(chan struct{})
	close(asked)
	aborted := errdefs.New(errdefs.Cancelled, "ABORTED", "operation aborted")
	for _, c := range []struct {
		name   string
		marks  []string
		cancel chan struct{}
		want   string
	}{
		{"given up", []string{markEnding + codeDeadline}, nil, codeDeadline},
		{"given up, then cancelled", []string{markEnding + codeDeadline}, asked, codeDeadline},
		{"stalled, then cancelled", []string{markEnding + codeStalled}, asked, codeStalled},
		{"cancelled", nil, asked, worker.CodeCancelled},
	} {
		j := &journal{marks: c.marks, cancel: c.cancel}
		s := &sender{half: b.half(vmRunning, j), spec: &agentv1.MigrateSend{DeadlineMs: 2000, StallMs: 1000}, callErr: aborted}
		s.recall()
		if got := s.why().GetErrorCode(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestADeviceByAnotherName: a device of another VM is not written to, whatever it is
// called here.
func TestADeviceByAnotherName(t *testing.T) {
	dir := t.TempDir()
	device, alias, other := filepath.Join(dir, "dm-7"), filepath.Join(dir, "vg-lv"), filepath.Join(dir, "dm-8")
	for number, path := range map[int]string{200: device, 201: other} {
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(number)))); err != nil {
			t.Skipf("no block devices can be made here: %v", err)
		}
	}
	if err := os.Symlink(device, alias); err != nil {
		t.Fatal(err)
	}
	disks := diskset{{Target: "vda", Type: typeBlock, Path: alias}}
	for path, want := range map[string]bool{device: true, alias: true, other: false, filepath.Join(dir, "none"): false} {
		if got := disks.on(path) != nil; got != want {
			t.Errorf("%s: on it %v", path, got)
		}
	}
}

// TestWhatTheSourceMayHaveLetGo: files are not removed once the source may have heard
// that the VM was here, whatever this agent's next process finds.
func TestWhatTheSourceMayHaveLetGo(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name   string
		before func(r *receiver)
		whole  bool
	}{
		{"nothing came", func(*receiver) {}, false},
		{"the definition was here", func(r *receiver) { _ = r.run.Mark(t.Context(), markDefined) }, true},
		{"it was let run", func(r *receiver) {
			socket := r.tunnel.CopySocket() // in the tunnel's directory
			if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
				t.Fatal(err)
			}
			r.noteRan(time.Second)
		}, true},
	} {
		r := &receiver{half: b.half(vmNone, &journal{})}
		c.before(r)
		if got := r.whole(); got != c.whole {
			t.Errorf("%s: whole %v", c.name, got)
		}
	}
}

// TestADefinitionIsNoted: before the source hears of it, the journal knows.
func TestADefinitionIsNoted(t *testing.T) {
	b, j := newBench(t), &journal{marks: []string{markPrepared}}
	r := &receiver{half: b.half(vmOff, j)}
	r.offline, r.observe, r.other = true, true, ended(absent)
	if out := r.do(t.Context()); out.GetErrorCode() != "" || r.cell.get().GetState() != shutoff || !j.Marked(markDefined) {
		t.Errorf("outcome %v, told %v, in the journal %v", out, r.cell.get(), j.marks)
	}
}

// TestADeviceIsNotCopiedOntoItself, nor another one taken for the VM's.
func TestADeviceIsNotCopiedOntoItself(t *testing.T) {
	for name, c := range map[string]struct {
		action      agentv1.DiskAction
		here, there uint64
		want        string
	}{
		"copied onto itself":      {copyLive, 7, 7, codeDiskShared},
		"copied":                  {copyLive, 7, 8, ""},
		"copied, nobody can tell": {copyLive, 0, 0, ""},
		"compared with itself":    {copyOffline, 7, 7, ""}, // which writes nothing
		"shared":                  {shared, 7, 7, ""},
		"shared, another":         {shared, 7, 8, codeDiskOther},
		"shared, unknown here":    {shared, 0, 8, ""},
		"shared, unknown there":   {shared, 7, 0, ""},
	} {
		d := &agentv1.DiskTransfer{Target: "vda", Type: typeBlock, Path: "/dev/x/vda", Action: c.action, Inode: c.there}
		if got := codeOf(checkIdentity(d, c.here)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestPlacesOfOverlays: what a shared image is over belongs to the right, and what a
// copied one says of itself does not.
func TestPlacesOfOverlays(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	for _, args := range [][]string{{base, "1M"}, {"-b", base, "-F", "qcow2", top, "1M"}} {
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img (see .ci/deps): %v: %s", err, out)
		}
	}
	for action, want := range map[agentv1.DiskAction][]string{shared: {top, base}, copyLive: {top}} {
		r := &receiver{half: &half{disks: diskset{{Target: "vda", Type: typeFile, Path: top, Format: formatQCOW2, Action: action}}}}
		if got, err := r.places(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", action, got, err)
		}
	}
}

// TestARefusalIsTheReason: what the target's tunnel did not let in looks to the source
// like a broken connection, which it is not; strangers who knock are no reason.
func TestARefusalIsTheReason(t *testing.T) {
	b := newBench(t)
	for procedure, want := range map[uint32]string{0: codeNotArrived, 303: codeRefused} {
		r := &receiver{half: b.half(vmNone, &journal{})}
		dir := filepath.Dir(r.tunnel.CopySocket())
		line, err := json.Marshal(tunnel.Refusal{Procedure: procedure, Reason: "a disk at \"/etc/shadow\""})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "refused"), append(line, '\n'), 0o600)); err != nil {
			t.Fatal(err)
		}
		if out := r.notArrived(); out.GetErrorCode() != want || out.GetInterrupted() || (procedure != 0) != strings.Contains(out.GetErrorMessage(), "/etc/shadow") {
			t.Errorf("procedure %d: %v", procedure, out)
		}
	}
}
