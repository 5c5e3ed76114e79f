package hypervisor

import (
	"context"
	"os"
	"os/exec"
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

// noKVM is a /dev of its own, without kvm. One that is there and does not work
// has libvirt try it again with each call, which takes seconds.
const noKVM = `set -e
mount -t tmpfs tmpfs /mnt
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /mnt
mkdir /mnt/shm /mnt/pts
mount --bind /dev/pts /mnt/pts
mount --rbind /mnt /dev
exec "$0" "$@"`

// withoutKVM runs the test once more in a process for which there is no KVM.
func withoutKVM(t *testing.T) (here bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("libvirt's system driver needs root")
	}
	if os.Getenv("WITHOUT_KVM") != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", noKVM, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), "WITHOUT_KVM=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

// qemuDriver connects to libvirt's QEMU driver, which runs in this process with
// a directory of its own: all that it decides is as real as in libvirtd.
func qemuDriver(t *testing.T) *Hypervisor {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "debvisor-embed-")
	if err != nil {
		t.Fatal(err)
	}
	conf := "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n"
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/qemu.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	h := New(Config{URI: "qemu:///embed?root=" + dir, CallTimeout: time.Minute, Log: hclog.NewNullLogger()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ready, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := h.Ready(ready); err != nil {
		t.Fatal(err)
	}
	return h
}

// known waits until the host's CPU is known, as the collector does: it is told.
func known(t *testing.T, h *Hypervisor) *debvisorv1.NodeCapabilities {
	t.Helper()
	told := make(chan string, 16)
	h.Subscribe(func(uuid string) {
		select {
		case told <- uuid:
		default:
		}
	})
	late := time.After(2 * time.Minute)
	for {
		caps, err := h.Capabilities(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if caps.GetCpuHash() != "" {
			return caps
		}
		select {
		case <-told:
		case <-late:
			t.Fatalf("the host's CPU is not known: %v", caps)
		}
	}
}

func description(t *testing.T, name string) *agentv1.CPUDescription {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.CPUDescription{Xml: string(text), Arch: "x86_64", VirtType: "qemu"}
}

func TestAgainstARealLibvirt(t *testing.T) {
	if !withoutKVM(t) {
		return
	}
	h := qemuDriver(t)
	caps := known(t, h)
	t.Run("compares CPUs", func(t *testing.T) { comparesCPUs(t, h, caps) })
	t.Run("tells of a guest", func(t *testing.T) { tellsOfAGuest(t, h) })
}

func comparesCPUs(t *testing.T, h *Hypervisor, caps *debvisorv1.NodeCapabilities) {
	t.Helper()
	if len(caps.GetCpuHash()) != 64 || !strings.Contains(strings.Join(caps.GetVirtTypes(), " "), "qemu") {
		t.Errorf("capabilities: hash %q, types %v", caps.GetCpuHash(), caps.GetVirtTypes())
	}
	host := h.hostCPU("qemu")
	if host == nil || host.Model.Value == "" {
		t.Fatalf("the CPU that TCG provides: %+v", host)
	}
	if got := h.canonical("q35"); !strings.HasPrefix(got, "pc-q35-") {
		t.Errorf("q35 is %s", got)
	}
	def := recorded(t, "maximal-migratable.xml")
	less := *host
	less.Features = append(less.Features[:0:0], less.Features...)
	for i := range less.Features {
		if less.Features[i].Policy == "require" {
			less.Features[i].Policy = "disable"
		}
	}
	elsewhere, err := describeCPU(def, true, &less)
	if err != nil {
		t.Fatal(err)
	}
	of := func(xml string) *agentv1.CPUDescription {
		return &agentv1.CPUDescription{Xml: xml, Arch: "x86_64", VirtType: "qemu"}
	}
	foreign := of("<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>")
	foreign.Arch = "s390x"
	for name, c := range map[string]struct {
		cpu    *agentv1.CPUDescription
		detail string // empty: compatible
	}{
		"nothing in particular":         {&agentv1.CPUDescription{}, ""},
		"qemu64":                        {of("<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>"), ""},
		"the whole of a host with less": {elsewhere, "the whole of its host's CPU"},
		"a Skylake with AVX-512":        {description(t, "skylake-server.xml"), "vendor"},
		"the same without its vendor":   {of(strings.Replace(description(t, "skylake-server.xml").GetXml(), "<vendor>Intel</vendor>", "", 1)), "avx512"},
		"an EPYC-Milan":                 {description(t, "epyc-milan.xml"), "required features: "},
		"a model of the future":         {of("<cpu mode='custom' match='exact'><model fallback='forbid'>Nonesuch</model></cpu>"), "Unknown CPU model Nonesuch"},
		"another architecture":          {foreign, "s390x"},
	} {
		got, err := h.CompareCPU(t.Context(), c.cpu)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Logf("%s: %v", name, got)
		if got.GetCompatible() != (c.detail == "") || !strings.Contains(got.GetDetail(), c.detail) || strings.Contains(got.GetDetail(), "\n") {
			t.Errorf("%s: %v, want %q", name, got, c.detail)
		}
	}
	for _, bad := range []string{"<cpu", "<other/>", "<cpu>" + strings.Repeat(" ", maxCPU) + "</cpu>"} {
		if got, err := h.CompareCPU(t.Context(), of(bad)); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%.20s: %v, %v", bad, got, err)
		}
	}
}

// tellsOfAGuest starts one that has neither disk nor network: its firmware looks
// for something to boot for as long as it is let.
func tellsOfAGuest(t *testing.T, h *Hypervisor) {
	t.Helper()
	const uuid = "33333333-0000-0000-0000-000000000001"
	err := act(t, h, func(c *libvirt.Connect) error {
		d, err := c.DomainDefineXML(`<domain type='qemu'><name>bare</name><uuid>` + uuid + `</uuid><memory unit='MiB'>64</memory>
			<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='maximum'/>
			<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`)
		if err != nil {
			return err
		}
		defer func() { _ = d.Free() }()
		return d.Create()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := act(t, h, func(c *libvirt.Connect) error {
			d, err := c.LookupDomainByUUIDString(uuid)
			if err != nil {
				return err
			}
			defer func() { _ = d.Free() }()
			return d.Destroy()
		}); err != nil {
			t.Error(err)
		}
	})
	d, err := h.Domain(t.Context(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.GetMachineType(), "pc-q35-") || d.GetVirtType() != "qemu" || d.GetArch() != "x86_64" || d.GetSnapshots() != 0 {
		t.Errorf("it is %v", d)
	}
	cpu, ok := h.CPU(d.GetCpuHash())
	if !ok || !strings.Contains(cpu.GetXml(), `mode="maximum"`) || !strings.Contains(cpu.GetXml(), "<feature") {
		t.Fatalf("it needs %v", cpu)
	}
	if got, err := h.CompareCPU(t.Context(), cpu); err != nil || !got.GetCompatible() {
		t.Errorf("on its own host it would be refused: %v, %v", got, err)
	}
	rate, err := h.DirtyRate(t.Context(), uuid)
	if err != nil || rate < dirtyLeast || rate > 64<<20 {
		t.Errorf("it dirties %d bytes a second, %v", rate, err)
	}
	if d, err := h.Domain(t.Context(), uuid); err != nil || d.GetState() != debvisorv1.VMState_VM_STATE_RUNNING {
		t.Errorf("after the measurement it is %v, %v", d, err)
	}
}

func act(t *testing.T, h *Hypervisor, f func(*libvirt.Connect) error) error {
	t.Helper()
	_, err := call(context.Background(), h, "acting", func(c *libvirt.Connect) (struct{}, error) { return struct{}{}, f(c) })
	return err
}
