//go:build ceph_preview

package rbd

import (
	"context"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// writer is a stranger's process that writes to an image until it is told not to.
func (r *room) writer(id *agentv1.RbdImageID) (ended <-chan string) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "rbd", "-c", r.cluster.Conf(), "--id", ceph.Libvirt, "bench", "--io-type", "write", "--io-size", "4K",
		"--io-total", "1G", "--io-threads", "1", Shown(id))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := make(chan string, 1)
	go func() {
		text, err := cmd.CombinedOutput()
		out <- string(text) + " " + errText(err)
	}()
	r.t.Cleanup(cancel)
	return out
}

// locked waits until somebody has an image's lock.
func (r *room) locked(id *agentv1.RbdImageID) {
	r.t.Helper()
	r.soon("nobody writes", func() (bool, error) {
		image, _, err := r.Image(r.t.Context(), id, true)
		if err != nil {
			r.t.Fatal(err)
		}
		return len(image.GetLockers()) == 1 && len(image.GetWatchers()) == 1, nil
	})
}

// soon asks again and again whether it is so, and ends the test after a minute.
func (r *room) soon(why string, is func() (bool, error)) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); ; {
		so, err := is()
		if so {
			return
		}
		select {
		case <-late:
			r.t.Fatalf("%s: %v", why, err)
		case <-tick.C:
		}
	}
}

func errText(err error) string {
	if err == nil {
		return "success"
	}
	return err.Error()
}

func TestAFenceKeepsWritersOut(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	quiet := r.disk("quiet")
	writer := r.writer(disk)
	r.locked(disk)
	fsid := r.admin("ceph", "fsid")
	_, err := r.Fence(t.Context(), []*agentv1.RbdImageID{disk}, "another", time.Minute)
	refused(t, err, CodeOtherCluster)
	shared := r.disk("shared", "--image-feature", "layering")
	_, err = r.Fence(t.Context(), []*agentv1.RbdImageID{shared}, fsid, time.Minute)
	refused(t, err, CodeNoExclusiveLock)

	evidence, err := r.Fence(t.Context(), []*agentv1.RbdImageID{disk, quiet}, fsid, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(evidence.GetBlocklisted()) != 1 || evidence.GetOsdEpoch() == 0 || len(evidence.GetImages()) != 2 || evidence.GetImages()[0].GetImage().GetId() == "" ||
		len(evidence.GetImages()[0].GetWatchers()) != 1 || len(evidence.GetImages()[0].GetLockers()) != 1 || len(evidence.GetImages()[1].GetWatchers()) != 0 {
		t.Errorf("evidence %v", evidence)
	}
	select {
	case said := <-writer:
		if strings.HasSuffix(said, "success") {
			t.Errorf("the writer ended well: %s", said)
		}
	case <-time.After(30 * time.Second):
		t.Error("the writer still writes")
	}
	listed, err := r.Blocklist(t.Context())
	if err != nil || !slices.Contains(listed, evidence.GetBlocklisted()[0]) {
		t.Errorf("blocklist %v: %v", listed, err)
	}
	for range 2 {
		if err := r.Unfence(t.Context(), fsid, evidence.GetBlocklisted()); err != nil {
			t.Error(err)
		}
	}
	if listed, err := r.Blocklist(t.Context()); err != nil || slices.Contains(listed, evidence.GetBlocklisted()[0]) {
		t.Errorf("blocklist %v: %v", listed, err)
	}
	again, err := r.Fence(t.Context(), []*agentv1.RbdImageID{quiet}, fsid, time.Minute)
	if err != nil || len(again.GetBlocklisted()) != 0 {
		t.Errorf("evidence %v: %v", again, err)
	}
}

// TestAFenceLasts: an entry that is there already, such as librbd's of a broken lock,
// would end while the fence is still relied on.
func TestAFenceLasts(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	writer := r.writer(disk)
	r.locked(disk)
	image, _, err := r.Image(t.Context(), disk, true)
	if err != nil {
		t.Fatal(err)
	}
	owner := image.GetLockers()[0].GetAddress()
	r.admin("ceph", "osd", "blocklist", "add", owner, "300")
	<-writer
	evidence, err := r.Fence(t.Context(), []*agentv1.RbdImageID{disk}, r.admin("ceph", "fsid"), time.Hour)
	if err != nil || !slices.Contains(evidence.GetBlocklisted(), owner) {
		t.Fatalf("%v: %v", evidence, err)
	}
	var dump struct{ Blocklist map[string]string }
	if err := json.NewDecoder(strings.NewReader(r.admin("ceph", "osd", "dump", "--format", "json"))).Decode(&dump); err != nil {
		t.Fatal(err)
	}
	if until, err := time.Parse(untilLayout, dump.Blocklist[owner]); err != nil || time.Until(until) < 50*time.Minute {
		t.Errorf("it ends at %v: %v", until, err)
	}
}

func TestFlattenMakesACloneOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	golden := r.disk("golden")
	r.admin("rbd", "bench", "--io-type", "write", "--io-size", "1M", "--io-total", "16M", Shown(golden))
	clone, _, err := r.Clone(t.Context(), CloneSpec{Template: r.snapshot(golden, "v1", "op-0"), Image: r.id("fast", "web"), Operation: "op-1"})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, r.Flatten(t.Context(), clone, "op-2", func(_, _ uint64) {}), CodeForeignImage)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Flatten(gone, clone, "op-1", func(_, _ uint64) {}); !silent(err) {
		t.Errorf("flattened for nobody: %v", err)
	}
	var last, all uint64
	for range 2 {
		if err := r.Flatten(t.Context(), clone, "op-1", func(done, total uint64) { last, all = max(last, done), max(all, total) }); err != nil {
			t.Fatal(err)
		}
	}
	if last == 0 || last != all {
		t.Errorf("progress ended at %d of %d", last, all)
	}
	if image, _, err := r.Image(t.Context(), clone, false); err != nil || image.GetDepth() != 0 || image.GetParent() != nil || image.GetOperation() != "op-1" {
		t.Errorf("image %v: %v", image, err)
	}
}
