package inventory

import (
	"errors"
	"fmt"
	"strings"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// errNotAsked is why nothing is known of libvirt right after the start.
var errNotAsked = errors.New("libvirt has not been asked yet")

const (
	fullPct = 95
	// hungAfter is how long a measurement may be under way without being a
	// problem.
	hungAfter = 10 * time.Second
)

// Health is how the host is now; rtt is the round trip to the leader.
func (c *Collector) Health(rtt time.Duration) *debvisorv1.Health {
	now := time.Now()
	h := &debvisorv1.Health{
		NodeId:    &debvisorv1.NodeId{Id: c.cfg.Node},
		Overall:   debvisorv1.StatusCode_STATUS_OK,
		NetRttMs:  float64(rtt) / float64(time.Millisecond),
		Timestamp: &debvisorv1.Timestamp{Seconds: now.Unix(), Nanos: int32(now.Nanosecond())},
	}
	problem := func(code debvisorv1.StatusCode, format string, args ...any) {
		h.Overall = max(h.Overall, code)
		h.Problems = append(h.Problems, fmt.Sprintf(format, args...))
	}
	warn, bad := debvisorv1.StatusCode_STATUS_WARN, debvisorv1.StatusCode_STATUS_ERROR

	if err := c.isDown(); errors.Is(err, errNotAsked) {
		problem(warn, "%s", err)
	} else if err != nil {
		problem(bad, "libvirt does not answer: %s", strings.TrimPrefix(err.Error(), "libvirt does not answer: "))
	}
	if load, cpus, err := c.loadPerCPU(); err != nil {
		problem(warn, "%s", err)
	} else {
		h.CpuLoad = load / float64(cpus)
	}
	if total, available, err := c.host.memory(); err != nil {
		problem(warn, "%s", err)
	} else if h.MemUsedPct = 100 * float64(total-available) / float64(total); h.MemUsedPct >= fullPct {
		problem(warn, "%.0f %% of the memory is in use", h.MemUsedPct)
	}

	storage, under := c.storage.latest()
	h.DiskUsedPct = storage.fullest
	if under > hungAfter {
		problem(bad, "a file system that holds VMs has not answered for %s", under.Round(time.Second))
	}
	if storage.fullest >= fullPct {
		problem(warn, "the file system of %s is %.0f %% full", storage.path, storage.fullest)
	}
	for _, failed := range storage.failed {
		problem(warn, "%s", failed)
	}
	c.zfsHealth(problem)
	h.CephStatus = c.cephHealth(problem)
	return h
}

func (c *Collector) loadPerCPU() (load float64, cpus uint32, err error) {
	if cpus, err = c.host.cpus(); err != nil {
		return 0, 0, err
	}
	load, err = c.host.load()
	return load, cpus, err
}
