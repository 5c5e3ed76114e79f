package hypervisor

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// hostFor is how long what libvirt told of the host and its emulators is
	// good: it takes libvirt a second or more to tell, and an upgrade has to be
	// noticed.
	hostFor = 15 * time.Minute
	// emulatorTimeout bounds a call for which libvirt asks an emulator: it starts
	// one, and waits for it.
	emulatorTimeout = 30 * time.Second
)

// host is what libvirt tells of the host and its emulators. It is not changed
// once stored.
type host struct {
	caps libvirtxml.Caps
	cpus map[string]*libvirtxml.DomainCPU // that a guest may have, by virt type; nil: not known yet
	at   time.Time
}

// Capabilities tells what the host and its hypervisor can do. What takes
// libvirt long is asked for once for each connection, and then every quarter of
// an hour; the CPU's hash comes later than the rest, and that it is there is
// told as a change of everything.
func (h *Hypervisor) Capabilities(ctx context.Context) (*debvisorv1.NodeCapabilities, error) {
	known := h.host.Load()
	if known == nil || time.Since(known.at) > hostFor {
		caps, err := call(ctx, h, "asking for the capabilities", capabilities)
		if err != nil {
			return nil, err
		}
		h.owner.Store(ownerIn(caps))
		now := &host{caps: caps, at: time.Now()}
		if known != nil {
			now.cpus = known.cpus // until they are known anew
		}
		h.host.Store(now)
		go h.learnCPUs(now) //nolint:contextcheck // it outlives who asked
		known = now
	} else if known.cpus == nil {
		go h.learnCPUs(known) //nolint:contextcheck // it outlives who asked
	}
	return call(ctx, h, "asking for the capabilities", func(c *libvirt.Connect) (*debvisorv1.NodeCapabilities, error) {
		out := &debvisorv1.NodeCapabilities{
			HostUuid: known.caps.Host.UUID, MachineTypes: machines(known.caps), Kernel: kernel(), VirtTypes: virtTypes(known.caps),
		}
		if cpu := known.caps.Host.CPU; cpu != nil {
			out.Arch, out.CpuModel, out.CpuVendor = cpu.Arch, cpu.Model, cpu.Vendor
		}
		if v, err := c.GetLibVersion(); err == nil {
			out.LibvirtVersion = version(v)
		}
		if v, err := c.GetVersion(); err == nil {
			out.QemuVersion = version(v)
		}
		var err error
		if out.Networks, err = networks(c); err != nil {
			return nil, err
		}
		if current := h.host.Load(); current != nil && current.cpus != nil {
			out.CpuHash, err = current.hash(out)
		}
		return out, err
	})
}

// learnCPUs asks for the CPUs that the host provides and has everything looked
// at again. It ends with the connection, or with its timeouts.
func (h *Hypervisor) learnCPUs(of *host) {
	if !h.learning.CompareAndSwap(false, true) {
		return
	}
	defer h.learning.Store(false)
	now := &host{caps: of.caps, at: of.at, cpus: map[string]*libvirtxml.DomainCPU{}}
	for _, kind := range virtTypes(of.caps) {
		cpu, err := patient(context.Background(), h, emulatorTimeout, "asking for the CPU that "+kind+" provides", func(c *libvirt.Connect) (*libvirtxml.DomainCPU, error) {
			return providedCPU(c, of.caps.Host.CPU.Arch, kind)
		})
		if err != nil {
			h.cfg.Log.Warn("what CPUs this host provides is not known", "error", err)
			return
		}
		now.cpus[kind] = cpu
	}
	if h.host.CompareAndSwap(of, now) {
		h.tell("")
	}
}

// providedCPU is the CPU that the hypervisor gives a guest which asks for its
// host's; nil: libvirt does not tell.
func providedCPU(c *libvirt.Connect, arch, kind string) (*libvirtxml.DomainCPU, error) {
	text, err := c.GetDomainCapabilities("", arch, "", kind, 0)
	if has(err, libvirt.ERR_NO_SUPPORT) || has(err, libvirt.ERR_INVALID_ARG) || has(err, libvirt.ERR_CONFIG_UNSUPPORTED) || has(err, libvirt.ERR_INTERNAL_ERROR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var caps libvirtxml.DomainCaps
	if err := caps.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("reading the domain capabilities: %w", err)
	}
	if caps.CPU == nil {
		return nil, nil
	}
	for _, mode := range caps.CPU.Modes {
		if mode.Name != modeHostModel || mode.Supported != "yes" || len(mode.Models) == 0 {
			continue
		}
		cpu := &libvirtxml.DomainCPU{
			Mode: "custom", Match: "exact", Vendor: mode.Vendor,
			Model: &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: mode.Models[0].Name},
		}
		for _, f := range mode.Features {
			cpu.Features = append(cpu.Features, libvirtxml.DomainCPUFeature(f))
		}
		return cpu, nil
	}
	return nil, nil
}

// hash is of all that libvirt's comparison of CPUs depends on.
func (k *host) hash(of *debvisorv1.NodeCapabilities) (string, error) {
	words := []string{of.GetArch(), of.GetLibvirtVersion(), of.GetQemuVersion()}
	for _, kind := range slices.Sorted(maps.Keys(k.cpus)) {
		text, err := xml.Marshal(k.cpus[kind])
		if err != nil {
			return "", fmt.Errorf("writing the host's CPU: %w", err)
		}
		words = append(words, kind, string(text))
	}
	return hashOf(words...), nil
}

// hostCPU is the CPU that a guest of that type gets which asks for its host's;
// nil: not known.
func (h *Hypervisor) hostCPU(kind string) *libvirtxml.DomainCPU {
	if known := h.host.Load(); known != nil {
		return known.cpus[kind]
	}
	return nil
}

// canonical is the name behind an alias such as q35, where libvirt has told.
func (h *Hypervisor) canonical(machine string) string {
	known := h.host.Load()
	if known == nil {
		return machine
	}
	for _, g := range known.caps.Guests {
		for _, m := range g.Arch.Machines {
			if m.Name == machine && m.Canonical != "" {
				return m.Canonical
			}
		}
	}
	return machine
}

// virtTypes are the types of domain that the host's own architecture has.
func virtTypes(caps libvirtxml.Caps) []string {
	var out []string
	for _, g := range caps.Guests {
		if caps.Host.CPU == nil || g.Arch.Name != caps.Host.CPU.Arch {
			continue
		}
		for _, d := range g.Arch.Domains {
			out = append(out, d.Type)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// owner is the user and group that QEMU runs as.
type owner struct{ uid, gid int }

// QEMUOwner tells the user and group that QEMU runs as, as libvirt last said:
// with each connection the inventory asks for the capabilities, which take
// libvirt a second where it looks at its emulators anew.
func (h *Hypervisor) QEMUOwner(ctx context.Context) (uid, gid int, err error) {
	if known := h.owner.Load(); known != nil {
		return known.uid, known.gid, nil
	}
	o, err := call(ctx, h, "asking who QEMU runs as", func(c *libvirt.Connect) (owner, error) {
		caps, err := capabilities(c)
		if err != nil {
			return owner{}, err
		}
		if found := ownerIn(caps); found != nil {
			h.owner.Store(found)
			return *found, nil
		}
		return owner{}, errors.New("libvirt does not tell: no dac security model")
	})
	return o.uid, o.gid, err
}

// ownerIn finds the owner in the capabilities; nil where they do not tell.
func ownerIn(caps libvirtxml.Caps) *owner {
	for _, model := range caps.Host.SecModel {
		if model.Name != "dac" {
			continue
		}
		for _, label := range model.Labels {
			if m := dacLabel.FindStringSubmatch(label.Value); m != nil {
				uid, _ := strconv.Atoi(m[1])
				gid, _ := strconv.Atoi(m[2])
				return &owner{uid, gid}
			}
		}
	}
	return nil
}

var dacLabel = regexp.MustCompile(`^\+(\d+):\+(\d+)$`)

func capabilities(c *libvirt.Connect) (libvirtxml.Caps, error) {
	var caps libvirtxml.Caps
	text, err := c.GetCapabilities()
	if err != nil {
		return caps, err
	}
	if err := caps.Unmarshal(text); err != nil {
		return caps, fmt.Errorf("reading the capabilities: %w", err)
	}
	return caps, nil
}

func machines(caps libvirtxml.Caps) []string {
	var out []string
	for _, g := range caps.Guests {
		if caps.Host.CPU == nil || g.Arch.Name != caps.Host.CPU.Arch {
			continue
		}
		for _, m := range g.Arch.Machines {
			out = append(out, m.Name)
			if m.Canonical != "" {
				out = append(out, m.Canonical)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// networks are libvirt's active networks and the host's bridges.
func networks(c *libvirt.Connect) ([]string, error) {
	var out []string
	list, err := c.ListAllNetworks(libvirt.CONNECT_LIST_NETWORKS_ACTIVE)
	if err != nil && !has(err, libvirt.ERR_NO_SUPPORT) {
		return nil, err
	}
	for i := range list {
		if name, err := list[i].GetName(); err == nil {
			out = append(out, name)
		}
		_ = list[i].Free()
	}
	bridges, _ := filepath.Glob("/sys/class/net/*/bridge")
	for _, b := range bridges {
		out = append(out, filepath.Base(filepath.Dir(b)))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// version reads libvirt's encoding: major*1,000,000 + minor*1,000 + release.
func version(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(release))
}
