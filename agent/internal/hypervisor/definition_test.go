package hypervisor

import (
	"fmt"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const definedUUID = "22222222-0000-0000-0000-000000000001"

// bare is a VM with those parts of its <os> and those devices.
func bare(os, devices string) string {
	return fmt.Sprintf(`<domain type='qemu'><name>defined</name><uuid>%s</uuid><memory unit='MiB'>16</memory>
<metadata><own:mark xmlns:own='urn:own'>kept</own:mark></metadata>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>%s</os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/zvol/tank/a'/><target dev='vda'/></disk>%s</devices></domain>`,
		definedUUID, os, devices)
}

// TestDefinitions: what is told of definitions can be made again elsewhere, has no
// secrets, and says what it cannot do.
func TestDefinitions(t *testing.T) {
	if !withoutKVM(t) {
		return
	}
	h := qemuDriver(t)
	told := func(text string) (*agentv1.Domain, *agentv1.DomainDefinition) {
		t.Helper()
		if err := h.Define(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		list, err := h.Domains(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		d, _ := h.Definition(definedUUID)
		if d.GetHash() != list[0].GetDefinitionHash() {
			t.Errorf("the domain refers to %q, the definition is %q", list[0].GetDefinitionHash(), d.GetHash())
		}
		return list[0], d
	}
	t.Run("secrets", func(t *testing.T) {
		_, d := told(bare("", `<graphics type='vnc' passwd='secret12'/><graphics type='spice' passwd='secret34' passwdValidTo='2100-01-01T00:00:00'/><graphics type='vnc'/>`))
		if strings.Contains(d.GetXml(), "secret") || strings.Count(d.GetXml(), outdated) != 2 || !strings.Contains(d.GetXml(), "kept") {
			t.Errorf("told is %s", d.GetXml())
		}
		again, err := Redefined(d.GetXml(), definedUUID, []Replaced{{"vda", "/dev/zvol/tank/a", "/dev/zvol/copies/a"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Define(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		secret, err := onDomain(t.Context(), h, "asking", definedUUID, func(d *libvirt.Domain) (string, error) {
			return d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		var def libvirtxml.Domain
		if err := def.Unmarshal(secret); err != nil {
			t.Fatal(err)
		}
		var passwords []string
		for _, c := range consoles(&def) {
			passwords = append(passwords, *c.password)
		}
		if len(passwords) != 3 || len(passwords[0]) != 8 || len(passwords[1]) != 8 || passwords[0] == passwords[1] || passwords[2] != "" {
			t.Errorf("the passwords are %q", passwords)
		}
		if def.Devices.Disks[0].Source.Block.Dev != "/dev/zvol/copies/a" || !strings.Contains(secret, "kept") {
			t.Errorf("made again it is %s", secret)
		}
	})
	t.Run("too large", func(t *testing.T) {
		d, def := told(strings.Replace(bare("", ""), "kept", strings.Repeat("x", maxDefinition), 1))
		if def != nil || d.GetDefinitionHash() != "" || len(d.GetBoundToHost()) != 1 || !strings.Contains(d.GetBoundToHost()[0], "bytes") {
			t.Errorf("%v has the definition %.100s", d, def.GetXml())
		}
	})
	t.Run("bound to its host", func(t *testing.T) {
		d, def := told(bare(
			`<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/defined.fd</nvram>`,
			`<serial type='pipe'><source path='/run/pipe'/></serial>`+
				`<serial type='dev'><source path='/dev/ttyS0'/></serial>`,
		))
		for _, want := range []string{"/var/lib/libvirt/qemu/nvram/defined.fd", "/run/pipe", "serial /dev/ttyS0"} {
			if !strings.Contains(strings.Join(d.GetBoundToHost(), "|"), want) {
				t.Errorf("%q does not speak of %s", d.GetBoundToHost(), want)
			}
		}
		if def == nil || len(d.GetBoundToHost()) != 3 {
			t.Errorf("%q; the definition is %s", d.GetBoundToHost(), def.GetXml())
		}
	})
	if d, _ := told(bare("", "<serial type='file'><source path='/tmp/log'/></serial>")); len(d.GetBoundToHost()) > 0 {
		t.Errorf("a log on the host binds it: %q", d.GetBoundToHost())
	}
	if err := h.Undefine(t.Context(), definedUUID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Domains(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, ok := h.Definition(definedUUID); ok {
		t.Errorf("of a VM that is gone there is %s", d.GetXml())
	}
}

// TestBoundByItsTPM: libvirt lets nobody define one where there is no swtpm.
func TestBoundByItsTPM(t *testing.T) {
	for _, backend := range []string{"emulator' version='2.0", "external", "passthrough"} {
		var def libvirtxml.Domain
		if err := def.Unmarshal(bare("", `<tpm model='tpm-crb'><backend type='`+backend+`'/></tpm>`)); err != nil {
			t.Fatal(err)
		}
		if why := boundToHost(def); len(why) != 1 {
			t.Errorf("a TPM of type %s: %q", backend, why)
		}
	}
}

func TestRedefinedRefuses(t *testing.T) {
	good := bare("", "")
	for name, c := range map[string]struct {
		text, uuid string
		disk       Replaced
	}{
		"no XML":            {"<domain", definedUUID, Replaced{"vda", "/dev/zvol/tank/a", "/x"}},
		"another VM":        {good, "22222222-0000-0000-0000-000000000002", Replaced{"vda", "/dev/zvol/tank/a", "/x"}},
		"no such disk":      {good, definedUUID, Replaced{"vdb", "/dev/zvol/tank/a", "/x"}},
		"on another device": {good, definedUUID, Replaced{"vda", "/dev/zvol/tank/b", "/x"}},
	} {
		if text, err := Redefined(c.text, c.uuid, []Replaced{c.disk}); err == nil || !strings.Contains(err.Error(), CodeDefinition) && !strings.Contains(fmt.Sprint(err), "defin") {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	// What was replaced before may be replaced again.
	if _, err := Redefined(good, definedUUID, []Replaced{{"vda", "/dev/zvol/tank/was", "/dev/zvol/tank/a"}}); err != nil {
		t.Error(err)
	}
}
