//go:build ceph_preview

package rbd

import (
	"strings"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// everything that rbd has in the room: images, and what is in the trash.
func (r *room) everything() string {
	var lines []string
	for _, pool := range r.cluster.Pools() {
		for _, args := range [][]string{{"ls"}, {"trash", "ls"}} {
			for line := range strings.Lines(r.admin("rbd", append(args, "--pool", pool, "--namespace", r.space)...)) {
				lines = append(lines, pool+" "+strings.Join(args, " ")+": "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestACloneIsAnotherPoolsImageOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	golden := r.disk("golden")
	template := r.snapshot(golden, "v1", "op-template")
	c, depth, err := r.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1", MaxDepth: 2})
	if err != nil || depth != 1 || c.GetId() == "" || c.GetPool() != "fast" || c.GetName() != "web" {
		t.Fatalf("clone %v, depth %d: %v", c, depth, err)
	}
	again, depth, err := r.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1", MaxDepth: 2})
	if err != nil || depth != 1 || again.GetId() != c.GetId() {
		t.Errorf("again: %v, depth %d: %v", again, depth, err)
	}
	image, snapshots, err := r.Image(t.Context(), c, false)
	if err != nil || image.GetOperation() != "op-1" || len(snapshots) != 0 || image.GetDepth() != 1 || image.GetParent().GetId() != template.GetId() ||
		image.GetParent().GetImage().GetNamespace() != r.space || image.GetParentInTrash() {
		t.Errorf("image %v, snapshots %v: %v", image, snapshots, err)
	}
	if info := r.admin("rbd", "image-meta", "ls", Shown(c)); strings.Contains(info, "org.debvisor.snap") {
		t.Errorf("the template's marks are the clone's: %s", info)
	}
	parent, snapshots, err := r.Image(t.Context(), golden, false)
	if err != nil || len(parent.GetChildren()) != 1 || len(snapshots) != 1 || len(snapshots[0].GetChildren()) != 1 || snapshots[0].GetChildren()[0].GetName() != "web" {
		t.Errorf("the template says %v, %v: %v", parent, snapshots, err)
	}

	_, _, err = r.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-2"})
	refused(t, err, CodeImageExists)
	second := r.snapshot(c, "v2", "op-template-2")
	deeper, depth, err := r.Clone(t.Context(), CloneSpec{Template: second, Image: r.id("vms", "deeper"), Operation: "op-3", MaxDepth: 2})
	if err != nil || depth != 2 {
		t.Fatalf("depth %d: %v", depth, err)
	}
	if image, _, err := r.Image(t.Context(), deeper, false); err != nil || image.GetOperation() != "op-3" || image.GetDepth() != 2 {
		t.Errorf("image %v: %v", image, err)
	}
	third := r.snapshot(deeper, "v3", "op-template-3")
	_, _, err = r.Clone(t.Context(), CloneSpec{Template: third, Image: r.id("vms", "deepest"), Operation: "op-4", MaxDepth: 2})
	refused(t, err, CodeCloneTooDeep)
	_, _, err = r.Clone(t.Context(), CloneSpec{Template: &agentv1.RbdSnapshotID{Image: golden, Name: "v1", Id: 1 << 40}, Image: r.id("vms", "x"), Operation: "op-5"})
	refused(t, err, CodeSnapshotReplaced)
	_, _, err = r.Clone(t.Context(), CloneSpec{Template: &agentv1.RbdSnapshotID{Image: golden, Name: "v0"}, Image: r.id("vms", "x"), Operation: "op-6"})
	refused(t, err, CodeSnapshotNotFound)
	if all := r.everything(); strings.Contains(all, ".dv-") || strings.Contains(all, "trash ls:") {
		t.Errorf("something is left:\n%s", all)
	}

	// A clone by hand has our marks copied, and looks like none of ours.
	r.admin("rbd", "clone", "--rbd-default-clone-format", "2", Shown(c)+"@v2", Shown(r.id("vms", "byhand")))
	if image, snapshots, err := r.Image(t.Context(), r.id("vms", "byhand"), false); err != nil || image.GetOperation() != "" || len(snapshots) != 0 {
		t.Errorf("a foreign clone: %v, %v: %v", image, snapshots, err)
	}
	_, err = r.RemoveImage(t.Context(), r.id("vms", "byhand"), "op-1")
	refused(t, err, CodeForeignImage)
}

func TestADeadChildLeavesOneClone(t *testing.T) {
	t.Parallel()
	for _, point := range []string{pointCloneGrown, pointCloneCleaned, pointCloneMarked, pointCloneNamed, pointCloneRenamed} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			template := r.snapshot(r.disk("golden"), "v1", "op-template")
			c := r.client(point)
			spec := CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1"}
			_, _, err := c.Clone(t.Context(), spec)
			refused(t, err, CodeUnknown)
			if _, _, err := c.Clone(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
			if all := r.everything(); all != "vms ls: golden\nfast ls: web" {
				t.Errorf("there is\n%s", all)
			}
		})
	}
}

// A rename that died between two of Ceph's own steps is completed.
func TestAHalfRenamedCloneIsRenamed(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(r *room, id string){
		"the new name opens it already": func(r *room, id string) {
			r.radosInput(encoded(id), "put", idObject+"web")
		},
		"the directory is changed": func(r *room, id string) {
			r.radosInput(encoded(id), "put", idObject+"web")
			r.radosInput(encoded(id), "setomapval", directoryObject, "name_web")
			r.rados("rmomapkey", directoryObject, "name_.dv-op-1")
			r.radosInput(encoded("web"), "setomapval", directoryObject, "id_"+id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			template := r.snapshot(r.disk("golden"), "v1", "op-template")
			c := r.client(pointCloneMarked)
			spec := CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-1"}
			_, _, err := c.Clone(t.Context(), spec)
			refused(t, err, CodeUnknown)
			id := strings.TrimSpace(r.admin("rbd", "info", "--format", "json", Shown(Growing(spec.Image, "op-1"))))
			_, id, _ = strings.Cut(id, `"id":"`)
			id, _, _ = strings.Cut(id, `"`)
			cut(r, id)
			made, _, err := c.Clone(t.Context(), spec)
			if err != nil || made.GetId() != id {
				t.Fatalf("clone %v, not %s: %v", made, id, err)
			}
			if all := r.everything(); all != "vms ls: golden\nfast ls: web" {
				t.Errorf("there is\n%s", all)
			}
			if objects := r.rados("ls"); strings.Contains(objects, ".dv-") {
				t.Errorf("objects are left: %s", objects)
			}
		})
	}
}

func (r *room) rados(args ...string) string {
	r.t.Helper()
	return r.admin("rados", append([]string{"--pool", "fast", "--namespace", r.space}, args...)...)
}

func (r *room) radosInput(input string, args ...string) {
	r.t.Helper()
	path := r.t.TempDir() + "/value"
	writeFile(r.t, path, input)
	if args[0] == "put" {
		r.rados(append(args, path)...)
		return
	}
	r.rados(append(args, "--input-file", path)...)
}

// encoded is a string as Ceph keeps it.
func encoded(s string) string { return string([]byte{byte(len(s)), 0, 0, 0}) + s }

// Killed at any moment, whichever steps Ceph has then done, the clone comes to be
// once, and its removal leaves nothing.
func TestKilledAtAnyMomentThereIsOneClone(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	template := r.snapshot(r.disk("golden"), "v1", "op-template")
	interrupted := func(most time.Duration, attempt int, f func() error) {
		t.Helper()
		for try := 0; ; try++ {
			kill := time.AfterFunc(most*time.Duration(attempt)/16, func() {
				if try < 2 { // once in the middle, once in the middle of its repair
					r.general.kill(errLost)
				}
			})
			err := f()
			kill.Stop()
			if err == nil {
				return
			}
			if !silent(err) {
				t.Fatalf("attempt %d: %v; objects %s\ndirectory %s\ntrash %s", attempt, err, r.rados("ls"), r.rados("listomapvals", directoryObject), r.rados("listomapvals", "rbd_trash"))
			}
			r.soon("one that died before it was connected counts as an outage", func() (bool, error) {
				_, err := r.Inventory(t.Context())
				return err == nil, err
			})
		}
	}
	if _, err := r.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, _, err := r.Clone(t.Context(), CloneSpec{Template: template, Image: r.id("fast", "first"), Operation: "op-first"}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	for attempt := range 16 {
		spec := CloneSpec{Template: template, Image: r.id("fast", "web"), Operation: "op-clone"}
		var made *agentv1.RbdImageID
		interrupted(took, attempt, func() (err error) {
			made, _, err = r.Clone(t.Context(), spec)
			return err
		})
		if all := r.everything(); all != "vms ls: golden\nfast ls: first\nfast ls: web" {
			t.Fatalf("attempt %d: there is\n%s\nobjects %s\ndirectory %s", attempt, all, r.rados("ls"), r.rados("listomapvals", directoryObject))
		}
		interrupted(took, attempt, func() error {
			gone, err := r.RemoveImage(t.Context(), made, "op-clone")
			if err == nil && !gone {
				t.Error("it is not gone")
			}
			return err
		})
		if all := r.everything(); all != "vms ls: golden\nfast ls: first" {
			t.Fatalf("attempt %d: there is\n%s", attempt, all)
		}
	}
	if _, snapshots, err := r.Image(t.Context(), template.GetImage(), false); err != nil || len(snapshots[0].GetChildren()) != 1 {
		t.Errorf("the template has %v: %v", snapshots, err)
	}
}
