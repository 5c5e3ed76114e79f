package failover

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/power"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// host is a libvirtd of the tests' own, in namespaces that end with it: its QEMUs
// are real, and are in them.
var (
	libvirtURI string
	host       *hypervisor.Hypervisor
)

const (
	qemuConf = `stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
remember_owner = 0
namespaces = []
`
	// own is libvirtd with directories of its own, and whoever reaps what it leaves.
	own = `set -eu
for dir in /run/libvirt /etc/libvirt /var/lib/libvirt /var/log/libvirt; do
  mkdir -p "$dir" && mount -t tmpfs own "$dir"
done
cp "$0"/qemu.conf "$0"/libvirtd.conf /etc/libvirt/
mount -t proc proc /proc
/usr/sbin/libvirtd &
while sleep infinity & wait $!; do :; done`
)

func TestMain(m *testing.M) { os.Exit(withLibvirt(m.Run)) }

func withLibvirt(run func() int) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "debvisor-failover-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for name, text := range map[string]string{
		"qemu.conf":     qemuConf,
		"libvirtd.conf": fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return fail(err)
		}
	}
	var log bytes.Buffer
	daemon := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", own, dir)
	daemon.Stdout, daemon.Stderr = &log, &log
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return fail(err)
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	libvirtURI = "qemu+unix:///system?socket=" + filepath.Join(dir, "libvirt-sock")
	host = hypervisor.New(hypervisor.Config{URI: libvirtURI, CallTimeout: 20 * time.Second, Log: hclog.NewNullLogger()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "the connection to libvirt ended:", err)
		}
	}()
	// To find out what QEMU can do takes long where nobody has asked before.
	ready, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	if err := host.Ready(ready); err != nil {
		return fail(fmt.Errorf("%w; %s", err, log.String()))
	}
	return run()
}

// vm is a VM whose guest is a BIOS that finds nothing to boot.
type vm struct {
	t          *testing.T
	uuid, name string
}

func (v *vm) definition() string {
	return fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`, v.name, v.uuid)
}

// newVM makes a VM: absent, off, paused, running, or transient (and running).
func newVM(t *testing.T, state string) *vm {
	t.Helper()
	v := &vm{t: t, uuid: uuid.NewString()}
	v.name = "vm-" + v.uuid[:8]
	t.Cleanup(func() {
		_ = host.Destroy(context.Background(), v.uuid, false)
		_ = host.Undefine(context.Background(), v.uuid)
	})
	c, err := libvirt.NewConnect(libvirtURI)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = c.Close() }()
	var d *libvirt.Domain
	switch state {
	case "absent":
		return v
	case "transient":
		d, err = c.DomainCreateXML(v.definition(), 0)
	default:
		d, err = c.DomainDefineXML(v.definition())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Free() }()
	switch state {
	case "running":
		err = d.Create()
	case "paused":
		err = d.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// state is the VM's in the words of newVM.
func (v *vm) state() string {
	v.t.Helper()
	seen, err := host.Instance(v.t.Context(), v.uuid)
	if err != nil {
		v.t.Fatal(err)
	}
	switch seen.State {
	case agentv1.SideState_SIDE_STATE_ABSENT:
		return "absent"
	case agentv1.SideState_SIDE_STATE_SHUTOFF:
		return "off"
	case agentv1.SideState_SIDE_STATE_PAUSED:
		return "paused"
	case agentv1.SideState_SIDE_STATE_RUNNING:
		return "running"
	}
	return seen.Why
}

// stopQEMU has the VM's QEMU hear nobody any more, its monitor included.
func (v *vm) stopQEMU() {
	v.t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		v.t.Fatal(err)
	}
	for _, path := range found {
		args, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(args), "-uuid\x00"+v.uuid+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGSTOP)
		}
		if err != nil {
			v.t.Fatal(err)
		}
		return
	}
	v.t.Fatal("there is no QEMU to stop")
}

var numbers atomic.Int64

func (v *vm) task(kind string, spec *agentv1.TaskSpec) *agentv1.Task {
	return &agentv1.Task{
		Id: fmt.Sprintf("op-%d/1/%s", numbers.Add(1), kind), Resource: "vm/" + v.uuid, Term: &agentv1.Term{Epoch: 1, Revision: 7}, Spec: spec,
	}
}

func (v *vm) start(generation uint64, runs bool) *agentv1.Task {
	return v.task("failover-start", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_FailoverStart{FailoverStart: &agentv1.FailoverStart{
		VmUuid: v.uuid, VmName: v.name, Generation: generation, Definition: v.definition(), Start: runs,
	}}})
}

func (v *vm) discard(generation uint64) *agentv1.Task {
	return v.task("failover-discard", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_FailoverDiscard{FailoverDiscard: &agentv1.FailoverDiscard{
		VmUuid: v.uuid, VmName: v.name, Generation: generation,
	}}})
}

func (v *vm) order(generation uint64) *agentv1.Task {
	return v.task("vm-start", &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_VmPower{VmPower: &agentv1.VMPower{
		Action: agentv1.PowerAction_POWER_ACTION_START, VmUuid: v.uuid, VmName: v.name, Generation: generation,
	}}})
}

// dead is a kind of which the agent died once it had made its marks.
type dead struct {
	name  string
	marks []string
	begun chan struct{}
}

func (k *dead) Name() string { return k.name }

func (k *dead) Do(ctx context.Context, _ *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	for _, mark := range k.marks {
		if err := run.Mark(ctx, mark); err != nil {
			return failure("TEST", "%v", err)
		}
	}
	close(k.begun)
	<-ctx.Done()
	return nil
}

func (k *dead) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.Do(ctx, t, run)
}

// agent is a worker with a journal and the real kinds.
type agent struct {
	t    *testing.T
	path string
	work *worker.Worker
	stop func()
}

func newAgent(t *testing.T) *agent {
	a := &agent{t: t, path: filepath.Join(t.TempDir(), "journal.db"), stop: func() {}}
	t.Cleanup(func() { a.stop() })
	return a
}

func (a *agent) run(kinds ...worker.Kind) *agent {
	a.t.Helper()
	if len(kinds) == 0 {
		orders := power.New(power.Config{Hypervisor: host, BootID: "boot", Log: hclog.NewNullLogger()})
		kinds = append(New(Config{Hypervisor: host, Power: orders, ZFS: zfs.New(zfs.Config{}), BootID: "boot", Log: hclog.NewNullLogger()}).Kinds(), orders.Kinds()...)
	}
	work, err := worker.Open(worker.Config{Path: a.path, Kinds: kinds, Log: hclog.NewNullLogger()})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- work.Run(ctx) }()
	a.work, a.stop = work, func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
		_ = work.Close()
		a.stop = func() {}
	}
	return a
}

// dieAfter has an agent accept the task and die once it has made those marks; the
// next one is there when it returns.
func (a *agent) dieAfter(t *agentv1.Task, marks ...string) *agent {
	a.t.Helper()
	k := &dead{name: t.GetId()[strings.LastIndexByte(t.GetId(), '/')+1:], marks: marks, begun: make(chan struct{})}
	a.stop()
	a.run(k)
	if err := a.work.Accept(t); err != nil {
		a.t.Fatal(err)
	}
	select {
	case <-k.begun:
	case <-time.After(20 * time.Second):
		a.t.Fatal("the task was not begun")
	}
	a.stop()
	return a.run()
}

// outcome waits for the end of a task, which is accepted unless it was.
func (a *agent) outcome(t *agentv1.Task) *agentv1.TaskOutcome {
	a.t.Helper()
	if err := a.work.Accept(t); err != nil {
		a.t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		for _, r := range a.work.Open() {
			if r.GetTaskId() == t.GetId() && r.GetOutcome() != nil {
				return r.GetOutcome()
			}
		}
	}
	a.t.Fatalf("no outcome: %v", a.work.Open())
	return nil
}
