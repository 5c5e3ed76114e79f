package hypervisor

import (
	"fmt"
	"slices"
	"sync"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// maxDefinition bounds a definition that is told, bytes: a guest with a hundred
	// disks has some sixty thousand.
	maxDefinition = 256 << 10
	// outdated is until when a password was good that was left out: of a console
	// without a password and without this, nobody would be asked for one.
	outdated = "1970-01-01T00:00:01"
)

// definitions are what domains' definition hashes refer to, by UUID. It is safe
// for concurrent use.
type definitions struct {
	mu    sync.Mutex
	known map[string]*agentv1.DomainDefinition
}

// Definition is the persistent definition, without its secrets, of a domain of the
// last listing or one looked at since.
func (h *Hypervisor) Definition(uuid string) (*agentv1.DomainDefinition, bool) {
	h.definitions.mu.Lock()
	defer h.definitions.mu.Unlock()
	d, ok := h.definitions.known[uuid]
	return d, ok
}

// keep remembers a domain's definition; one without a hash is none.
func (s *definitions) keep(d *agentv1.DomainDefinition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case d.GetHash() == "":
		delete(s.known, d.GetUuid())
	case s.known == nil:
		s.known = map[string]*agentv1.DomainDefinition{d.GetUuid(): d}
	case s.known[d.GetUuid()].GetHash() != d.GetHash():
		s.known[d.GetUuid()] = d
	}
}

// forgetBut leaves only those domains' definitions.
func (s *definitions) forgetBut(domains []*agentv1.Domain) {
	there := map[string]bool{}
	for _, d := range domains {
		there[d.GetUuid()] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for uuid := range s.known {
		if !there[uuid] {
			delete(s.known, uuid)
		}
	}
}

// tellDefinition notes a domain's persistent definition, and why it would not do
// to bring the domain back from on another host.
func (h *Hypervisor) tellDefinition(d *libvirt.Domain, out *agentv1.Domain) error {
	told := &agentv1.DomainDefinition{Uuid: out.GetUuid()}
	if out.GetPersistent() {
		text, bound, err := persistent(d)
		if err != nil {
			return err
		}
		if len(text) > maxDefinition {
			bound = append(bound, fmt.Sprintf("its definition has %d bytes; %d are kept outside of its host at most", len(text), maxDefinition))
		} else {
			told.Xml, told.Hash = text, hashOf(text)
		}
		out.DefinitionHash, out.BoundToHost = told.GetHash(), bound
	}
	h.definitions.keep(told)
	return nil
}

// persistent is the definition that a domain is next started from, without its
// secrets. libvirt leaves them out by itself, and with them that there were any.
func persistent(d *libvirt.Domain) (text string, bound []string, err error) {
	if text, err = d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE); err != nil {
		return "", nil, err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil {
		return "", nil, fmt.Errorf("reading the persistent definition: %w", err)
	}
	bound = boundToHost(def)
	if len(consoles(&def)) == 0 {
		return text, bound, nil
	}
	secret, err := d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
	if err != nil {
		return "", nil, err
	}
	text, err = withoutSecrets(text, secret)
	return text, bound, err
}

// withoutSecrets gives a definition in which passwords of consoles are left out,
// and said to be outdated. shown is the same without secrets, as libvirt tells it.
func withoutSecrets(shown, secret string) (string, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(secret); err != nil {
		return "", fmt.Errorf("reading the persistent definition: %w", err)
	}
	left := false
	for _, c := range consoles(&def) {
		if *c.password != "" {
			*c.password, *c.until, left = "", outdated, true
		}
	}
	if !left {
		return shown, nil
	}
	return def.Marshal()
}

// console is a graphical console that may ask for a password.
type console struct{ password, until *string }

func consoles(def *libvirtxml.Domain) (all []console) {
	if def.Devices == nil {
		return nil
	}
	for i := range def.Devices.Graphics {
		g := &def.Devices.Graphics[i]
		switch {
		case g.VNC != nil:
			all = append(all, console{&g.VNC.Passwd, &g.VNC.PasswdValidTo})
		case g.Spice != nil:
			all = append(all, console{&g.Spice.Passwd, &g.Spice.PasswdValidTo})
		}
	}
	return all
}

// boundToHost is what of a guest lies on its host besides its disks and its
// definition, or is the host's.
func boundToHost(def libvirtxml.Domain) (why []string) {
	if os := def.OS; os != nil && os.NVRam != nil {
		name := os.NVRam.NVRam
		if os.NVRam.Source != nil {
			_, name = source(os.NVRam.Source)
		}
		if os.NVRam.Source == nil || os.NVRam.Source.Network == nil {
			why = append(why, "its firmware's variables are in the host's file "+name)
		}
	}
	for _, name := range hostDevices(def) {
		why = append(why, "it uses a device of the host: "+name)
	}
	for _, dir := range sharedDirectories(def) {
		why = append(why, "it sees a directory of the host: "+dir)
	}
	if def.Devices == nil {
		return why
	}
	for _, t := range def.Devices.TPMs {
		if t.Backend != nil && (t.Backend.Emulator != nil || t.Backend.External != nil) {
			why = append(why, "its TPM's state is on the host")
		}
	}
	return append(why, pipes(def.Devices)...)
}

// pipes are named pipes of the host that must be there for the guest to start.
func pipes(devices *libvirtxml.DomainDeviceList) (why []string) {
	var sources []*libvirtxml.DomainChardevSource
	for _, d := range devices.Serials {
		sources = append(sources, d.Source)
	}
	for _, d := range devices.Consoles {
		sources = append(sources, d.Source)
	}
	for _, d := range devices.Channels {
		sources = append(sources, d.Source)
	}
	for _, s := range sources {
		if s == nil || s.Pipe == nil {
			continue
		}
		if reason := "it needs a named pipe of the host: " + s.Pipe.Path; !slices.Contains(why, reason) {
			why = append(why, reason)
		}
	}
	return why
}
