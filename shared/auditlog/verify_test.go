package auditlog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// chain makes a log of n lines and gives its end.
func chain(n int) ([]byte, Head) {
	var b []byte
	var head Head
	for i := range n {
		begin := len(b)
		b = AppendLink(b, head.Sequence+1, head.Hash)
		b = fmt.Appendf(b, `"replica":"r1","time":"2026-01-02T03:04:05.%06dZ","event":"rpc_call","principal":"p%d"}`, i%1000000, i)
		head = Head{Sequence: head.Sequence + 1, Hash: HashOf(b[begin:])}
		b = append(b, '\n')
	}
	return b, head
}

// verify checks logs against a head, which may be none.
func verify(t *testing.T, head Head, files ...[]byte) Report {
	t.Helper()
	var v Verifier
	v.Expect(head, "etcd")
	for i, f := range files {
		if err := v.File(fmt.Sprint(i), bytes.NewReader(f)); err != nil {
			t.Fatal(err)
		}
	}
	return v.End()
}

func TestWhole(t *testing.T) {
	log, head := chain(10)
	if r := verify(t, head, log); !r.Whole() || r.Lines != 10 || r.First != 1 || r.Head != head || r.Replica != "r1" {
		t.Errorf("%+v", r)
	}
	at := bytes.IndexByte(log, '\n') + 1
	if r := verify(t, head, log[:at], log[at:]); !r.Whole() || r.Lines != 10 {
		t.Errorf("in two files: %+v", r)
	}
	if r := verify(t, head, log[at:]); !r.Whole() || r.First != 2 {
		t.Errorf("without the oldest file: %+v", r)
	}
	if r := verify(t, Head{}, nil); !r.Whole() || r.Lines != 0 {
		t.Errorf("nothing: %+v", r)
	}
	earlier, behind := chain(7)
	_ = earlier
	if r := verify(t, behind, log); !r.Whole() {
		t.Errorf("what etcd knows is a little behind: %+v", r)
	}
}

func TestEveryByteFlipped(t *testing.T) {
	log, head := chain(3)
	for i := range log {
		for bit := range 8 {
			bad := slices.Clone(log)
			bad[i] ^= 1 << bit
			if r := verify(t, head, bad); r.Whole() {
				t.Fatalf("byte %d, bit %d: %q is not found", i, bit, bad)
			}
		}
	}
}

// TestEveryByteOfAPackedFile changes a file that gzip has packed, and cuts it.
func TestEveryByteOfAPackedFile(t *testing.T) {
	log, head := chain(50)
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(log); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log.1.gz")
	check := func(content []byte) Report {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		var v Verifier
		v.Expect(head, "etcd")
		if err := v.File(path, f); err != nil {
			t.Fatal(err)
		}
		return v.End()
	}
	if r := check(b.Bytes()); !r.Whole() || r.Lines != 50 {
		t.Fatalf("%+v", r)
	}
	const header = 10 // of it some bytes say nothing of the content, such as the time
	for i := range b.Len() {
		bad := bytes.Clone(b.Bytes())
		bad[i] ^= 1
		if r := check(bad); r.Whole() && (i >= header || r.Head != head) {
			t.Errorf("byte %d is changed: %+v", i, r)
		}
		if r := check(b.Bytes()[:i]); r.Whole() {
			t.Errorf("cut at byte %d: %+v", i, r)
		}
	}
}

func TestAFirstLineThatCannotBeRead(t *testing.T) {
	log, head := chain(20)
	log[2] ^= 1
	if r := verify(t, head, log); r.Line != 1 || r.Findings != 2 || r.Replica != "r1" {
		t.Errorf("%+v", r)
	}
}

func TestEveryByteCutOrAdded(t *testing.T) {
	log, head := chain(4)
	for i := range log {
		if r := verify(t, head, log[:i]); r.Whole() {
			t.Errorf("cut at byte %d", i)
		}
		if r := verify(t, head, slices.Delete(slices.Clone(log), i, i+1)); r.Whole() {
			t.Errorf("without byte %d", i)
		}
		if r := verify(t, head, slices.Insert(slices.Clone(log), i, 'x')); r.Whole() {
			t.Errorf("a byte more at %d", i)
		}
	}
}

// lines splits a log.
func lines(log []byte) [][]byte { return slices.Collect(bytes.Lines(log)) }

func TestLinesDroppedSwappedDoubled(t *testing.T) {
	log, head := chain(8)
	all := lines(log)
	for i := range all {
		dropped := slices.Delete(slices.Clone(all), i, i+1)
		r := verify(t, head, slices.Concat(dropped...))
		if i == 0 {
			// The oldest lines may have been moved away; only they.
			if !r.Whole() || r.First != 2 {
				t.Errorf("without the first line: %+v", r)
			}
		} else if r.Whole() {
			t.Errorf("without line %d", i+1)
		} else if i < len(all)-1 && r.Line != uint64(i+1) {
			t.Errorf("line %d is missing, found at %d: %s", i+1, r.Line, r.Finding)
		}
		doubled := slices.Insert(slices.Clone(all), i, all[i])
		if r := verify(t, head, slices.Concat(doubled...)); r.Whole() {
			t.Errorf("line %d twice", i+1)
		}
		for j := range i {
			swapped := slices.Clone(all)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			if r := verify(t, head, slices.Concat(swapped...)); r.Whole() {
				t.Errorf("lines %d and %d swapped", i+1, j+1)
			}
		}
	}
}

func TestHeads(t *testing.T) {
	log, head := chain(8)
	_, ahead := chain(9)
	other := head
	other.Hash[0] ^= 1
	all := lines(log)
	for want, r := range map[string]Report{
		"the last line is number 8, and etcd knows of line 9":  verify(t, ahead, log),
		"it is not the line 8 that etcd knows":                 verify(t, other, log),
		"the last line is number 7, and etcd knows of line 8":  verify(t, head, slices.Concat(all[:7]...)),
		"which is before it: nothing tells that this":          verify(t, Head{Sequence: 2}, slices.Concat(all[4:]...)),
		"2 lines before it are missing":                        verify(t, head, slices.Concat(all[:2]...), slices.Concat(all[4:]...)),
		"the line before it, number 3 of the chain, was chang": verify(t, head, bytes.Replace(log, []byte(`"p2"`), []byte(`"px"`), 1)),
		"the chain begins anew here":                           verify(t, Head{}, log, log),
		"the last line is number 0, and etcd knows of line 8":  verify(t, head, nil),
	} {
		if r.Whole() || !strings.Contains(r.Finding, want) {
			t.Errorf("%q, want %q", r.Finding, want)
		}
	}
	var v Verifier
	v.Expect(head, "etcd")
	v.Expect(other, "the replica")
	if r := v.End(); r.Whole() {
		t.Error("two that know different lines agree")
	}
}

// TestForgedEnd rewrites the end of a log with right hashes: what is known from
// elsewhere tells.
func TestForgedEnd(t *testing.T) {
	log, head := chain(8)
	all := lines(log)
	var forged []byte
	last := Head{}
	for i, line := range all {
		begin := len(forged)
		rest := line[bytes.Index(line, []byte(`"replica"`)) : len(line)-1]
		forged = AppendLink(forged, last.Sequence+1, last.Hash)
		forged = append(forged, bytes.Replace(rest, []byte(`"p4"`), []byte(`"px"`), 1)...)
		last = Head{Sequence: uint64(i + 1), Hash: HashOf(forged[begin:])}
		forged = append(forged, '\n')
	}
	if r := verify(t, Head{}, forged); !r.Whole() {
		t.Fatalf("the forgery is no chain: %+v", r)
	}
	if r := verify(t, head, forged); r.Whole() {
		t.Error("a forged log is whole")
	}
}

func TestALogThatSaysItIsNot(t *testing.T) {
	for _, event := range []string{EventsLost, LogLost} {
		line := AppendLink(nil, 1, Genesis)
		line = append(line, `"replica":"r1","event":"`+event+`","reason":"gone"}`+"\n"...)
		if r := verify(t, Head{}, line); r.Whole() || !strings.Contains(r.Finding, "gone") {
			t.Errorf("%s: %+v", event, r)
		}
	}
}

func TestGarbage(t *testing.T) {
	log, head := chain(3)
	for name, bad := range map[string][]byte{
		"a line that never ends": append(slices.Clone(log), bytes.Repeat([]byte("x"), 10*MaxLine)...),
		"zeros":                  append(slices.Clone(log), make([]byte, 5000)...),
		"an empty line":          append(slices.Clone(log), '\n'),
		"no chain":               []byte("{}\n[]\nnull\n"),
		"number 0":               []byte(strings.Replace(string(log), `"seq":1`, `"seq":0`, 1)),
		"a number twice":         []byte(strings.Replace(string(log), `"event"`, `"seq":7,"event"`, 1)),
		"a huge number":          []byte(strings.Replace(string(log), `"seq":1,`, `"seq":99999999999999999999,`, 1)),
	} {
		if r := verify(t, head, bad); r.Whole() {
			t.Errorf("%s is found to be whole", name)
		}
	}
}

// TestALargeLog samples a log of 4 MB: a change anywhere is found where it is.
func TestALargeLog(t *testing.T) {
	log, head := chain(20_000)
	if r := verify(t, head, log); !r.Whole() {
		t.Fatalf("%+v", r)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		at, bit := random.IntN(len(log)), byte(1)<<random.IntN(8)
		log[at] ^= bit
		line := uint64(bytes.Count(log[:at], []byte{'\n'})) + 1
		if r := verify(t, head, log); r.Whole() || r.Line != 0 && (r.Line < line || r.Line > line+1) {
			t.Errorf("byte %d in line %d: %+v", at, line, r)
		}
		log[at] ^= bit
	}
}

func FuzzLine(f *testing.F) {
	log, _ := chain(2)
	for _, line := range lines(log) {
		f.Add(bytes.TrimSuffix(line, []byte{'\n'}))
	}
	f.Add([]byte(`{"seq":1,"prev":"","replica":""}`))
	f.Add([]byte(`{"seq":01}`))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var v Verifier
		if err := v.File("f", bytes.NewReader(append(slices.Clone(line), '\n'))); err != nil {
			t.Fatal(err)
		}
		l, err := Parse(line)
		if err != nil {
			return
		}
		prev, err := ParseHash(l.Prev)
		if err != nil || l.Seq == 0 || len(line) > MaxLine {
			t.Errorf("%q is a line: %+v, %v", line, l, err)
		}
		if !bytes.HasPrefix(line, AppendLink(nil, l.Seq, prev)) {
			t.Errorf("%q does not begin with its link", line)
		}
		if bytes.IndexByte(line, '\n') < 0 && v.End().Lines != 1 {
			t.Errorf("%q is not one line", line)
		}
	})
}
