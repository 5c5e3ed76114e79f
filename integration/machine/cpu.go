package machine

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A machine has one CPU, but its kernel and each of its programs are processes of the host that hand over to each other at every system
// call and page fault. Where they do so on one CPU of the host that takes a third less time than from one to another, unless the host
// has more to do than its CPUs can; so it is for machines that tests run in alone.

// lastCPU is the one that this process chose last: its machine may not be there to be counted yet.
var lastCPU struct {
	sync.Mutex
	cpu int
}

// quietCPU is one of this process's CPUs that the fewest machines of the host are on, of several the next after the last choice.
func quietCPU() (int, bool) {
	lastCPU.Lock()
	defer lastCPU.Unlock()
	var ours unix.CPUSet
	if unix.SchedGetaffinity(0, &ours) != nil {
		return 0, false
	}
	taken := map[int]int{}
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range names {
		if name, _ := os.ReadFile(path); string(name) != "keeper\n" {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		var on unix.CPUSet
		if pid == 0 || unix.SchedGetaffinity(pid, &on) != nil || on.Count() != 1 {
			continue
		}
		for cpu := range len(on) * 64 {
			if on.IsSet(cpu) {
				taken[cpu]++
			}
		}
	}
	best, found := 0, false
	for i := range len(ours) * 64 {
		cpu := (lastCPU.cpu + 1 + i) % (len(ours) * 64)
		if ours.IsSet(cpu) && (!found || taken[cpu] < taken[best]) {
			best, found = cpu, true
		}
	}
	lastCPU.cpu = best
	return best, found
}
