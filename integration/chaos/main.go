// Command chaos runs the fault matrix, and the power cuts, many times and
// writes what came of them to docs/reliability.md. Each run has a seed, which
// gives the order of its cases and the small delays within them. What was run
// is kept, so that a campaign that was broken off can go on.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// settings are the command line's.
type settings struct {
	runs   int
	seed   uint64
	budget time.Duration
	resume bool
	tests  string
	kept   string
	out    string
}

// result is what came of one case of one run; the file of results has one a
// line.
type result struct {
	Seed    uint64  `json:"seed"`
	Test    string  `json:"test"`
	Case    string  `json:"case"`
	Passed  bool    `json:"passed"`
	Seconds float64 `json:"seconds"`
	// Outcome is how the operation ended, as the test says it.
	Outcome string `json:"outcome"`
}

func main() {
	var s settings
	flag.IntVar(&s.runs, "n", 5, "how many times the whole matrix is run")
	flag.Uint64Var(&s.seed, "seed", 1, "seed of the first run; each next one has the next")
	flag.DurationVar(&s.budget, "budget", 0, "begin no further case after so long, such as 2h; 0: no limit")
	flag.BoolVar(&s.resume, "resume", false, "go on with a campaign that was broken off")
	flag.StringVar(&s.tests, "run", "^(TestMatrix|TestPowerOff|TestReplicationFaults|TestHistoriesOfZFS|TestFailoverFaults|TestCephFaults)$", "which tests")
	flag.StringVar(&s.kept, "results", "build/chaos.jsonl", "where results are kept")
	flag.StringVar(&s.out, "out", "docs/reliability.md", "where the tables go")
	flag.Parse()
	failed, err := s.campaign()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	if failed {
		os.Exit(1)
	}
}

// campaign runs what is left to run and writes the tables of all results.
func (s settings) campaign() (failed bool, err error) {
	if s.runs < 1 || s.seed < 1 {
		return false, fmt.Errorf("-n %d -seed %d: both are at least 1", s.runs, s.seed)
	}
	results, err := s.load()
	if err != nil {
		return false, err
	}
	var until time.Time
	if s.budget > 0 {
		until = time.Now().Add(s.budget)
	}
	for i := range s.runs {
		if !until.IsZero() && time.Now().After(until) {
			fmt.Println("chaos: the budget is used up; -resume goes on")
			break
		}
		seed := s.seed + uint64(i)
		fmt.Printf("chaos: run %d of %d, seed %d\n", i+1, s.runs, seed)
		more, err := s.run(seed, until, results)
		results = append(results, more...)
		if err != nil {
			return false, err
		}
	}
	for _, r := range results {
		failed = failed || !r.Passed
	}
	return failed, s.write(results)
}

// load reads the results of a campaign that goes on; a new one begins with
// none.
func (s settings) load() ([]result, error) {
	if err := os.MkdirAll(filepath.Dir(s.kept), 0o755); err != nil {
		return nil, fmt.Errorf("a place for results: %w", err)
	}
	if !s.resume {
		if err := os.Remove(s.kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("forgetting older results: %w", err)
		}
		return nil, nil
	}
	raw, err := os.ReadFile(s.kept)
	if err != nil {
		return nil, fmt.Errorf("going on with a campaign: %w", err)
	}
	var all []result
	for line := range strings.Lines(string(raw)) {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("results in %s: %w", s.kept, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// run runs the cases of one seed that have no result yet.
func (s settings) run(seed uint64, until time.Time, have []result) ([]result, error) {
	done, err := os.CreateTemp("", "chaos-done-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errors.Join(done.Close(), os.Remove(done.Name())) }()
	for _, r := range have {
		if r.Seed == seed {
			_, _ = fmt.Fprintln(done, r.Case)
		}
	}
	cmd := exec.Command("go", "test", "-json", "-timeout", "24h", "-count=1", "-run", s.tests, "./integration") //nolint:noctx // ended by the operator's Ctrl-C, which go test gets too
	cmd.Env = append(os.Environ(), "DEBVISOR_MATRIX=full", fmt.Sprintf("DEBVISOR_MATRIX_SEED=%d", seed), "DEBVISOR_MATRIX_SKIP="+done.Name())
	if !until.IsZero() {
		cmd.Env = append(cmd.Env, fmt.Sprintf("DEBVISOR_MATRIX_UNTIL=%d", until.Unix()))
	}
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe to go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting go test: %w", err)
	}
	kept, err := os.OpenFile(s.kept, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("keeping results: %w", err)
	}
	defer func() { _ = kept.Close() }()
	reader := &reader{seed: seed, outcomes: map[string]string{}, lines: map[string][]string{}, parts: map[string]bool{}, keep: json.NewEncoder(kept)}
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := reader.take(lines.Bytes()); err != nil {
			return reader.results, err
		}
	}
	failed := cmd.Wait() // cases that failed are among the results; a run without any is broken
	if err := lines.Err(); err != nil {
		return reader.results, fmt.Errorf("reading go test: %w", err)
	}
	if failed != nil && !reader.anyFailed() {
		return reader.results, fmt.Errorf("go test: %w: %s", failed, reader.said)
	}
	return reader.results, nil
}
