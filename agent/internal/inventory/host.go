package inventory

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// host reads what the kernel tells.
type host struct{ root string }

func (h host) path(p string) string { return filepath.Join("/", h.root, p) }

// BootID is the kernel's id of this boot.
func BootID() (string, error) {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// cpus is how many are online.
func (h host) cpus() (uint32, error) {
	content, err := os.ReadFile(h.path("sys/devices/system/cpu/online"))
	if err != nil {
		return 0, fmt.Errorf("counting the CPUs: %w", err)
	}
	return countList(strings.TrimSpace(string(content)))
}

// countList counts what a list such as "0-3,6" names.
func countList(list string) (uint32, error) {
	var count uint32
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil || b < a {
			return 0, fmt.Errorf("counting the CPUs: %q is not a list", list)
		}
		count += uint32(b - a + 1)
	}
	return count, nil
}

// load is the load average over one minute.
func (h host) load() (float64, error) {
	content, err := os.ReadFile(h.path("proc/loadavg"))
	if err != nil {
		return 0, fmt.Errorf("reading the load: %w", err)
	}
	first, _, _ := strings.Cut(string(content), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the load: %w", err)
	}
	return load, nil
}

// memory is what there is and what could be had without swapping, bytes.
func (h host) memory() (total, available uint64, err error) {
	content, err := os.ReadFile(h.path("proc/meminfo"))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory: %w", err)
	}
	fields := map[string]*uint64{"MemTotal:": &total, "MemAvailable:": &available}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || fields[words[0]] == nil {
			continue
		}
		kib, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("reading the memory: %w", err)
		}
		*fields[words[0]] = kib << 10
	}
	if total == 0 || available > total {
		return 0, 0, fmt.Errorf("reading the memory: total %d, available %d bytes", total, available)
	}
	return total, available, nil
}
