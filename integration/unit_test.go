package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// agentUnitFile is the unit that systemd runs the agents of machines by.
const agentUnitFile = "../systemd/debvisor-agent.service"

// TestAgentsAreConfined: the agents of the lab that all tests of ZFS use are held by what their unit says, and what they mount and
// unmount is the host's.
func TestAgentsAreConfined(t *testing.T) {
	c := pooled.use(t)
	for _, n := range c.Machines {
		c.confined(n)
	}
	r := c.replicated("confined")
	c.write(r.from, r.path, 1)
	r.run()
	t.Run("a copy that is mounted is set aside", func(t *testing.T) { r.in(t).setsAsideMounted() })
	t.Run("a snapshot that is mounted is deleted", func(t *testing.T) { r.in(t).deletesMounted() })
	t.Run("a clone in Ceph", func(t *testing.T) { r.in(t).clones() })
}

// confined asks the kernel what it keeps an agent from.
func (c *cluster) confined(n *lab.Node) {
	c.t.Helper()
	pid := n.Agent.Process.Pid
	status := map[string]string{}
	for _, line := range lines(c.onMachine(n, fmt.Sprintf("cat /proc/%d/status", pid))) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	want := map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": c.unitCapabilities(), "CapEff": c.unitCapabilities(), "CapAmb": fmt.Sprintf("%016x", 0)}
	for key, value := range want {
		if status[key] != value {
			c.t.Errorf("%s of the agent of %s is %s, want %s", key, n.Name, status[key], value)
		}
	}
	// Else what it mounts would be its own.
	if own, first := c.onMachine(n, fmt.Sprintf("readlink /proc/%d/ns/mnt", pid)), c.onMachine(n, "readlink /proc/1/ns/mnt"); own != first || own == "" {
		c.t.Errorf("the agent of %s sees mounts of its own: %s, the host %s", n.Name, own, first)
	}
	devices := lines(c.onMachine(n, fmt.Sprintf(`cat "/sys/fs/cgroup/devices$(sed -n 's/^[0-9]*:devices://p' /proc/%d/cgroup)/devices.list"`, pid)))
	zfs := "c " + c.onMachine(n, "stat -c '%Hr:%Lr' /dev/zfs") + " rw"
	for _, device := range []string{zfs, "b *:* rw"} {
		if !slices.Contains(devices, device) {
			c.t.Errorf("the agent of %s may not use %s: %q", n.Name, device, devices)
		}
	}
	for _, device := range devices {
		if strings.HasPrefix(device, "a ") || strings.HasPrefix(device, "c *") {
			c.t.Errorf("the agent of %s may use %s", n.Name, device)
		}
	}
}

// unitCapabilities is the unit's CapabilityBoundingSet=, as the kernel writes a set.
func (c *cluster) unitCapabilities() string {
	c.t.Helper()
	numbers := map[string]int{
		"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
		"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "CAP_FOWNER": unix.CAP_FOWNER,
	}
	raw, err := os.ReadFile(agentUnitFile)
	c.must(err)
	var set uint64
	for _, line := range lines(string(raw)) {
		names, is := strings.CutPrefix(line, "CapabilityBoundingSet=")
		if !is {
			continue
		}
		for _, name := range strings.Fields(names) {
			number, known := numbers[name]
			if !known {
				c.t.Fatalf("%s: %s is not known here", agentUnitFile, name)
			}
			set |= 1 << number
		}
	}
	if set == 0 {
		c.t.Fatalf("%s has no CapabilityBoundingSet=", agentUnitFile)
	}
	return fmt.Sprintf("%016x", set)
}

// onMachine runs a command line and gives what it prints.
func (c *cluster) onMachine(n *lab.Node, line string) string {
	c.t.Helper()
	out, err := n.Run(c.within(time.Minute), "bash", "-euo", "pipefail", "-c", line)
	c.must(err)
	return strings.TrimSpace(out)
}

// mounts says where a dataset or a snapshot is mounted on a host, as its process 1 sees it.
func (c *cluster) mounts(n *lab.Node, dataset string) (at []string) {
	c.t.Helper()
	for _, line := range lines(c.onMachine(n, "cat /proc/1/mounts")) {
		if f := strings.Fields(line); f[0] == dataset {
			at = append(at, f[1])
		}
	}
	return at
}

// setsAsideMounted changes the copy and leaves it mounted: the agent has it renamed, which unmounts and mounts it.
func (r *replica) setsAsideMounted() {
	c := r.c
	c.zfs(r.to, "set", "readonly=off", r.path)
	c.zfs(r.to, "mount", r.path)
	c.write(r.to, r.path, 1)
	c.zfs(r.to, "snapshot", r.path+"@changed")
	c.write(r.from, r.path, 1)
	ask, _ := c.follower()
	op := c.succeeded(2*time.Minute, ask, r.begin(ask.replica))
	aside := op.GetReplication().GetSetAside()
	if aside == "" {
		c.t.Fatalf("it was not set aside: %v", op)
	}
	if at := c.mounts(r.to, aside); !slices.Equal(at, []string{"/" + aside}) {
		c.t.Errorf("what was set aside is mounted at %v", at)
	}
	if at := c.mounts(r.to, r.path); len(at) > 0 {
		c.t.Errorf("the copy is mounted at %v", at)
	}
	r.discard(aside)
}

// deletesMounted has a snapshot deleted that somebody looks into, which mounts it.
func (r *replica) deletesMounted() {
	c := r.c
	ask := c.api(c.running()).storage
	made, err := ask.CreateSnapshot(c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: r.ref})
	c.must(err)
	name := made.GetSnapshot().GetSnapshotName()
	c.onMachine(r.from, "ls /"+r.path+"/.zfs/snapshot/"+name+"/")
	if at := c.mounts(r.from, r.path+"@"+name); len(at) != 1 {
		c.t.Fatalf("the snapshot is mounted at %v", at)
	}
	_, err = ask.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{made.GetSnapshot()}})
	c.must(err)
	if at := c.mounts(r.from, r.path+"@"+name); len(at) > 0 {
		c.t.Errorf("it is mounted at %v", at)
	}
	for _, s := range c.snapshots(r.from, r.path) {
		if strings.HasPrefix(s, name+" ") {
			c.t.Errorf("%s is there", s)
		}
	}
}

// clones makes a clone of an image, flattens and removes it, which a child of the agent does, confined as the agent is.
func (r *replica) clones() {
	c, n := r.c, r.from
	c.must(n.GiveCeph())
	c.t.Cleanup(func() {
		if err := n.TakeCeph(); err != nil {
			c.t.Error(err)
		}
	})
	c.rbd("create", "--size", "16M", "vms/seen")
	c.seesImages("seen")
	ask := c.api(c.running()).storage
	golden, copied := c.template("kept"), image("clones", "confined")
	want := c.checksum("vms/kept@" + golden.GetSnapshotName())
	_, err := ask.CloneRbdFromTemplate(c.within(time.Minute), &debvisorv1.RbdCloneRequest{TemplateSnapshot: golden, NewImage: copied})
	c.must(err)
	_, err = ask.FlattenImage(c.within(time.Minute), &debvisorv1.ImageRef{Image: copied})
	c.must(err)
	if got := c.checksum("clones/confined"); got != want {
		c.t.Errorf("the clone holds %s, the template %s", got, want)
	}
	made, err := ask.CreateSnapshot(c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: copied})
	c.must(err)
	if have := c.snapshotsOf("clones/confined"); len(have) != 1 || have[0].Name != made.GetSnapshot().GetSnapshotName() {
		c.t.Errorf("its snapshots are %v", have)
	}
	_, err = ask.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{made.GetSnapshot(), golden}})
	c.must(err)
	_, err = ask.DeleteImage(c.within(time.Minute), &debvisorv1.ImageRef{Image: copied})
	c.must(err)
	for _, name := range []string{"seen", "kept"} {
		c.rbd("rm", "--no-progress", "vms/"+name)
	}
}
