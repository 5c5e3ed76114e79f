package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// load is what a burst of calls took.
type load struct {
	calls      int
	elapsed    time.Duration
	serverCPU  time.Duration
	throughput float64 // calls a second
	cpuPerCall float64 // microseconds of the server's CPU time
}

// drive makes calls on conns by as many callers for d and measures the process
// pid, which serves them. Any failed call fails the run.
func drive(ctx context.Context, conns []*grpc.ClientConn, callers int, d time.Duration, pid int, call func(context.Context, *grpc.ClientConn) error) (load, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	before, err := cpuTime(pid)
	if err != nil {
		return load{}, err
	}
	var calls atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	end := begin.Add(d)
	for i := range callers {
		conn := conns[i%len(conns)]
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := call(ctx, conn); err != nil {
					cancel(fmt.Errorf("a call of the load failed: %w", err))
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(begin)
	if err := context.Cause(ctx); err != nil {
		return load{}, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return load{}, err
	}
	n := int(calls.Load())
	return load{
		calls: n, elapsed: elapsed, serverCPU: after - before,
		throughput: float64(n) / elapsed.Seconds(),
		cpuPerCall: float64((after - before).Microseconds()) / float64(n),
	}, nil
}

// cpuTime is the user and system time that a process has used, to 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's times: %w", err)
	}
	// The name, in parentheses, may hold spaces: count from behind it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	utime, err1 := strconv.ParseInt(fields[11], 10, 64)
	stime, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("unexpected form of /proc/%d/stat: %q", pid, stat)
	}
	return time.Duration(utime+stime) * 10 * time.Millisecond, nil
}

// rssMB is a process's resident memory in MiB.
func rssMB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				return 0, fmt.Errorf("unexpected VmRSS of %d: %w", pid, err)
			}
			return kb / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
