package power

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// host is a libvirtd of the tests' own, in namespaces that end with it: real
// libvirt and real QEMUs.
var (
	libvirtURI string
	host       *hypervisor.Hypervisor
)

const qemuConf = `stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
remember_owner = 0
`

// libvirtdScript gives libvirtd directories of its own, and nothing else.
const libvirtdScript = `set -e
for d in /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt; do
  mkdir -p $d
  mount -t tmpfs tmpfs $d
done
cp "$1/qemu.conf" /etc/libvirt/
printf 'unix_sock_dir = "%s"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n' "$1" > /etc/libvirt/libvirtd.conf
mount -t proc proc /proc
/usr/sbin/libvirtd &
while :; do # reap what is left to process 1: QEMUs are
  sleep infinity &
  wait $!
done
`

func TestMain(m *testing.M) { os.Exit(withLibvirt(m.Run)) }

func withLibvirt(run func() int) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "debvisor-power-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "qemu.conf"), []byte(qemuConf), 0o600); err != nil {
		return fail(err)
	}
	var log bytes.Buffer
	daemon := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", libvirtdScript, "libvirtd", dir)
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
	// Finding out what QEMU can do takes long where nobody has asked before.
	ready, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	if err := host.Ready(ready); err != nil {
		return fail(fmt.Errorf("%w; %s", err, log.String()))
	}
	return run()
}

// vm is a VM whose guest is a BIOS that finds nothing to boot, and hears nobody.
type vm struct {
	t    *testing.T
	uuid string
	name string
}

// newVM makes a VM: off, paused, running, transient (and running) or absent.
func newVM(t *testing.T, state string) *vm {
	t.Helper()
	v := &vm{t: t, uuid: uuid.NewString()}
	v.name = "vm-" + v.uuid[:8]
	if state == "absent" {
		return v
	}
	xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`,
		v.name, v.uuid)
	v.with(func(c *libvirt.Connect) error {
		if state == "transient" {
			d, err := c.DomainCreateXML(xml, 0)
			if err == nil {
				_ = d.Free()
			}
			return err
		}
		d, err := c.DomainDefineXML(xml)
		if err != nil {
			return err
		}
		defer func() { _ = d.Free() }()
		switch state {
		case "running":
			return d.Create()
		case "paused":
			return d.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
		}
		return nil
	})
	t.Cleanup(func() {
		_ = host.Destroy(context.Background(), v.uuid, false)
		_ = host.Undefine(context.Background(), v.uuid)
	})
	return v
}

// with calls f on a connection of its own.
func (v *vm) with(f func(*libvirt.Connect) error) {
	v.t.Helper()
	c, err := libvirt.NewConnect(libvirtURI)
	if err == nil {
		defer func() { _, _ = c.Close() }()
		err = f(c)
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) look() hypervisor.Instance {
	v.t.Helper()
	seen, err := host.Instance(v.t.Context(), v.uuid)
	if err != nil {
		v.t.Fatal(err)
	}
	return seen
}

// state is the VM's state in the words of newVM.
func (v *vm) state() string {
	v.t.Helper()
	switch v.look().State {
	case agentv1.SideState_SIDE_STATE_SHUTOFF:
		return "off"
	case agentv1.SideState_SIDE_STATE_PAUSED:
		return "paused"
	case agentv1.SideState_SIDE_STATE_RUNNING:
		return "running"
	case agentv1.SideState_SIDE_STATE_ABSENT:
		return "absent"
	}
	return v.look().Why
}

// interrupted is a kind of which the agent died once it had made its marks.
type interrupted struct {
	name  string
	marks []string
	done  chan struct{}
}

func (k *interrupted) Name() string { return k.name }

func (k *interrupted) Do(ctx context.Context, _ *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	for _, mark := range k.marks {
		if err := run.Mark(ctx, mark); err != nil {
			return failure("TEST", "%v", err)
		}
	}
	close(k.done)
	<-ctx.Done()
	return nil
}

func (k *interrupted) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.Do(ctx, t, run)
}

const bootID = "boot-1"

// agent is a worker with a journal and the real kinds.
type agent struct {
	t    *testing.T
	path string
	boot string // in which it accepts tasks
	work *worker.Worker
	stop func()
}

func newAgent(t *testing.T) *agent {
	a := &agent{t: t, boot: bootID, path: filepath.Join(t.TempDir(), "journal.db"), stop: func() {}}
	t.Cleanup(func() { a.stop() })
	return a
}

// start starts the agent with those kinds; without any, with the real ones.
func (a *agent) start(before func(*worker.Worker), kinds ...worker.Kind) {
	a.t.Helper()
	if len(kinds) == 0 {
		kinds = New(Config{Hypervisor: host, BootID: bootID, Log: hclog.NewNullLogger()}).Kinds()
	}
	var err error
	if a.work, err = worker.Open(worker.Config{Path: a.path, Kinds: kinds, BootID: a.boot, Log: hclog.NewNullLogger()}); err != nil {
		a.t.Fatal(err)
	}
	if before != nil {
		before(a.work)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.work.Run(ctx) }()
	a.stop = func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
		_ = a.work.Close()
		a.stop = func() {}
	}
}

// dieAfter has an agent accept the task and die once it has made those marks.
func (a *agent) dieAfter(t *agentv1.Task, marks ...string) {
	a.t.Helper()
	k := &interrupted{name: t.GetId()[strings.LastIndexByte(t.GetId(), '/')+1:], marks: marks, done: make(chan struct{})}
	a.start(nil, k)
	if err := a.work.Accept(t); err != nil {
		a.t.Fatal(err)
	}
	select {
	case <-k.done:
	case <-time.After(20 * time.Second):
		a.t.Fatal("the task was not begun")
	}
	a.stop()
}

// outcome waits for the end of a task that was accepted.
func (a *agent) outcome(t *agentv1.Task) *agentv1.TaskOutcome {
	a.t.Helper()
	if err := a.work.Accept(t); err != nil {
		a.t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		for _, r := range a.work.Open() {
			if r.GetTaskId() == t.GetId() && r.GetOutcome() != nil {
				return r.GetOutcome()
			}
		}
	}
	a.t.Fatalf("no outcome: %v", a.work.Open())
	return nil
}

var operations atomic.Int64

func (v *vm) order(kind string, order *agentv1.VMPower) *agentv1.Task {
	order.VmUuid, order.VmName = v.uuid, v.name
	if order.GetGeneration() == 0 {
		order.Generation = 1
	}
	return &agentv1.Task{
		Id: fmt.Sprintf("op-%d/1/%s", operations.Add(1), kind), Resource: "vm/" + v.uuid, Term: &agentv1.Term{Epoch: 1, Revision: 7},
		Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_VmPower{VmPower: order}},
	}
}

// TestOrders has each order meet what may be found on a host.
func TestOrders(t *testing.T) {
	short := func() *agentv1.VMPower { return &agentv1.VMPower{TimeoutMs: 700} }
	forced := func() *agentv1.VMPower { return &agentv1.VMPower{TimeoutMs: 700, Force: true} }
	plain := func() *agentv1.VMPower { return &agentv1.VMPower{} }
	const earlier = "instance " + bootID + "/9999"
	for name, c := range map[string]struct {
		kind    string
		order   func() *agentv1.VMPower
		found   string
		marks   string // that an agent made which died after; comma-separated
		observe bool
		code    string
		left    string
	}{
		"start":                                  {"vm-start", plain, "off", "", false, "", "running"},
		"start what runs":                        {"vm-start", plain, "running", "", false, "", "running"},
		"start what somebody paused":             {"vm-start", plain, "paused", "", false, codePaused, "paused"},
		"start what is not there":                {"vm-start", plain, "absent", "", false, codeNotFound, "absent"},
		"start, died before libvirt was asked":   {"vm-start", plain, "off", "creating", false, "", "running"},
		"start, died before the guest ran":       {"vm-start", plain, "paused", "creating", false, "", "running"},
		"start, died while it was let run":       {"vm-start", plain, "paused", "creating,running", false, "", "running"},
		"start, died once it ran":                {"vm-start", plain, "running", "creating,running", false, "", "running"},
		"start, it has run and stopped":          {"vm-start", plain, "off", "creating,running", false, codeStopped, "off"},
		"start, journal lost, it is off":         {"vm-start", plain, "off", "", true, codeInterrupted, "off"},
		"start, journal lost, it is paused":      {"vm-start", plain, "paused", "", true, codeInterrupted, "paused"},
		"start, journal lost, it runs":           {"vm-start", plain, "running", "", true, "", "running"},
		"shutdown of what is off":                {"vm-shutdown", short, "off", "", false, "", "off"},
		"shutdown of what is not there":          {"vm-shutdown", short, "absent", "", false, codeNotFound, "absent"},
		"shutdown of a guest that hears nobody":  {"vm-shutdown", short, "running", "", false, codeTimeout, "running"},
		"shutdown by force in the end":           {"vm-shutdown", forced, "running", "", false, "", "off"},
		"shutdown of what is paused":             {"vm-shutdown", short, "paused", "", false, codePaused, "paused"},
		"shutdown of what has no definition":     {"vm-shutdown", short, "transient", "", false, codeTransient, "running"},
		"shutdown of a QEMU that is gone":        {"vm-shutdown", forced, "running", earlier + ",begun", false, "", "running"},
		"shutdown, journal lost, it is off":      {"vm-shutdown", short, "off", "", true, "", "off"},
		"shutdown, journal lost, it runs":        {"vm-shutdown", short, "running", "", true, codeInterrupted, "running"},
		"destroy":                                {"vm-destroy", plain, "running", "", false, "", "off"},
		"destroy what is paused":                 {"vm-destroy", plain, "paused", "", false, "", "off"},
		"destroy what is off":                    {"vm-destroy", plain, "off", "", false, "", "off"},
		"destroy what is not there":              {"vm-destroy", plain, "absent", "", false, codeNotFound, "absent"},
		"destroy what has no definition":         {"vm-destroy", plain, "transient", "", false, codeTransient, "running"},
		"destroy, died, another QEMU runs since": {"vm-destroy", plain, "running", earlier + ",begun", false, "", "running"},
		"destroy, died, journal lost":            {"vm-destroy", plain, "running", "", true, codeInterrupted, "running"},
		"autostart of what is not there":         {"vm-autostart", plain, "absent", "", false, "", "absent"},
	} {
		t.Run(name, func(t *testing.T) {
			v, a := newVM(t, c.found), newAgent(t)
			order := v.order(c.kind, c.order())
			order.ObserveOnly = c.observe
			if c.marks != "" {
				a.dieAfter(order, strings.Split(c.marks, ",")...)
			}
			a.start(nil)
			out := a.outcome(order)
			if out.GetErrorCode() != c.code || v.state() != c.left {
				t.Errorf("it is %s, outcome %v; want %s, %q", v.state(), out, c.left, c.code)
			}
		})
	}
}

// TestDestroyOfTheSameQEMU: what was begun for the QEMU that is there is ended.
func TestDestroyOfTheSameQEMU(t *testing.T) {
	v, a := newVM(t, "running"), newAgent(t)
	order := v.order("vm-destroy", &agentv1.VMPower{})
	a.dieAfter(order, fmt.Sprintf("instance %s/%d", bootID, v.look().ID), markBegun)
	a.start(nil)
	if out := a.outcome(order); out.GetErrorCode() != "" || v.state() != "off" {
		t.Errorf("it is %s: %v", v.state(), out)
	}
}

// TestOlderPlacement: a start that was ordered for an older placement than the
// newest told is refused, whatever told that one, also after a restart; what a
// leader after a restore orders counts anew.
func TestOlderPlacement(t *testing.T) {
	v, a := newVM(t, "off"), newAgent(t)
	a.start(nil)
	if out := a.outcome(v.order("vm-autostart", &agentv1.VMPower{Generation: 5})); out.GetErrorCode() != "" {
		t.Fatal(out)
	}
	a.stop()
	a.start(nil)
	out := a.outcome(v.order("vm-start", &agentv1.VMPower{Generation: 4}))
	if out.GetErrorCode() != codeStale || !strings.Contains(out.GetErrorMessage(), "placement 5") || v.state() != "off" {
		t.Errorf("it is %s: %v", v.state(), out)
	}
	restored := v.order("vm-start", &agentv1.VMPower{Generation: 2})
	restored.Term = &agentv1.Term{Epoch: 2, Revision: 3}
	if out := a.outcome(restored); out.GetErrorCode() != "" || v.state() != "running" {
		t.Errorf("it is %s: %v", v.state(), out)
	}
}

// TestCancelledBeforeItIsBegun has each order cancelled before the agent gets to it.
func TestCancelledBeforeItIsBegun(t *testing.T) {
	for kind, found := range map[string]string{"vm-start": "off", "vm-shutdown": "running", "vm-destroy": "running"} {
		v, a := newVM(t, found), newAgent(t)
		order := v.order(kind, &agentv1.VMPower{})
		a.start(func(w *worker.Worker) {
			if err := w.Accept(order); err != nil {
				t.Fatal(err)
			}
			w.Cancel(order.GetId())
		})
		if out := a.outcome(order); out.GetErrorCode() != worker.CodeCancelled || v.state() != found {
			t.Errorf("%s: it is %s: %v", kind, v.state(), out)
		}
	}
}

// TestAShutdownIsCancelledWhileItWaits: the guest was asked, and goes on.
func TestAShutdownIsCancelledWhileItWaits(t *testing.T) {
	v, a := newVM(t, "running"), newAgent(t)
	a.start(nil)
	order := v.order("vm-shutdown", &agentv1.VMPower{TimeoutMs: 60_000})
	if err := a.work.Accept(order); err != nil {
		t.Fatal(err)
	}
	a.work.Cancel(order.GetId())
	if out := a.outcome(order); out.GetErrorCode() != worker.CodeCancelled || v.state() != "running" {
		t.Errorf("it is %s: %v", v.state(), out)
	}
}

// TestAutostartIsTaken: libvirt's is off afterwards, and whoever watches is told.
func TestAutostartIsTaken(t *testing.T) {
	v, a := newVM(t, "off"), newAgent(t)
	v.with(func(c *libvirt.Connect) error {
		d, err := c.LookupDomainByUUIDString(v.uuid)
		if err != nil {
			return err
		}
		defer func() { _ = d.Free() }()
		return d.SetAutostart(true)
	})
	told := make(chan struct{}, 1)
	host.Subscribe(func(uuid string) {
		if uuid == v.uuid {
			select {
			case told <- struct{}{}:
			default:
			}
		}
	})
	a.start(nil)
	if out := a.outcome(v.order("vm-autostart", &agentv1.VMPower{})); out.GetErrorCode() != "" {
		t.Fatal(out)
	}
	d, err := host.Domain(t.Context(), v.uuid)
	if err != nil || d.GetAutostart() {
		t.Errorf("autostart %v, %v", d.GetAutostart(), err)
	}
	select {
	case <-told:
	default:
		t.Error("nobody was told")
	}
}

// TestAStartThatWasAcceptedBeforeABoot: nothing of it was begun, and it is not begun
// now: the leader may have let another node have the VM since.
func TestAStartThatWasAcceptedBeforeABoot(t *testing.T) {
	for boot, want := range map[string]string{"an-earlier-one": codeRebooted, bootID: ""} {
		v, a := newVM(t, "off"), newAgent(t)
		a.boot = boot
		order := v.order("vm-start", &agentv1.VMPower{})
		a.dieAfter(order)
		a.boot = bootID
		a.start(nil)
		out := a.outcome(order)
		if state := v.state(); out.GetErrorCode() != want || (state == "running") != (want == "") {
			t.Errorf("%s: it is %s: %v", boot, state, out)
		}
	}
}

// TestAStartOfAnotherBoot: a start that was begun before the host was restarted
// is not gone on with; one of this boot is.
func TestAStartOfAnotherBoot(t *testing.T) {
	for marks, want := range map[string]string{
		"boot an-earlier-one,boot,creating": codeRebooted,
		"boot " + bootID + ",boot,creating": "",
	} {
		v, a := newVM(t, "off"), newAgent(t)
		order := v.order("vm-start", &agentv1.VMPower{})
		a.boot = "" // the marks tell
		a.dieAfter(order, strings.Split(marks, ",")...)
		a.start(nil)
		out := a.outcome(order)
		if state := v.state(); out.GetErrorCode() != want || (state == "running") != (want == "") {
			t.Errorf("%s: it is %s: %v", marks, state, out)
		}
	}
}
