package inventory

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// maxInterfaces bounds what is told.
	maxInterfaces = 128
	// ethernet is what the kernel calls such a link (ARPHRD_ETHER).
	ethernet = "1"
)

// addLinks adds what the host knows of its own network: the interfaces that
// macvtap may use, and the speed of the one that carries migrations.
func (c *Collector) addLinks(to *debvisorv1.NodeCapabilities) {
	to.HostInterfaces = c.host.interfaces()
	host, _, err := net.SplitHostPort(c.cfg.PeerAddress)
	if err != nil {
		return
	}
	if name := interfaceOf(host); name != "" {
		to.LinkBytesPerSecond = c.host.linkSpeed(name)
	}
}

// interfaceOf is the interface that holds an address; empty: none does.
func interfaceOf(address string) string {
	ip := net.ParseIP(address)
	all, err := net.Interfaces()
	if ip == nil || err != nil {
		return ""
	}
	for _, i := range all {
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
				return i.Name
			}
		}
	}
	return ""
}

// interfaces are the Ethernet links of the host that belong to nothing else:
// not a guest's end, nor part of a bridge or a bond.
func (h host) interfaces() []string {
	entries, err := os.ReadDir(h.path("sys/class/net"))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		dir := filepath.Join(h.path("sys/class/net"), e.Name())
		if word(dir, "type") != ethernet || there(dir, "tun_flags") || there(dir, "brport") || there(dir, "bonding_slave") || strings.HasPrefix(e.Name(), "macvtap") {
			continue
		}
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names[:min(len(names), maxInterfaces)]
}

// linkSpeed is what an interface can do, bytes a second; 0: unknown. A bridge
// that does not tell is as fast as the fastest link that is part of it.
func (h host) linkSpeed(name string) uint64 {
	dir := filepath.Join(h.path("sys/class/net"), name)
	if mbit, err := strconv.ParseInt(word(dir, "speed"), 10, 64); err == nil && mbit > 0 {
		return uint64(mbit) * 1_000_000 / 8
	}
	parts, _ := os.ReadDir(filepath.Join(dir, "brif"))
	var fastest uint64
	for _, p := range parts {
		mbit, err := strconv.ParseInt(word(filepath.Join(h.path("sys/class/net"), p.Name()), "speed"), 10, 64)
		if err == nil && mbit > 0 && !there(filepath.Join(h.path("sys/class/net"), p.Name()), "tun_flags") {
			fastest = max(fastest, uint64(mbit)*1_000_000/8)
		}
	}
	return fastest
}

func word(dir, file string) string {
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return "" // of a link that is down, the kernel refuses to tell the speed
	}
	return strings.TrimSpace(string(content))
}

func there(dir, file string) bool {
	_, err := os.Lstat(filepath.Join(dir, file))
	return err == nil
}
