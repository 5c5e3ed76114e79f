package image

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func (s *site) fenceTask(op string, attempt int, images ...*agentv1.RbdImageID) *agentv1.Task {
	return task(op, attempt, "rbd-fence", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdFence{RbdFence: &agentv1.RbdFence{Images: images, Fsid: s.cluster.FSID, ExpireSeconds: 3600}}})
}

func (s *site) unfenceTask(op string, attempt int, entries ...string) *agentv1.Task {
	return task(op, attempt, "rbd-unfence", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_RbdUnfence{RbdUnfence: &agentv1.RbdUnfence{Fsid: s.cluster.FSID, Entries: entries}}})
}

// writer writes to an image until it cannot any more, as libvirt's user.
type writer struct {
	cmd  *exec.Cmd
	out  *strings.Builder
	done chan struct{}
	err  error // once done
}

func (s *site) writer(spec string) *writer {
	s.t.Helper()
	w := &writer{out: &strings.Builder{}, done: make(chan struct{})}
	w.cmd = exec.Command("rbd", "-c", s.cluster.Conf(), "--id", ceph.Libvirt, "bench", "--io-type", "write", "--io-size", "4096", "--io-threads", "1", "--io-total", "1T", spec)
	w.cmd.Stdout, w.cmd.Stderr = w.out, w.out
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.done)
	}()
	s.t.Cleanup(func() { _ = w.cmd.Process.Kill(); <-w.done })
	s.eventually("the writer holds the lock", func() bool { return strings.Contains(s.rbd("lock", "ls", spec), "auto") })
	return w
}

// eventually waits until something is so.
func (s *site) eventually(what string, so func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		if time.Now().After(deadline) {
			s.t.Fatalf("it does not come to pass that %s", what)
		}
		<-tick.C
	}
}

func (s *site) blocklist() string {
	s.t.Helper()
	out, err := s.cluster.Admin(s.t.Context(), "ceph", "osd", "blocklist", "ls")
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TestFence: a writer that stands still while it is fenced cannot write when it goes
// on, and its entry is known to whoever takes it off again, also when the agent
// died on the way.
func TestFence(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i, point := range []string{"", pointFenceFound, pointFenced} {
		disk := fmt.Sprintf("rbd/disk%d", i)
		image, w := s.image(disk), s.writer(disk)
		if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		op := operation()
		out := s.do(s.fenceTask(op, 1, image), dieAt(point))
		evidence := out.GetRbd().GetEvidence()
		if out.GetErrorCode() != "" || evidence.GetFsid() != s.cluster.FSID || len(evidence.GetBlocklisted()) == 0 || evidence.GetOsdEpoch() == 0 ||
			len(evidence.GetImages()) != 1 || len(evidence.GetImages()[0].GetWatchers()) == 0 {
			t.Fatalf("%q: %v", point, out)
		}
		listed := s.blocklist()
		for _, entry := range evidence.GetBlocklisted() {
			if !strings.Contains(listed, entry) {
				t.Errorf("%q: %s is not on the blocklist: %s", point, entry, listed)
			}
		}
		if err := w.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.done:
			if w.err == nil {
				t.Errorf("%q: the writer ended well: %s", point, w.out)
			}
		case <-time.After(within):
			t.Errorf("%q: the writer does not fail: %s", point, w.out)
		}
		observed := s.unfenceTask(operation(), 1, evidence.GetBlocklisted()...)
		observed.ObserveOnly = true
		if out := s.do(observed); !out.GetInterrupted() {
			t.Errorf("entries that are there: %v", out)
		}
		die := map[string]string{pointFenceFound: pointUnfenceBefore, pointFenced: pointUnfenced}[point]
		for attempt := range 2 {
			// A node that returns does not take away what was fenced again since: the leader asks anew.
			edit, died := dieAt(""), attempt == 0 && die != ""
			if died {
				edit = dieAt(die)
			}
			out := s.do(s.unfenceTask("back-"+op, attempt+1, evidence.GetBlocklisted()...), edit)
			if out.GetInterrupted() != died || !died && out.GetErrorCode() != "" {
				t.Errorf("%q, attempt %d: %v", die, attempt+1, out)
			}
		}
		after := s.blocklist()
		if slices.ContainsFunc(evidence.GetBlocklisted(), func(entry string) bool { return strings.Contains(after, entry) }) {
			t.Errorf("%q: still there: %s", die, after)
		}
		observed = s.unfenceTask(operation(), 1, evidence.GetBlocklisted()...)
		observed.ObserveOnly = true
		if out := s.do(observed); out.GetErrorCode() != "" {
			t.Errorf("entries that are gone: %v", out)
		}
	}
}

// TestFencesThatCannotBe: nobody is blocklisted.
func TestFencesThatCannotBe(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.rbd("create", "--size", "16M", "--image-feature", "layering", "rbd/shared")
	image := s.image("rbd/disk")
	other := s.fenceTask(operation(), 1, image)
	other.GetSpec().GetRbdFence().Fsid = "00000000-0000-0000-0000-000000000001"
	observed := s.fenceTask(operation(), 1, image)
	observed.ObserveOnly = true
	for name, c := range map[string]struct {
		task *agentv1.Task
		edit func(*agentConfig)
		code string
	}{
		"no exclusive-lock": {s.fenceTask(operation(), 1, s.id("rbd/shared")), dieAt(""), "NO_EXCLUSIVE_LOCK"},
		"another cluster":   {other, dieAt(""), "OTHER_CEPH_CLUSTER"},
		"cancelled":         {s.fenceTask(operation(), 1, image), cancelAt("start"), "CANCELLED"},
		"cancelled later":   {s.fenceTask(operation(), 1, image), cancelAt(pointFenceFound), "CANCELLED"},
		"observed":          {observed, dieAt(""), CodeInterrupted},
		"another image":     {s.fenceTask(operation(), 1, &agentv1.RbdImageID{Pool: "rbd", Name: "disk", Id: "0123456789ab"}), dieAt(""), "IMAGE_REPLACED"},
	} {
		w := s.writer("rbd/disk")
		out := s.do(c.task, c.edit)
		if out.GetErrorCode() != c.code || strings.Contains(s.blocklist(), "listed 1") {
			t.Errorf("%s: %v; %s", name, out, s.blocklist())
		}
		select {
		case <-w.done:
			t.Errorf("%s: the writer has ended: %v: %s", name, w.err, w.out)
		default:
			_ = w.cmd.Process.Kill()
			<-w.done
		}
	}
}
