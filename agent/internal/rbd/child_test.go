//go:build ceph_preview

package rbd

import (
	"bytes"
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// A child outlives its agent in no case: the agent's end closes its input.
func TestTheChildEndsWithItsAgent(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	command := append(childCommand(t, ""), "--conf", r.cluster.Conf(), "--user", ceph.Agent, "--lane", "general")
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if first, err := readFrame(out); err != nil || first.verb != verbHello {
		t.Errorf("first words %v: %v", first, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Who asks as somebody that Ceph does not know hears so, and not that it is dead.
func TestAWrongKeyIsSaidSo(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	c := New(Config{Conf: r.cluster.Conf(), User: "nobody", Command: childCommand(t, "")})
	defer func() { _ = c.Close() }()
	_, err := c.Inventory(t.Context())
	if err == nil || silent(err) {
		t.Errorf("nobody is told %v", err)
	}
}

func TestACallerGoesWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := r.Image(ctx, disk, false)
	refused(t, err, CodeDown)
	if _, _, err := r.Image(t.Context(), disk, false); err != nil {
		t.Errorf("the next one is told %v", err)
	}
}

func TestAFenceGoesOnWhereItsChildDied(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	disk := r.disk("disk")
	writer := r.writer(disk)
	r.locked(disk)
	c := r.client(pointFenced)
	fsid := r.admin("ceph", "fsid")
	_, err := c.Fence(t.Context(), []*agentv1.RbdImageID{disk}, fsid, time.Minute)
	refused(t, err, CodeUnknown)
	evidence, err := c.Fence(t.Context(), []*agentv1.RbdImageID{disk}, fsid, time.Minute)
	if err != nil || len(evidence.GetBlocklisted()) != 1 || len(evidence.GetImages()[0].GetLockers()) != 1 {
		t.Errorf("evidence %v: %v", evidence, err)
	}
	<-writer
}

func TestFramesAreBounded(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"too short": "\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"too long":  "\x7f\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"cut off":   "\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		if f, err := readFrame(bytes.NewReader([]byte(text))); err == nil {
			t.Errorf("%s: %v", name, f)
		}
	}
	if err := writeFrame(&bytes.Buffer{}, frame{payload: make([]byte, maxFrame)}); err == nil {
		t.Error("a frame that nobody reads was written")
	}
}
