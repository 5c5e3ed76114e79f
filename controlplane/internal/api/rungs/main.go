// Command rungs serves one answer on several ports of one process: bare, and
// behind one stage after another of the chain that calls to a replica pass.
// The bench drives it to measure what each stage costs. It is no part of the
// product; it lies here since the stages are internal to the control plane.
//
// It writes its certificates under the directory that it is given, prints one
// line of JSON that says what it serves, and then answers each line of its
// input with what the process has used so far, for the line "names" after
// calls of a million names have been counted. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/limit"
)

func main() {
	dir := flag.String("dir", "", "directory for certificates and the audit log")
	vms := flag.Int("vms", 10, "how many VMs the answer lists")
	profile := flag.String("profile", "", "file for a profile of the processor time; empty: none")
	flag.Parse()
	if err := profiled(*profile, func() error { return run(*dir, *vms) }); err != nil {
		fmt.Fprintln(os.Stderr, "rungs:", err)
		os.Exit(1)
	}
}

// profiled runs, and writes a profile of it to a file.
func profiled(path string, run func() error) error {
	if path == "" {
		return run()
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("making the profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return fmt.Errorf("starting the profile: %w", err)
	}
	err = run()
	pprof.StopCPUProfile()
	return errors.Join(err, f.Close())
}

// Used is what the process has used since its start.
type Used struct {
	Mallocs uint64 `json:"mallocs"`
	CPU     int64  `json:"cpu_ns"`
}

func run(dir string, vms int) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	h, err := newHouse(dir, vms)
	if err != nil {
		return err
	}
	for _, component := range []func(context.Context) error{h.trail.Run, h.chain.Run} {
		go func() { _ = component(ctx) }() // for as long as the process lives
	}
	if err := h.serve(ctx); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(h.offer); err != nil {
		return fmt.Errorf("telling what is served: %w", err)
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "names" {
			if err := h.countNames(); err != nil {
				return err
			}
		}
		used, err := used()
		if err != nil {
			return err
		}
		if err := out.Encode(used); err != nil {
			return fmt.Errorf("telling what was used: %w", err)
		}
	}
	return nil
}

// countNames counts one call of each of a million names.
func (h *house) countNames() error {
	for i := range 1_000_000 {
		if err := h.limit.Take("name-"+strconv.Itoa(i), limit.Rate{}, time.Now()); err != nil {
			return fmt.Errorf("a name's first call: %w", err)
		}
	}
	return nil
}

func used() (Used, error) {
	var cpu syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &cpu); err != nil {
		return Used{}, fmt.Errorf("asking for the processor time: %w", err)
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return Used{Mallocs: memory.Mallocs, CPU: cpu.Utime.Nano() + cpu.Stime.Nano()}, nil
}
