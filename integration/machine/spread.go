package machine

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// numberEnv is in the environment of a test that Spread runs: its number.
const numberEnv = "DEBVISOR_MACHINE_TEST"

// TestNumber tells the tests that Spread runs at the same time apart, for what they share: names and ports. It is 0 with Main.
func TestNumber() int {
	n, _ := strconv.Atoi(os.Getenv(numberEnv))
	return n
}

// Wide is over how many machines Spread spreads tests, and how many of them run at once in each.
type Wide struct {
	Machines, AtOnce int
	// Prepare makes what the tests of a machine share, after its boot. With one machine, too.
	Prepare func(ctx context.Context, m *Machine) error
}

// Spread is Main for tests that take long: each is a process of its own, in whichever machine is free. It is all in one machine where
// the flags ask for what several processes cannot do, such as one profile.
func Spread(m *testing.M, s Spec, w Wide) {
	flag.Parse()
	if Inside() || outside() {
		os.Exit(m.Run())
	}
	ctx, cancel := bounded()
	names, err := spreadable(ctx)
	status := 1
	switch {
	case err != nil:
	case len(names) < 2:
		status, err = runInside(s, w.Prepare)
	default:
		status, err = spread(ctx, s, w, names)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests in machines:", err)
	}
	cancel()
	os.Exit(status)
}

// spreadable are the names of the tests that the flags ask for; none if they cannot be apart.
func spreadable(ctx context.Context) ([]string, error) {
	pattern := flag.Lookup("test.run").Value.String()
	if strings.Contains(pattern, "/") || flag.NArg() > 0 {
		return nil, nil
	}
	for _, name := range []string{
		"test.bench", "test.coverprofile", "test.gocoverdir", "test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile",
		"test.trace", "test.failfast",
	} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != f.DefValue {
			return nil, nil
		}
	}
	if pattern == "" {
		pattern = "."
	}
	out, err := exec.CommandContext(ctx, mustExecutable(), "-test.list="+pattern).Output()
	if err != nil {
		return nil, fmt.Errorf("listing the tests: %w", err)
	}
	var names []string
	for _, name := range strings.Fields(string(out)) {
		if !strings.HasPrefix(name, "Benchmark") {
			names = append(names, name)
		}
	}
	return names, nil
}

// spreading is a run of tests over machines.
type spreading struct {
	ctx   context.Context
	names []string

	mu     sync.Mutex
	next   int // of the names
	failed bool
	errs   []error
}

// spread returns the status that the tests ended with.
func spread(ctx context.Context, s Spec, w Wide, names []string) (status int, err error) {
	r := &spreading{ctx: ctx, names: names}
	var group sync.WaitGroup
	for i := range min(w.Machines, len(names)) {
		own := s
		own.Name = s.Name + strconv.Itoa(i)
		group.Go(func() { r.machine(own, w) })
	}
	group.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed || r.next < len(names) || len(r.errs) > 0 {
		fmt.Println("FAIL")
		return 1, errors.Join(r.errs...)
	}
	fmt.Println("PASS")
	return 0, mergeLogs(len(names))
}

func (r *spreading) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

// machine boots a machine and runs tests in it as long as there are any.
func (r *spreading) machine(s Spec, w Wide) {
	m, env, dir, err := bootFor(r.ctx, s, w.Prepare)
	if err != nil {
		r.fail(err)
		return
	}
	var group sync.WaitGroup
	for range w.AtOnce {
		group.Go(func() {
			for n, more := r.take(); more; n, more = r.take() {
				if err := r.test(m, n, env, dir); err != nil {
					r.fail(fmt.Errorf("%s: %w; the machine's console: %s", r.names[n], err, tail(m.Log())))
					return
				}
			}
		})
	}
	group.Wait()
	if err := closeAfter(r.ctx, m); err != nil {
		r.fail(err)
	}
}

func (r *spreading) take() (n int, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.next
	if n == len(r.names) || r.ctx.Err() != nil {
		return 0, false
	}
	r.next++
	return n, true
}

// test runs one test; what it says is printed when it has ended. An error is the machine's.
func (r *spreading) test(m *Machine, n int, env []string, dir string) error {
	args := append([]string{mustExecutable()}, os.Args[1:]...)
	args = append(args, "-test.run=^"+r.names[n]+"$")
	if path := flag.Lookup("test.testlogfile").Value.String(); path != "" {
		args = append(args, "-test.testlogfile="+logOf(path, n))
	}
	var said bytes.Buffer
	began := time.Now()
	err := m.RunCommand(r.ctx, Command{Args: args, Env: append(env, numberEnv+"="+strconv.Itoa(n+1)), Dir: dir, Stdout: &said, Stderr: &said})
	text := said.String()
	for _, end := range []string{"PASS\n", "\x16"} {
		text = strings.TrimSuffix(text, end)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Print(text)
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		r.failed, err = true, nil
		fmt.Printf("%s failed in %s after %s\n", r.names[n], m.Name(), time.Since(began).Round(time.Second))
	}
	return err
}

func logOf(path string, n int) string { return fmt.Sprintf("%s.%d", path, n) }

// mergeLogs makes one of the logs in which go test finds what the tests have read.
func mergeLogs(n int) error {
	path := flag.Lookup("test.testlogfile").Value.String()
	if path == "" {
		return nil
	}
	const head = "# test log\n"
	all := []byte(head)
	for i := range n {
		one, err := os.ReadFile(logOf(path, i))
		if err != nil {
			return err
		}
		all = append(all, bytes.TrimPrefix(one, []byte(head))...)
	}
	return os.WriteFile(path, all, 0o600)
}
