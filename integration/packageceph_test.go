package integration

import (
	"errors"
	"strings"
	"time"
)

// images has the installed agents, which are under their unit and have no other libraries than their package asks for, make a clone of
// an image in Ceph.
func (h *hosts) images() {
	rbd := func(args ...string) string {
		out, err := h.Ceph.Admin(h.within(time.Minute), "rbd", args...)
		h.must(err)
		return strings.TrimSpace(out)
	}
	do := func(args ...string) string {
		out, err := h.hvctl(args...)
		if err != nil {
			h.t.Fatalf("hvctl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	rbd("create", "--size", "16M", "rbd/debian")
	rbd("bench", "--io-type", "write", "--io-size", "64K", "--io-total", "4M", "--io-pattern", "rand", "rbd/debian")
	h.eventually(time.Minute, "the image is known", func() error {
		out, err := h.hvctl("clone", "list", "--pool", "rbd")
		if err == nil && !strings.Contains(out, "debian") {
			err = errors.New(out)
		}
		return err
	})
	do("template", "create", "rbd:rbd/debian")
	listed := lines(do("template", "list", "rbd:rbd/debian"))
	template := strings.Fields(listed[len(listed)-1])[0]
	do("clone", "create", template, "rbd:rbd/web")
	do("clone", "flatten", "rbd:rbd/web")
	do("snapshot", "create", "rbd:rbd/web")
	do("template", "delete", template)
	if of, snapshots := rbd("children", "--all", "rbd/debian"), lines(rbd("snap", "ls", "rbd/web")); of != "" || len(snapshots) != 2 { // one, with a heading
		h.t.Errorf("of the image there is %q, of its clone %q", of, snapshots)
	}
	if a, b := rbd("export", "--no-progress", "rbd/debian", "-"), rbd("export", "--no-progress", "rbd/web", "-"); a != b || strings.Trim(a, "\x00") == "" {
		h.t.Error("the clone is not what the image is")
	}
}
