package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// event is one line of `go test -json`.
type event struct {
	Action  string
	Test    string
	Elapsed float64
	Output  string
}

// reader turns events into results.
type reader struct {
	seed     uint64
	outcomes map[string]string   // by the test's full name
	lines    map[string][]string // what tests that run have said, by full name
	keep     *json.Encoder
	results  []result
	parts    map[string]bool // tests that have parts
	said     string          // the last that go test said outside of cases
}

// take takes in one line of `go test -json`. What is no event is what go says
// before it comes to testing.
func (r *reader) take(line []byte) error {
	var e event
	if json.Unmarshal(line, &e) != nil {
		r.said = string(line)
		return nil
	}
	test, name, isCase := caseOf(e.Test)
	switch {
	case !isCase:
		if strings.TrimSpace(e.Output) != "" {
			r.said = strings.TrimSpace(e.Output)
		}
		return r.whole(e)
	case e.Action == "output":
		r.lines[e.Test] = append(r.lines[e.Test], e.Output)
		if _, outcome, ok := strings.Cut(e.Output, "outcome: "); ok {
			r.outcomes[e.Test] = strings.TrimSpace(strings.ReplaceAll(outcome, "OPERATION_STATE_", ""))
		}
	case e.Action == "pass", e.Action == "fail":
		return r.ended(test, name, e)
	}
	return nil
}

// ended keeps what came of a case.
func (r *reader) ended(test, name string, e event) error {
	one := result{Seed: r.seed, Test: test, Case: name, Passed: e.Action == "pass", Seconds: e.Elapsed, Outcome: r.outcomes[e.Test]}
	r.results = append(r.results, one)
	fmt.Printf("%s %s %.1fs %s\n", e.Action, name, e.Elapsed, one.Outcome)
	if !one.Passed {
		fmt.Print(strings.Join(r.lines[e.Test], ""))
	}
	delete(r.lines, e.Test)
	if err := r.keep.Encode(one); err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	return nil
}

// theWhole is the case of a test that has no parts, or that fails though each of
// its cases has passed. One with parts of which none was run says nothing.
const theWhole = "the whole"

// whole keeps what came of a test that its cases do not tell.
func (r *reader) whole(e event) error {
	if top, _, part := strings.Cut(e.Test, "/"); part || e.Test == "" {
		r.parts[top] = true
		return nil
	}
	if e.Action == "output" {
		r.lines[e.Test] = append(r.lines[e.Test], e.Output)
	}
	told := slices.ContainsFunc(r.results, func(one result) bool { return one.Test == e.Test && !one.Passed })
	if e.Action == "pass" && !r.parts[e.Test] || e.Action == "fail" && !told {
		return r.ended(e.Test, theWhole, e)
	}
	return nil
}

// caseOf reads a name like "TestMatrix/lab#01/leader,killed,accepted,shared".
func caseOf(full string) (test, name string, ok bool) {
	parts := strings.Split(full, "/")
	if len(parts) != 3 || !strings.Contains(parts[2], ",") {
		return "", "", false
	}
	return parts[0], parts[2], true
}

func (r *reader) anyFailed() bool {
	for _, one := range r.results {
		if !one.Passed {
			return true
		}
	}
	return false
}
