package planner

import (
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Each filter has a case that it refuses, and one beside it, as close as can
// be, that it lets pass.
func TestFilters(t *testing.T) {
	for name, c := range map[string]struct {
		facts, ask, want string // a, where the VM is, left out of what is wanted
	}{
		"CPUs: too few":      {"node a 16 8\nnode b 16 8 cpus=4\nvm w a 2 vcpus=5", "w", "no b:CPU_COUNT"},
		"CPUs: enough":       {"node a 16 8\nnode b 16 8 cpus=4\nvm w a 2 vcpus=4", "w", "a→b"},
		"arch: another":      {"node a 16 8\nnode b 16 8 arch=aarch64\nvm w a 2 arch=x86_64", "w", "no b:ARCH"},
		"arch: the same":     {"node a 16 8\nnode b 16 8 arch=aarch64\nvm w a 2 arch=aarch64", "w", "a→b"},
		"arch: 32 bits":      {"node a 16 8\nnode b 16 8\nvm w a 2 arch=i686", "w", "a→b"},
		"virt: no KVM":       {"node a 16 8\nnode b 16 8 virt=qemu\nvm w a 2 virt=kvm", "w", "no b:VIRT_TYPE"},
		"virt: both":         {"node a 16 8\nnode b 16 8 virt=qemu virt=kvm\nvm w a 2 virt=kvm", "w", "a→b"},
		"machine: missing":   {"node a 16 8\nnode b 16 8 machine=pc-q35-7.1\nvm w a 2 machine=pc-q35-7.2", "w", "no b:MACHINE_TYPE"},
		"machine: unknown":   {"node a 16 8\nnode b 16 8\nvm w a 2 machine=pc-q35-7.2", "w", "no b:MACHINE_TYPE"},
		"machine: there":     {"node a 16 8\nnode b 16 8 machine=pc-q35-7.1 machine=pc-q35-7.2\nvm w a 2 machine=pc-q35-7.2", "w", "a→b"},
		"QEMU: older":        {"node a 16 8 qemu=8.0.1\nnode b 16 8 qemu=7.2.19\nvm w a 2", "w", "no b:QEMU_OLDER"},
		"QEMU: an older fix": {"node a 16 8 qemu=7.2.19\nnode b 16 8 qemu=7.2.5\nvm w a 2", "w", "a→b"},
		"QEMU: newer":        {"node a 16 8 qemu=7.2.19\nnode b 16 8 qemu=10.0.0\nvm w a 2", "w", "a→b"},
		"QEMU: unknown":      {"node a 16 8 qemu=7.2.19\nnode b 16 8\nvm w a 2", "w", "a→b"},
		"QEMU: shut down":    {"node a 16 8 qemu=8.0.1\nnode b 16 8 qemu=7.2.19\nvm w a 2", "w down", "a→b offline"},
		"QEMU: is off":       {"node a 16 8 qemu=8.0.1\nnode b 16 8 qemu=7.2.19\nvm w a 2 off", "w", "a→b offline"},
		"QEMU: live first":   {"node a 16 8 qemu=8.0\nnode b 64 60 qemu=7.2\nnode c 16 4 qemu=8.0\nvm w a 2", "w down", "a→c"},
		"QEMU: transient":    {"node a 16 8 qemu=8.0.1\nnode b 16 8 qemu=7.2.19\nvm w a 2 transient", "w down", "no b:QEMU_OLDER"},

		"CPU: compatible":   {"node a 16 8\nnode b 16 8 cpu=h\nvm w a 2 cpu=g\ncpu g h yes", "w cpus", "a→b"},
		"CPU: not":          {"node a 16 8\nnode b 16 8 cpu=h\nvm w a 2 cpu=g\ncpu g h avx512f", "w cpus", "no b:CPU_INCOMPATIBLE"},
		"CPU: not compared": {"node a 16 8\nnode b 16 8 cpu=h\nvm w a 2 cpu=g", "w cpus", "no b:CPU_NOT_COMPARED"},
		"CPU: no matter":    {"node a 16 8\nnode b 16 8 cpu=h\nvm w a 2", "w cpus", "a→b"},
		"CPU: host unknown": {"node a 16 8\nnode b 16 8\nvm w a 2 cpu=g", "w cpus", "no b:CPU_NOT_COMPARED"},
		"CPU: no facts":     {"node a 16 8\nnode b 16 8 cpu=h\nvm w a 2 cpu=g\ncpu g h avx512f", "w", "a→b"},

		"network: missing":   {"node a 16 8\nnode b 16 8 net=br1\nvm w a 2 nic=network:lan", "w", "no b:NETWORK"},
		"network: there":     {"node a 16 8\nnode b 16 8 net=lan\nvm w a 2 nic=network:lan", "w", "a→b"},
		"bridge: missing":    {"node a 16 8\nnode b 16 8 if=br0\nvm w a 2 nic=bridge:br0", "w", "no b:NETWORK"},
		"bridge: there":      {"node a 16 8\nnode b 16 8 net=br0\nvm w a 2 nic=bridge:br0", "w", "a→b"},
		"macvtap: missing":   {"node a 16 8\nnode b 16 8 net=eno1\nvm w a 2 nic=direct:eno1", "w", "no b:NETWORK"},
		"macvtap: there":     {"node a 16 8\nnode b 16 8 if=eno1\nvm w a 2 nic=direct:eno1", "w", "a→b"},
		"each one":           {"node a 16 8\nnode b 16 8 net=x\nvm w a 2 nic=bridge:x nic=bridge:y nic=bridge:z", "w", "no b:NETWORK b:NETWORK"},
		"user network":       {"node a 16 8\nnode b 16 8\nvm w a 2 nic=user: nic=ethernet:tap0", "w", "a→b"},
		"host device":        {"node a 16 8\nnode b 16 8\nvm w a 2 dev=pci:0000:01:00.0", "w down", "no HOST_DEVICE"},
		"host device, off":   {"node a 16 8\nnode b 16 8\nvm w a 2 off dev=pci:0000:01:00.0", "w", "no HOST_DEVICE"},
		"no host device":     {"node a 16 8\nnode b 16 8\nvm w a 2", "w down", "a→b"},
		"directory, live":    {"node a 16 8\nnode b 16 8\nvm w a 2 dir=/shared/d", "w", "no NOT_LIVE(SHARED_DIRECTORY)"},
		"directory, down":    {"node a 16 8\nnode b 16 8\nvm w a 2 dir=/shared/d", "w down", "a→b offline"},
		"directory, own":     {"node a 16 8\nnode b 16 8\nvm w a 2 dir=/srv", "w down", "no b:SHARED_DIRECTORY"},
		"snapshots":          {"node a 16 8\nnode b 16 8\nvm w a 2 snapshots=1", "w down", "no SNAPSHOTS"},
		"snapshots, off":     {"node a 16 8\nnode b 16 8\nvm w a 2 off snapshots=1", "w", "no SNAPSHOTS"},
		"no snapshots":       {"node a 16 8\nnode b 16 8\nvm w a 2 snapshots=0", "w", "a→b"},
		"pause forbidden":    {"node a 16 8\nnode b 16 8\nvm w a 2", "w pause", "no PAUSE_NOT_ALLOWED"},
		"pause allowed":      {"node a 16 8\nnode b 16 8\nvm w a 2 maypause", "w pause", "a→b"},
		"pause does not ask": {"node a 16 8\nnode b 16 8\nvm w a 2 off", "w pause", "a→b offline"},

		"off: no memory now":    {"node a 16 8\nnode b 16 1\nvm w a 2 off", "w", "a→b offline"},
		"off: never fits":       {"node a 16 8\nnode b 2 1\nvm w a 2 off", "w", "no b:MEMORY"},
		"off: will be started":  {"node a 16 8\nnode b 16 1\nvm w a 2 off\nop o w b ran", "w by=o", "no b:MEMORY"},
		"off: promised to none": {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2 off\nop o x b", "w >b", "a→b"},
		"off: promised":         {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2 off\nop o x b ran", "w >b", "no b:MEMORY"},

		"cache, down":              {"node a 16 8\nnode b 16 8\nvm w a 2 disk=file:", "w down", "a→b offline"},
		"cache, down, transient":   {"node a 16 8\nnode b 16 8\nvm w a 2 transient disk=file:", "w down", "no VM_TRANSIENT"},
		"cache, off":               {"node a 16 8\nnode b 16 8\nvm w a 2 off disk=file:", "w", "a→b offline"},
		"cache of a copy":          {"node a 16 8\nnode b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/w", "w", "a→b copy"},
		"tenant's own":             {"node a 16 8\nnode b 16 8\nvm w a 2 tenant=t", "w tenant=t", "a→b"},
		"another tenant's":         {"node a 16 8\nnode b 16 8\nvm w a 2 tenant=u", "w tenant=t", "no VM_NOT_FOUND"},
		"nobody's":                 {"node a 16 8\nnode b 16 8\nvm w a 2", "w tenant=t", "no VM_NOT_FOUND"},
		"an operator sees all":     {"node a 16 8\nnode b 16 8\nvm w a 2 tenant=u", "w", "a→b"},
		"in flight, both places":   {"node a 16 8\nnode b 16 8\nnode c 16 8\nvm w a 2 anti=g\nvm x b 1 anti=g\nop o x c", "w", "no b:ANTI_AFFINITY c:ANTI_AFFINITY"},
		"in flight, has arrived":   {"node a 16 8\nnode b 16 8\nnode c 16 8\nvm w a 2 anti=g\nvm x c 1 anti=g\nop o x c", "w", "a→b c:ANTI_AFFINITY"},
		"apart: the node":          {"node a 16 8\nnode b 16 8\nvm w a 2 anti=g\nvm x b 1 anti=g", "w", "no b:ANTI_AFFINITY"},
		"apart: another group":     {"node a 16 8\nnode b 16 8\nvm w a 2 anti=g\nvm x b 1 anti=h", "w", "a→b"},
		"apart: another tenant":    {"node a 16 8\nnode b 16 8\nvm w a 2 anti=g tenant=t\nvm x b 1 anti=g tenant=u", "w", "a→b"},
		"apart: the rack":          {"node a 16 8 rack=1\nnode b 16 8 rack=2\nnode c 16 8 rack=2\nvm w a 2 anti=g:rack\nvm x c 1 anti=g", "w >b", "no b:ANTI_AFFINITY c:ANTI_AFFINITY"},
		"apart: another rack":      {"node a 16 8 rack=1\nnode b 16 8 rack=2\nnode c 16 8 rack=3\nvm w a 2 anti=g:rack\nvm x c 1 anti=g", "w", "a→b c:ANTI_AFFINITY"},
		"apart: a rack, no name":   {"node a 16 8 rack=1\nnode b 16 8\nnode c 16 8 rack=3\nvm w a 2 anti=g:rack\nvm x c 1 anti=g", "w >b", "no b:ANTI_AFFINITY c:ANTI_AFFINITY"},
		"apart: a rack by zone":    {"node a 16 8\nnode b 16 8 rack=1 zone=n\nnode c 16 8 rack=1 zone=s\nvm w a 2 anti=g:rack\nvm x c 1 anti=g", "w", "a→b c:ANTI_AFFINITY"},
		"apart: the zone":          {"node a 16 8\nnode b 16 8 zone=n rack=1\nnode c 16 8 zone=n rack=2\nvm w a 2 anti=g\nvm x c 1 anti=g:zone", "w >b", "no b:ANTI_AFFINITY c:ANTI_AFFINITY"},
		"apart: only racks":        {"node a 16 8\nnode b 16 8 zone=n rack=1\nnode c 16 8 zone=n rack=2\nvm w a 2 anti=g\nvm x c 1 anti=g:rack", "w", "a→b c:ANTI_AFFINITY"},
		"together: prefers":        {"node a 16 8\nnode b 16 8\nnode c 16 7\nvm w a 2 with=g\nvm x c 1 with=g", "w", "a→c"},
		"together: is no order":    {"node a 16 8\nnode b 16 8\nnode c 16 2\nvm w a 2 with=g\nvm x c 1 with=g", "w", "a→b c:MEMORY"},
		"spread: prefers far away": {"node a 16 8\nnode b 16 8 rack=1 zone=n\nnode c 16 8 rack=1 zone=n\nnode d 16 8 rack=2 zone=n\nvm w a 1 anti=g\nvm x b 1 anti=g", "w", "a→d b:ANTI_AFFINITY"},
	} {
		t.Run(name, func(t *testing.T) {
			result := ask(t, c.facts, c.ask)
			if got := strings.Replace(verdict(result), " a:ALREADY_THERE", "", 1); got != c.want {
				t.Errorf("got  %s\nwant %s\n%s", got, c.want, result.Refusal())
			}
		})
	}
}

func TestDisks(t *testing.T) {
	const here = "node a 16 8 fs=/d:local-a:50\n"
	for name, c := range map[string]struct {
		facts, ask, want string
		disks            string // target:action, with - where the source's is removed
	}{
		"shared":            {here + "node b 16 8\nvm w a 2 disk=file:none", "w", "a→b", "vda:SHARED"},
		"network":           {here + "node b 16 8\nvm w a 2 disk=network:", "w", "a→b", ""},
		"unreachable":       {here + "node b 16 8\nvm w a 2 copy=raw:1:/san/x:@san", "w", "no b:DISK_UNREACHABLE", ""},
		"reachable":         {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san:san:0\nvm w a 2 copy=raw:1:/san/x:@san", "w", "a→b", "vda:SHARED"},
		"mounted elsewhere": {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san/x:san:0\nvm w a 2 copy=raw:1:/san/x/y:@san", "w", "no b:DISK_UNREACHABLE", ""},
		"mounted over":      {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san:san:0 fs=/san/x:l:9\nvm w a 2 copy=raw:1:/san/x/y:@san", "w", "no b:DISK_UNREACHABLE", ""},
		"by a link":         {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san:san:0\nvm w a 2 copy=raw:1:/link/x:@san", "w", "a→b", "vda:SHARED"},
		"no storage id":     {here + "node b 16 8\nvm w a 2 copy=raw:1:/shared/x:@", "w", "no b:DISK_UNREACHABLE", ""},
		"not a directory":   {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san:san:0\nvm w a 2 copy=raw:1:/sandy/x:@san copy=raw:1:/san:@san", "w", "a→b", "vda:SHARED vdb:SHARED"},

		"image":                {"node a 16 8 ceph=a:vms\nnode b 16 8 ceph=a:rbd:vms\nvm w a 2 rbd=a:vms/w rbd=a:vms/ns/w", "w", "a→b", "vda:SHARED vdb:SHARED"},
		"image, no Ceph":       {"node a 16 8 ceph=a:vms\nnode b 16 8\nvm w a 2 rbd=a:vms/w", "w", "no b:DISK_UNREACHABLE", ""},
		"image, another Ceph":  {"node a 16 8 ceph=a:vms\nnode b 16 8 ceph=b:vms\nvm w a 2 rbd=a:vms/w", "w", "no b:DISK_UNREACHABLE", ""},
		"image, no pool":       {"node a 16 8 ceph=a:vms\nnode b 16 8 ceph=a:rbd\nvm w a 2 rbd=a:vms/w", "w", "no b:DISK_UNREACHABLE", ""},
		"image, dead Ceph":     {"node a 16 8 ceph=a:vms\nnode b 16 8 ceph=a:vms:dead\nvm w a 2 rbd=a:vms/w", "w", "no b:DISK_UNREACHABLE", ""},
		"image, down":          {"node a 16 8 ceph=a:vms\nnode b 16 8\nvm w a 2 rbd=a:vms/w", "w down", "no b:DISK_UNREACHABLE", ""},
		"image, nobody knows":  {"node a 16 8\nnode b 16 8\nvm w a 2 rbd=10.0.0.1:6789:vms/w", "w", "a→b", ""},
		"image of a dead node": {"node a 16 8 ceph=a:vms:dead\nnode b 16 8 ceph=a:vms\nvm w a 2 rbd=a:vms/w", "w", "a→b", "vda:SHARED"},

		"copied":             {here + "node b 16 8 fs=/d:local-b:10.5\nvm w a 2 copy=qcow2:10:/d/x", "w", "a→b copy", "vda:COPY_LIVE-"},
		"no room":            {here + "node b 16 8 fs=/d:local-b:10.4\nvm w a 2 copy=qcow2:10:/d/x", "w", "no b:DISK_SPACE", ""},
		"room for both":      {here + "node b 16 8 fs=/d:local-b:10.5\nvm w a 2 copy=qcow2:5:/d/x copy=raw:5:/d/y", "w", "a→b copy", "vda:COPY_LIVE- vdb:COPY_LIVE-"},
		"room for one":       {here + "node b 16 8 fs=/d:local-b:10\nvm w a 2 copy=qcow2:5:/d/x copy=raw:5:/d/y", "w", "no b:DISK_SPACE", ""},
		"two file systems":   {here + "node b 16 8 fs=/d:l:6 fs=/d/e:m:6\nvm w a 2 copy=qcow2:5:/d/x copy=raw:5:/d/e/y", "w", "a→b copy", "vda:COPY_LIVE- vdb:COPY_LIVE-"},
		"room promised":      {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nvm v a 1 copy=raw:10:/d/y\nop o v b", "w", "no b:DISK_SPACE", ""},
		"promise ended":      {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nvm v a 1 copy=raw:10:/d/y\nop o v b ended", "w", "a→b copy", "vda:COPY_LIVE-"},
		"promised to it":     {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nop o w b", "w by=o", "a→b copy", "vda:COPY_LIVE-"},
		"grows":              {here + "node b 16 8 fs=/d:l:9\nvm w a 2 copy=raw:10:/d/x:used1", "w", "no b:DISK_SPACE", ""},
		"a CD does not grow": {here + "node b 16 8 fs=/d:l:9\nvm w a 2 copy=raw:10:/d/x:used1:ro", "w", "a→b copy", "vda:COPY_OFFLINE-"},
		"no file system":     {here + "node b 16 8 nocapacity\nvm w a 2 copy=raw:10:/d/x", "w", "no b:CAPACITY_UNKNOWN", ""},
		"block device":       {here + "node b 16 8\nvm w a 2 copy=raw:10:/dev/x:block", "w", "a→b copy", "vda:COPY_LIVE"},
		"off":                {here + "node b 16 8 fs=/d:l:20\nvm w a 2 off copy=raw:10:/d/x disk=file:", "w", "a→b offline", "vda:COPY_OFFLINE- vdb:SHARED"},
		"down":               {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x disk=file:", "w down", "a→b offline", "vda:COPY_OFFLINE- vdb:SHARED"},
		"format":             {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=vmdk:10:/d/x", "w down", "no DISK_NOT_COPYABLE", ""},
		"overlay":            {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=qcow2:10:/d/x:overlay", "w down", "no DISK_NOT_COPYABLE", ""},
		"shared overlay":     {"node a 16 8 fs=/san:san:1\nnode b 16 8 fs=/san:san:0\nvm w a 2 copy=qcow2:1:/san/x:overlay:@san", "w", "a→b", "vda:SHARED"},
		"shareable":          {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x:shareable", "w down", "no DISK_NOT_COPYABLE", ""},
		"size unknown":       {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:0:/d/x", "w down", "no DISK_NOT_COPYABLE", ""},
		"used by another":    {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nvm v a 1 off copy=raw:10:/d/x", "w", "no DISK_NOT_COPYABLE", ""},
		"CD used by another": {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x:ro\nvm v a 1 off copy=raw:10:/d/x:ro", "w", "a→b copy", "vda:COPY_OFFLINE"},
		"path taken":         {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nvm v b 1 off copy=raw:10:/d/x", "w", "no b:DISK_NOT_COPYABLE", ""},
		"path beside":        {here + "node b 16 8 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x\nvm v b 1 off copy=raw:10:/d/xy", "w", "a→b copy", "vda:COPY_LIVE-"},
	} {
		t.Run(name, func(t *testing.T) {
			result := ask(t, c.facts, c.ask)
			if got := strings.Replace(verdict(result), " a:ALREADY_THERE", "", 1); got != c.want {
				t.Errorf("got  %s\nwant %s\n%s", got, c.want, result.Refusal())
			}
			var disks []string
			for _, d := range result.Disks {
				one := d.GetTarget() + ":" + strings.TrimPrefix(d.GetAction().String(), "DISK_ACTION_")
				if d.GetRemoveSource() {
					one += "-"
				}
				disks = append(disks, one)
			}
			if got := strings.Join(disks, " "); got != c.disks {
				t.Errorf("disks %q, want %q", got, c.disks)
			}
		})
	}
}

func TestQuestions(t *testing.T) {
	const facts = "node a 16 8\nnode b 16 8 cpu=h\nnode c 16 8 cpu=h\nnode d 16 8 cpu=k cordoned\nnode e 16 8 cpu=l\nnode f 16 8 cpu=m\nvm w a 2 cpu=g\ncpu g l yes"
	result := ask(t, facts, "w cpus")
	want := []Question{{"b", "g", "h"}, {"f", "g", "m"}}
	if len(result.Questions) != 2 || result.Questions[0] != want[0] || result.Questions[1] != want[1] || result.Target != "e" {
		t.Errorf("to %s, asks %v, want %v", result.Target, result.Questions, want)
	}
}

// What a tenant is told names no VM of another.
func TestATenantSeesNoOthers(t *testing.T) {
	const facts = "node a 16 8\nnode b 16 8 fs=/d:l:9\nvm w a 2 uuid=1 tenant=t copy=raw:1:/d/x:ro\nvm w b 1 uuid=secret tenant=u\n" +
		"vm v b 1 uuid=hidden tenant=u off copy=raw:1:/d/x"
	text := func(line string) string {
		result := ask(t, facts, line)
		if result.Allowed || !result.Has(NameClash) && result.Target != "" {
			t.Errorf("%s: %s", line, verdict(result))
		}
		return result.Refusal()
	}
	if got := text("1 tenant=t"); strings.Contains(got, "secret") || strings.Contains(got, "hidden") {
		t.Errorf("the tenant is told %q", got)
	}
	if got := text("1"); !strings.Contains(got, "secret") || !strings.Contains(got, "hidden") {
		t.Errorf("the operator is told %q", got)
	}
	known, unknown := ask(t, facts, "secret tenant=t"), ask(t, facts, "nothing tenant=t")
	if a, b := known.Refusal(), unknown.Refusal(); strings.ReplaceAll(a, "secret", "") != strings.ReplaceAll(b, "nothing", "") {
		t.Errorf("%q of another tenant's VM, %q of none", a, b)
	}
}

func TestReasonsHaveTheFigures(t *testing.T) {
	for facts, want := range map[string]string{
		"node b 16 8 cpus=4\nvm w a 2 vcpus=5":                                          "VM w has 5 CPUs and the node has 4",
		"node b 16 8 virt=qemu\nvm w a 2 virt=kvm":                                      "VM w is of type kvm, and libvirt there runs qemu",
		"node b 16 8 net=x net=y\nvm w a 2 nic=bridge:br7":                              "needs the bridge br7; the node has x, y",
		"node b 16 8 fs=/d:l:10\nvm w a 2 copy=raw:10:/d/x":                             "need 10.5 GiB at /d (5 % slack included) and 10.0 GiB is available there, of which 0 MiB is promised",
		"node b 16 8\nvm w a 2 anti=g\nvm x b 1 anti=g\nvm y b 1 anti=g":                "must not share a node with others of group g: x is on b, y is on b",
		"node b 16 8 rack=7\nnode c 16 8 rack=7\nvm w a 2 anti=g\nvm x c 1 anti=g:rack": "b: VM w must not share the rack 7 with others of group g: x is on c",
		"node b 16 8\nnode c 16 8 rack=7\nvm w a 2 anti=g\nvm x c 1 anti=g:rack":        "b: VM w must not share a rack (which rack is not known of b) with",
	} {
		result := ask(t, "node a 16 8\n"+facts, "w")
		if got := result.Refusal(); !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

func TestScoreIsTheSumOfItsParts(t *testing.T) {
	result := ask(t, "node a 16 8\nnode b 16 8 load=0.25 fs=/d:l:20\nvm w a 2 copy=raw:10:/d/x", "w")
	var sum, weights float64
	values := map[string]float64{}
	for _, p := range result.Nodes[0].Parts {
		sum, weights, values[p.Name] = sum+p.Weight*p.Value, weights+p.Weight, p.Value
	}
	if sum != result.Nodes[0].Score || weights != 100 {
		t.Errorf("parts add up to %g of %g, the score is %g", sum, weights, result.Nodes[0].Score)
	}
	if values["cpu"] != 0.75 || values["memory"] != 5.75/16 || values["affinity"] != 1 || values["disk"] < 0.47 || values["disk"] > 0.48 {
		t.Errorf("%v", values)
	}
}

// The places of disks are found without decoding: what is found must be what
// decoding would find.
func TestPlacesOfLocalDisksAreFoundInEncodedDomains(t *testing.T) {
	domain := &agentv1.Domain{Uuid: "u", Name: "/srv/name", Vcpus: 2, Disks: []*debvisorv1.VMDisk{
		{Target: "vda", Type: "file", Source: "/srv/a.qcow2", Format: "qcow2", CapacityBytes: 1 << 40},
		{Target: "vdb", Type: "block", Source: "/dev/vg/b", StorageId: "local:m:1", ReadOnly: true, Inode: 9},
		{Target: "vdc", Type: "file", Source: "/shared/c.raw", Shared: true},
		{Target: "vdd", Type: "network", Source: "pool/d"},
		{Target: "sda", Type: "file"},
	}}
	var want []string
	for _, d := range domain.GetDisks() {
		if d.GetSource() != "" && !d.GetShared() && d.GetType() != "network" {
			want = append(want, d.GetSource())
		}
	}
	encoded := encode(t, domain)
	if got := localPaths(encoded); len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	for n := range encoded {
		localPaths(encoded[:n]) // whatever it finds, it ends
	}
}
