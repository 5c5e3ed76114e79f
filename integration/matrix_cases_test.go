package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A fault is one cell of the matrix: what is struck, how, at which moment of a move, of a guest with which disk.
type fault struct {
	victim string
	signal string
	phase  string
	disk   string
}

// The signals: SIGKILL, and SIGSTOP with SIGCONT standing seconds later.
const (
	killed  = "killed"
	stopped = "stopped"
)

// The phases of a move, each begun when a process of ours stands at its failpoint of that name.
const (
	accepted   = "accepted"       // the task is accepted; of the others: the target is ready, nothing is sent
	copying    = "copying"        // memory is being copied
	switched   = "switched-over"  // the copy is whole
	concluding = "before-outcome" // this side has done its task, nobody knows yet
)

// The disks: on storage that both nodes see, and a file of the node's own that moves with the guest.
const (
	sharedDisk = "shared"
	copiedDisk = "copied"
)

// The victims.
const (
	theLeader      = "leader"
	sourceAgent    = "source-agent"
	targetAgent    = "target-agent"
	sourceLibvirtd = "source-libvirtd"
	targetLibvirtd = "target-libvirtd"
	sourceTunnel   = "source-tunnel"
	targetTunnel   = "target-tunnel"
	sourceQEMU     = "source-qemu"
	targetQEMU     = "target-qemu"
)

// covering is the part of the matrix that go test runs: every victim in every phase in which there is one, and every pair of a
// victim or a phase with a signal, with a disk, and of a signal with a disk. Where a cell is empty there is nothing to strike: the
// source's tunnel begins with the sending, tunnels end before outcomes, the target's QEMU begins with the copying, and
// the source's is gone once the copy is whole.
const covering = `
                 accepted        copying         switched-over   before-outcome
leader           killed/shared   killed/copied   stopped/shared  killed/copied
source-agent     killed/copied   stopped/shared  killed/shared   killed/copied
target-agent     stopped/copied  killed/shared   killed/copied   killed/shared
source-libvirtd  killed/shared   killed/copied   killed/shared   stopped/copied
target-libvirtd  killed/copied   stopped/shared  killed/shared   killed/copied
source-tunnel    -               killed/copied   stopped/shared  -
target-tunnel    killed/shared   stopped/copied  killed/shared   -
source-qemu      stopped/shared  killed/copied   -               -
target-qemu      -               killed/shared   stopped/copied  killed/copied
`

// cells reads the table.
func cells() []fault {
	lines := strings.Split(strings.TrimSpace(covering), "\n")
	phases := strings.Fields(lines[0])
	var all []fault
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		for i, cell := range fields[1:] {
			if signal, disk, ok := strings.Cut(cell, "/"); ok {
				all = append(all, fault{fields[0], signal, phases[i], disk})
			}
		}
	}
	return all
}

// wholeMatrix is the whole matrix: every cell of the table with both signals and both disks.
func wholeMatrix() []fault {
	var all []fault
	for _, f := range cells() {
		for _, signal := range []string{killed, stopped} {
			for _, disk := range []string{sharedDisk, copiedDisk} {
				all = append(all, fault{f.victim, signal, f.phase, disk})
			}
		}
	}
	return all
}

// String names the case.
func (f fault) String() string {
	return strings.Join([]string{f.victim, f.signal, f.phase, f.disk}, ",")
}

// campaign is what one run of the matrix does.
type campaign struct {
	faults []fault
	seed   uint64
	until  time.Time // zero: no limit
	done   []string  // names of cases that are left out
}

// left are the cases that are not left out.
func left[T fmt.Stringer](c campaign, cases []T) []T {
	return slices.DeleteFunc(cases, func(one T) bool { return slices.Contains(c.done, one.String()) })
}

// campaignOf reads what to run from the environment, as make chaos sets it. DEBVISOR_MATRIX=full is the whole matrix, else
// the covering part; DEBVISOR_MATRIX_SEED gives the order and the delays; DEBVISOR_MATRIX_SKIP is a file with the names of cases
// that are left out, one a line; DEBVISOR_MATRIX_UNTIL is when no further case begins, in Unix seconds.
func campaignOf(t *testing.T) campaign {
	t.Helper()
	c := campaign{faults: cells(), seed: 1}
	if os.Getenv("DEBVISOR_MATRIX") == "full" {
		c.faults = wholeMatrix()
	}
	number := func(name string) (n uint64) {
		text := os.Getenv(name)
		if text == "" {
			return 0
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s=%q: it should be a number", name, text)
		}
		return n
	}
	if seed := number("DEBVISOR_MATRIX_SEED"); seed != 0 {
		c.seed = seed
	}
	if until := number("DEBVISOR_MATRIX_UNTIL"); until != 0 {
		c.until = time.Unix(int64(until), 0)
	}
	if path := os.Getenv("DEBVISOR_MATRIX_SKIP"); path != "" {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c.done = strings.Fields(string(raw))
	}
	c.faults = left(c, c.faults)
	random := rand.New(rand.NewPCG(c.seed, 0))
	random.Shuffle(len(c.faults), func(i, j int) { c.faults[i], c.faults[j] = c.faults[j], c.faults[i] })
	return c
}

// delay is how long after its phase has begun a case strikes.
func (c campaign) delay(f fault) time.Duration {
	var n uint64
	for _, b := range []byte(f.String()) {
		n = n*31 + uint64(b)
	}
	return time.Duration(rand.New(rand.NewPCG(c.seed, n)).IntN(300)) * time.Millisecond
}

// pairs are those of which the covering part has each.
func (f fault) pairs() []string {
	return []string{
		f.victim + "+" + f.signal, f.victim + "+" + f.disk, f.phase + "+" + f.signal, f.phase + "+" + f.disk,
		f.signal + "+" + f.disk, f.victim + "+" + f.phase,
	}
}

// TestCovering holds what is said of the covering part against it.
func TestCovering(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range cells() {
		for _, pair := range f.pairs() {
			seen[pair] = true
		}
	}
	for _, f := range wholeMatrix() {
		for _, pair := range f.pairs() {
			if !seen[pair] {
				t.Errorf("no case has %s", pair)
			}
		}
	}
	if n := len(wholeMatrix()); n != 120 {
		t.Errorf("the whole matrix has %d cases", n)
	}
}
