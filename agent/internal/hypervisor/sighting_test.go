package hypervisor

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestJudge(t *testing.T) {
	const (
		unspecified = agentv1.SideState_SIDE_STATE_UNSPECIFIED
		shutoff     = agentv1.SideState_SIDE_STATE_SHUTOFF
		paused      = agentv1.SideState_SIDE_STATE_PAUSED
		running     = agentv1.SideState_SIDE_STATE_RUNNING
		incoming    = agentv1.SideState_SIDE_STATE_INCOMING
		outgoing    = agentv1.SideState_SIDE_STATE_OUTGOING
	)
	for name, c := range map[string]struct {
		state   libvirt.DomainState
		reason  libvirt.DomainPausedReason
		in, out bool
		want    agentv1.SideState
		held    bool
	}{
		"runs":                       {state: libvirt.DOMAIN_RUNNING, want: running},
		"waits for its host's CPU":   {state: libvirt.DOMAIN_BLOCKED, want: running},
		"is shutting down":           {state: libvirt.DOMAIN_SHUTDOWN, want: running},
		"sleeps":                     {state: libvirt.DOMAIN_PMSUSPENDED, want: running},
		"is off":                     {state: libvirt.DOMAIN_SHUTOFF, want: shutoff},
		"has crashed":                {state: libvirt.DOMAIN_CRASHED, want: shutoff},
		"copies":                     {state: libvirt.DOMAIN_RUNNING, out: true, want: outgoing},
		"switches over":              {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_MIGRATION, out: true, want: outgoing},
		"is left over":               {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_MIGRATION, want: paused},
		"resume failed":              {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_API_ERROR, want: paused},
		"after libvirtd's restart":   {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_UNKNOWN, want: paused},
		"begins to receive":          {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_STARTING_UP, want: incoming},
		"receives":                   {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_MIGRATION, in: true, want: incoming},
		"has received, job not over": {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_USER, in: true, want: incoming},
		"has received":               {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_USER, want: paused, held: true},
		"has an I/O error":           {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_IOERROR, want: paused, held: true},
		"broken post-copy":           {state: libvirt.DOMAIN_PAUSED, reason: libvirt.DOMAIN_PAUSED_POSTCOPY_FAILED, want: paused, held: true},
		"nobody knows":               {state: libvirt.DOMAIN_NOSTATE, want: unspecified},
	} {
		if got, held := judge(c.state, c.reason, c.in, c.out); got != c.want || held != c.held {
			t.Errorf("%s: %s, held %v; want %s, %v", name, got, held, c.want, c.held)
		}
	}
}

func TestVMState(t *testing.T) {
	const incoming = agentv1.SideState_SIDE_STATE_INCOMING
	for want, sightings := range map[debvisorv1.VMState][]Sighting{
		debvisorv1.VMState_VM_STATE_RUNNING:  {{state: libvirt.DOMAIN_RUNNING}, {state: libvirt.DOMAIN_RUNNING, State: incoming}, {state: libvirt.DOMAIN_BLOCKED}},
		debvisorv1.VMState_VM_STATE_INCOMING: {{state: libvirt.DOMAIN_PAUSED, State: incoming}},
		debvisorv1.VMState_VM_STATE_PAUSED:   {{state: libvirt.DOMAIN_PAUSED}},
		debvisorv1.VMState_VM_STATE_SHUTOFF:  {{state: libvirt.DOMAIN_SHUTOFF}},
		debvisorv1.VMState_VM_STATE_CRASHED:  {{state: libvirt.DOMAIN_CRASHED}},
	} {
		for _, s := range sightings {
			if got := s.vmState(); got != want {
				t.Errorf("%+v is %s, want %s", s, got, want)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	for number, want := range map[uint32]string{9_000_000: "9.0.0", 7_002_022: "7.2.22", 11_010_001: "11.10.1"} {
		if got := version(number); got != want {
			t.Errorf("%d is %s, want %s", number, got, want)
		}
	}
}

func TestOwnerIn(t *testing.T) {
	caps := func(model, label string) libvirtxml.Caps {
		var c libvirtxml.Caps
		xml := "<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>" + model +
			"</model><baselabel type='kvm'>" + label + "</baselabel></secmodel></host></capabilities>"
		if err := c.Unmarshal(xml); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if got := ownerIn(caps("dac", "+64055:+106")); got == nil || *got != (owner{64055, 106}) {
		t.Errorf("owner %v", got)
	}
	for _, c := range []libvirtxml.Caps{caps("dac", "libvirt-qemu"), caps("apparmor", "+1:+2"), {}} {
		if got := ownerIn(c); got != nil {
			t.Errorf("owner %v out of nothing", *got)
		}
	}
}

func TestDisks(t *testing.T) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(`<domain type='kvm'><memory unit='MiB'>128</memory><vcpu>2</vcpu><devices>
		<disk type='file'><driver name='qemu' type='raw' cache='none'/><source file='/srv/a.raw'/><target dev='vda'/></disk>
		<disk type='block'><source dev='/dev/vg/b'/><target dev='vdb'/><readonly/></disk>
		<disk type='network'><source protocol='rbd' name='pool/c'/><target dev='vdc'/></disk>
		<disk type='volume'><source pool='p' volume='v'/><target dev='vdd'/></disk>
		<disk type='file' device='cdrom'><target dev='sda'/></disk></devices></domain>`); err != nil {
		t.Fatal(err)
	}
	if memoryBytes(def) != 128<<20 || vcpus(def) != 2 {
		t.Errorf("%d bytes, %d CPUs", memoryBytes(def), vcpus(def))
	}
	want := []*debvisorv1.VMDisk{
		{Target: "vda", Type: "file", Source: "/srv/a.raw", Format: "raw", Cache: "none", Device: "disk"},
		{Target: "vdb", Type: "block", Source: "/dev/vg/b", ReadOnly: true, Device: "disk"},
		{Target: "vdc", Type: "network", Source: "pool/c", Device: "disk", StorageId: "rbd:/pool", Shared: true},
		{Target: "vdd", Type: "volume", Source: "p/v", Device: "disk"},
		{Target: "sda", Type: "file", Device: "cdrom"},
	}
	got := disks(def)
	if len(got) != len(want) {
		t.Fatalf("%d disks", len(got))
	}
	for i, w := range want {
		if g := got[i]; !proto.Equal(g, w) {
			t.Errorf("disk %d is %v, want %v", i, g, w)
		}
	}
	if memoryBytes(libvirtxml.Domain{}) != 0 || vcpus(libvirtxml.Domain{}) != 0 || disks(libvirtxml.Domain{}) != nil {
		t.Error("something out of an empty definition")
	}
}

func TestScaled(t *testing.T) {
	for unit, want := range map[string]uint64{"b": 3, "bytes": 3, "": 3 << 10, "KiB": 3 << 10, "MiB": 3 << 20, "G": 3 << 30} {
		if got := scaled(3, unit); got != want {
			t.Errorf("3 %s are %d bytes, want %d", unit, got, want)
		}
	}
}

func TestErrorsOfMigrations(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code string
		kind errdefs.Kind
	}{
		"refused":          {libvirt.Error{Code: libvirt.ERR_MIGRATE_UNSAFE, Domain: libvirt.FROM_QEMU, Message: "unsafe"}, CodeLibvirt, errdefs.FailedPrecondition},
		"aborted":          {libvirt.Error{Code: libvirt.ERR_OPERATION_ABORTED, Domain: libvirt.FROM_QEMU}, CodeLibvirt, errdefs.Cancelled},
		"may still go on":  {libvirt.Error{Code: libvirt.ERR_OPERATION_TIMEOUT, Domain: libvirt.FROM_QEMU}, CodeLibvirt, errdefs.Unavailable},
		"no such VM":       {libvirt.Error{Code: libvirt.ERR_NO_DOMAIN, Domain: libvirt.FROM_QEMU}, "VM_NOT_FOUND", errdefs.NotFound},
		"connection broke": {libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC}, CodeBroken, errdefs.FailedPrecondition},
	} {
		var e *errdefs.Error
		if err := migrationError("migrating", c.err); !errors.As(err, &e) || e.Code != c.code || e.Kind != c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := migrationError("migrating", errors.New("ours")); err.Error() != "migrating: ours" {
		t.Errorf("another error: %v", err)
	}
}
