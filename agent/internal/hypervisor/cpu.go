package hypervisor

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	modePassthrough = "host-passthrough"
	modeMaximum     = "maximum"
	modeHostModel   = "host-model"
	// maxCPU bounds a description that is compared, bytes of XML.
	maxCPU = 64 << 10
	// maxDetail bounds what is told of libvirt's words, bytes.
	maxDetail = 1 << 10
)

// cpus are the descriptions that domains' hashes refer to. It is safe for
// concurrent use.
type cpus struct {
	mu    sync.Mutex
	known map[string]*agentv1.CPUDescription
}

// CPU is the description with that hash, which a domain of the last listing, or
// one looked at since, refers to.
func (h *Hypervisor) CPU(hash string) (*agentv1.CPUDescription, bool) {
	h.cpus.mu.Lock()
	defer h.cpus.mu.Unlock()
	d, ok := h.cpus.known[hash]
	return d, ok
}

// keep remembers a description and gives its hash; nil: the guest asks for
// nothing in particular.
func (c *cpus) keep(d *agentv1.CPUDescription) string {
	if d == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]*agentv1.CPUDescription{}
	}
	if c.known[d.GetHash()] == nil {
		c.known[d.GetHash()] = d
	}
	return d.GetHash()
}

// forgetBut leaves only what those domains refer to.
func (c *cpus) forgetBut(domains []*agentv1.Domain) {
	used := map[string]bool{}
	for _, d := range domains {
		used[d.GetCpuHash()] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for hash := range c.known {
		if !used[hash] {
			delete(c.known, hash)
		}
	}
}

// describeCPU tells what a guest needs of a CPU. The definition is the one that
// a migration would carry. A guest that has the whole of its host's CPU needs
// that one: host is the CPU that this hypervisor gives such a guest, and goes
// into the description in place of a name; nil: it is not known, and such a
// guest then fits nowhere. One that is shut off and asks for whatever its host
// has asks for nothing.
func describeCPU(def libvirtxml.Domain, active bool, host *libvirtxml.DomainCPU) (*agentv1.CPUDescription, error) {
	cpu := def.CPU
	if cpu == nil || cpu.Model == nil && (cpu.Mode == "" || cpu.Mode == "custom") {
		return nil, nil
	}
	whole := cpu.Mode == modePassthrough || cpu.Mode == modeMaximum
	if !active && (whole || cpu.Mode == modeHostModel) {
		return nil, nil
	}
	needs := *cpu
	needs.Topology, needs.Numa, needs.Cache = nil, nil, nil // no matter of the host's CPU
	if whole && host != nil {
		needs.Model, needs.Vendor, needs.Features = host.Model, host.Vendor, host.Features
	}
	needs.Features = slices.Clone(needs.Features)
	slices.SortStableFunc(needs.Features, func(a, b libvirtxml.DomainCPUFeature) int { return cmp.Compare(a.Name, b.Name) })
	text, err := xml.Marshal(needs)
	if err != nil {
		return nil, fmt.Errorf("writing the CPU's description: %w", err)
	}
	d := &agentv1.CPUDescription{Xml: string(text), VirtType: def.Type}
	if def.OS != nil && def.OS.Type != nil {
		d.Arch = def.OS.Type.Arch
	}
	d.Hash = hashOf(d.GetXml(), d.GetArch(), d.GetVirtType())
	return d, nil
}

// hashOf is the SHA-256 of words, in hex.
func hashOf(words ...string) string {
	sum := sha256.New()
	for _, w := range words {
		_, _ = io.WriteString(sum, w+"\x00") // a hash never fails
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// CompareCPU tells whether this host's hypervisor could give a guest the CPU
// described. A guest that has the whole of its host's CPU needs the very same.
// Its error means that there is no verdict.
func (h *Hypervisor) CompareCPU(ctx context.Context, d *agentv1.CPUDescription) (*agentv1.CPUComparison, error) {
	if d.GetXml() == "" {
		return &agentv1.CPUComparison{Compatible: true}, nil
	}
	cpu, whole, err := inLibvirtsTerms(d)
	if err != nil {
		return nil, err
	}
	refused, err := patient(ctx, h, emulatorTimeout, "comparing a CPU", func(c *libvirt.Connect) (*agentv1.CPUComparison, error) {
		_, err := c.CompareHypervisorCPU("", d.GetArch(), "", d.GetVirtType(), cpu, libvirt.CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
		if v := verdict(err); v != nil {
			return v, nil
		}
		return nil, err
	})
	switch {
	case err != nil:
		return nil, err
	case refused != nil:
		return refused, nil
	case whole && !h.provides(d.GetVirtType(), cpu):
		return &agentv1.CPUComparison{Detail: "the guest has the whole of its host's CPU, and this host's is another, which provides more"}, nil
	default:
		return &agentv1.CPUComparison{Compatible: true}, nil
	}
}

// provides tells whether this host gives a guest of that type, which asks for
// all, the very CPU described. libvirt's comparison does not tell: to it, a
// feature that the guest must not have is no difference.
func (h *Hypervisor) provides(kind, cpu string) bool {
	host := h.hostCPU(kind)
	if host == nil {
		return false
	}
	own, err := describeCPU(libvirtxml.Domain{Type: kind, CPU: &libvirtxml.DomainCPU{Mode: modePassthrough}}, true, host)
	if err != nil {
		return false
	}
	text, _, err := inLibvirtsTerms(own)
	return err == nil && text == cpu
}

// inLibvirtsTerms gives a description as libvirt compares it: libvirt takes
// every host-passthrough for compatible, so such a one is compared by the model
// and the features that its host has put in.
func inLibvirtsTerms(d *agentv1.CPUDescription) (text string, whole bool, err error) {
	var cpu libvirtxml.DomainCPU
	if len(d.GetXml()) > maxCPU {
		return "", false, errdefs.Field("cpu.xml", fmt.Sprintf("%d bytes", len(d.GetXml())), fmt.Sprintf("at most %d bytes", maxCPU))
	}
	if err := xml.Unmarshal([]byte(d.GetXml()), &cpu); err != nil {
		return "", false, errdefs.Field("cpu.xml", shorten(d.GetXml(), 80), "libvirt's <cpu> element")
	}
	if cpu.Mode != modePassthrough && cpu.Mode != modeMaximum {
		return d.GetXml(), false, nil
	}
	if cpu.Model == nil {
		return "", true, errdefs.New(errdefs.FailedPrecondition, "CPU_UNKNOWN", "the guest has the whole of its host's CPU, which its host's libvirt does not tell")
	}
	whole = true
	cpu.Mode, cpu.Match, cpu.Check, cpu.Migratable = "custom", "exact", "", ""
	b, err := xml.Marshal(cpu)
	return string(b), whole, err
}

// verdict reads a refusal out of libvirt's error; nil: it is none. That libvirt
// does not know the model, or has no hypervisor for it, is one.
func verdict(err error) *agentv1.CPUComparison {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return nil
	}
	switch {
	case e.Code == libvirt.ERR_CPU_INCOMPATIBLE, e.Code == libvirt.ERR_CONFIG_UNSUPPORTED, e.Code == libvirt.ERR_INVALID_ARG,
		e.Code == libvirt.ERR_INTERNAL_ERROR && strings.Contains(e.Message, "Unknown CPU"):
		return &agentv1.CPUComparison{Detail: oneLine(e.Message)}
	}
	return nil
}

// oneLine cleans libvirt's words: "the CPU is incompatible with host CPU: Host
// CPU does not provide required features: avx512f" says it twice.
func oneLine(words string) string {
	words = strings.Join(strings.Fields(strings.ToValidUTF8(words, "?")), " ")
	for _, prefix := range []string{"the CPU is incompatible with host CPU: ", "internal error: ", "unsupported configuration: ", "invalid argument: "} {
		words = strings.TrimPrefix(words, prefix)
	}
	return shorten(words, maxDetail)
}

// shorten cuts a text at a number of bytes, between two characters.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-len("…")], "") + "…"
}
