package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const said = `{"Action":"run","Test":"TestMatrix/lab#01/leader,killed,accepted,shared"}
{"Action":"output","Test":"TestMatrix/lab#01/leader,killed,accepted,shared","Output":"    matrix_test.go:34: outcome: OPERATION_STATE_SUCCEEDED , attempt 1; 10.5 s\n"}
{"Action":"pass","Test":"TestMatrix/lab#01/leader,killed,accepted,shared","Elapsed":10.5}
{"Action":"output","Test":"TestMatrix/lab/source-qemu,killed,copying,copied","Output":"    matrix_test.go:34: outcome: OPERATION_STATE_FAILED MIGRATION_FAILED, attempt 1: it stopped\n"}
{"Action":"fail","Test":"TestMatrix/lab/source-qemu,killed,copying,copied","Elapsed":2}
{"Action":"output","Test":"TestMatrix","Output":"--- FAIL: TestMatrix (0.00s)\n"}
{"Action":"fail","Test":"TestMatrix","Elapsed":0}
{"Action":"pass","Test":"TestPowerOff/lab/source,copying,back","Elapsed":3}
{"Action":"fail","Test":"TestPowerOff","Elapsed":0}
{"Action":"run","Test":"TestFailoverFaults/lab"}
{"Action":"skip","Test":"TestFailoverFaults/lab"}
{"Action":"pass","Test":"TestFailoverFaults","Elapsed":0}
{"Action":"pass","Test":"TestAlone","Elapsed":5}
{"Action":"output","Test":"TestHistoriesOfZFS","Output":"    zfs_histories_test.go:1: the last common snapshot is gone\n"}
{"Action":"fail","Test":"TestHistoriesOfZFS","Elapsed":4}
`

// TestResults follows results from what go test says to the tables, and back out of the file of results.
func TestResults(t *testing.T) {
	dir := t.TempDir()
	s := settings{runs: 1, seed: 7, resume: true, kept: filepath.Join(dir, "results"), out: filepath.Join(dir, "table.md")}
	var kept bytes.Buffer
	r := &reader{seed: 7, outcomes: map[string]string{}, lines: map[string][]string{}, parts: map[string]bool{}, keep: json.NewEncoder(&kept)}
	for line := range strings.Lines(said) {
		if err := r.take([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.kept, kept.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	loaded, err := s.load()
	if err != nil || len(loaded) != 6 || loaded[0] != r.results[0] || loaded[1] != r.results[1] {
		t.Fatalf("kept %v, loaded %v: %v", r.results, loaded, err)
	}
	if err := s.write(loaded); err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(s.out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Seeds 7 to 7: 1 runs begun, 6 cases run, 3 passed",
		"| leader, killed, accepted, shared | 1 | 1 | 10.5 | SUCCEEDED × 1 |",
		"| source-qemu, killed, copying, copied | 1 | 0 | 2.0 | FAILED MIGRATION_FAILED × 1 |",
		"| source, copying, back | 1 | 1 | 3.0 |", "| the whole | 1 | 1 | 5.0 |",
		"- seed 7, TestHistoriesOfZFS: it did not come to an end", "- seed 7, TestPowerOff: ",
		"- seed 7, source-qemu,killed,copying,copied: FAILED MIGRATION_FAILED, attempt 1: it stopped",
	} {
		if !strings.Contains(string(table), want) {
			t.Errorf("the table has no %q:\n%s", want, table)
		}
	}
}
