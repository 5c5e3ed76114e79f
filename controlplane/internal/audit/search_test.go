package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// day is when the lines of searched begin; they are a second apart.
var day = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

// searched makes a log of n lines in three files, one of them packed.
func searched(t *testing.T, n int) (l *Log, stop func()) {
	t.Helper()
	path := logFile(t)
	l, stop = open(t, Config{Path: path})
	for i := range n {
		e := &Event{
			Time: day.Add(time.Duration(i) * time.Second), Kind: Call, Principal: fmt.Sprint("p", i%3), Method: fmt.Sprintf("/debvisor.v1.S/M%d", i),
			TraceID: fmt.Sprint("t", i), Peer: "192.0.2.1", Operation: fmt.Sprint("op-", i), Code: "OK",
		}
		if i%10 == 9 {
			e.Kind, e.Code = PermissionDenied, "PERMISSION_DENIED"
		}
		l.Add(e)
		if i == n/3 || i == 2*n/3 {
			must(t, l.Sync(t.Context()))
			must(t, os.Rename(path, fmt.Sprintf("%s.%d", path, 2-i/(n/2))))
			l.Reopen()
			eventually(t, "there is another file", func() bool { info, err := os.Stat(path); return err == nil && info.Size() > 0 })
		}
	}
	must(t, l.Sync(t.Context()))
	must(t, os.WriteFile(path+".2.gz", gzipped(t, read(t, path+".2")), 0o600))
	must(t, os.Remove(path+".2"))
	return l, stop
}

// find gives the numbers of the methods of the lines that a query gets.
func find(t *testing.T, l *Log, q Query) []int {
	t.Helper()
	var found []int
	if err := l.Search(t.Context(), q, func(line []byte) error {
		parsed, err := auditlog.Parse(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if n := 0; parsed.Method != "" {
			if _, err := fmt.Sscanf(parsed.Method, "/debvisor.v1.S/M%d", &n); err != nil {
				t.Error(err)
			}
			found = append(found, n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// some shows a few of the numbers.
func some(list []int) string { return fmt.Sprint(list[:min(len(list), 10)]) }

func numbers(from, to, step int) []int {
	var list []int
	for i := from; i < to; i += step {
		list = append(list, i)
	}
	return list
}

func TestSearch(t *testing.T) {
	const n = 3000
	l, stop := searched(t, n)
	if files, err := Files(l.path); err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	at := func(i int) time.Time { return day.Add(time.Duration(i) * time.Second) }
	for name, c := range map[string]struct {
		query Query
		want  []int
	}{
		"all":                {Query{}, numbers(0, n, 1)},
		"principal":          {Query{Principal: "p1"}, numbers(1, n, 3)},
		"method":             {Query{Method: "M77"}, []int{77}},
		"full method":        {Query{Method: "/debvisor.v1.S/M77"}, []int{77}},
		"part of a method":   {Query{Method: "77"}, nil},
		"trace":              {Query{TraceID: "t1234"}, []int{1234}},
		"operation":          {Query{Operation: "op-2999"}, []int{2999}},
		"peer":               {Query{Peer: "192.0.2.9"}, nil},
		"event":              {Query{Events: []string{"permission_denied", "x"}}, numbers(9, n, 10)},
		"code":               {Query{Code: "permission_denied", Principal: "p0"}, numbers(9, n, 30)},
		"since":              {Query{Since: at(2990)}, numbers(2990, n, 1)},
		"since the first":    {Query{Since: at(-5000)}, numbers(0, n, 1)},
		"since the second":   {Query{Since: at(1500)}, numbers(1500, n, 1)},
		"since the packed":   {Query{Since: at(10)}, numbers(10, n, 1)},
		"until":              {Query{Until: at(5)}, numbers(0, 6, 1)},
		"between":            {Query{Since: at(1000), Until: at(1003)}, numbers(1000, 1004, 1)},
		"last":               {Query{Last: 3, Events: []string{"rpc_call"}}, []int{2996, 2997, 2998}},
		"last in the middle": {Query{Last: 1200, Events: []string{"rpc_call", "permission_denied"}}, numbers(n-1200, n, 1)},
		"last in the packed": {Query{Last: 2500, Events: []string{"rpc_call", "permission_denied"}}, numbers(n-2500, n, 1)},
		"last of more":       {Query{Last: 100_000}, numbers(0, n, 1)},
		"last since":         {Query{Last: 100, Since: at(2990), Principal: "p0"}, []int{2991, 2994, 2997}},
		"last and before":    {Query{Last: 2, Until: at(100), Events: []string{"rpc_call"}}, []int{98, 100}},
		"nothing since":      {Query{Since: at(5000), Events: []string{"rpc_call"}}, nil},
	} {
		if got := find(t, l, c.query); !slices.Equal(got, c.want) {
			t.Errorf("%s: %d lines %.200v, want %d %s", name, len(got), some(got), len(c.want), some(c.want))
		}
	}
	r, err := l.Verify(t.Context(), l.Head())
	if err != nil || !r.Whole() || r.Lines != n+3 {
		t.Errorf("%+v, %v", r, err)
	}
	stop()
}

func TestSearchShowsBrokenLines(t *testing.T) {
	path := logFile(t)
	l, _ := open(t, Config{Path: path})
	change(t, l, "first")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("no line at all\n" + strings.Repeat("x", 3*auditlog.MaxLine) + "\n\xff\x00\n")
	must(t, err)
	must(t, f.Close())
	change(t, l, "second")
	for _, q := range []Query{{Principal: "nobody"}, {Principal: "nobody", Last: 3}} {
		var got []int
		must(t, l.Search(t.Context(), q, func(line []byte) error { got = append(got, len(line)); return nil }))
		if len(got) != 3 || got[0] != 14 || got[1] < 1000 || got[1] > auditlog.MaxLine+1 || got[2] != 2 {
			t.Errorf("%+v: lines of %v bytes", q, got)
		}
	}
	r, err := l.Verify(t.Context(), l.Head())
	if err != nil || r.Whole() || r.Line != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFollow(t *testing.T) {
	path := logFile(t)
	l, stop := open(t, Config{Path: path})
	change(t, l, "before")
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var got []string
	ended := make(chan error, 1)
	go func() {
		ended <- l.Search(ctx, Query{Last: 1, Principal: "p", Follow: true}, func(line []byte) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, methods(t, append(slices.Clone(line), '\n'))...)
			return nil
		})
	}()
	has := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) >= n
		}
	}
	eventually(t, "what was before is there", has(1))
	want := []string{"before"}
	for i := range 400 {
		if i%50 == 49 {
			must(t, os.Rename(path, fmt.Sprintf("%s.%d", path, 1000-i)))
			l.Reopen()
		}
		name := fmt.Sprint(i)
		change(t, l, name)
		want = append(want, name)
	}
	eventually(t, "what was added is there", has(len(want)))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d lines, want %d: %v", len(got), len(want), got)
	}
	stop()
}

func TestAPipeCannotBeReadBack(t *testing.T) {
	path := logFile(t)
	must(t, unix.Mkfifo(path, 0o640))
	l, _ := open(t, Config{Path: path})
	_, err := l.Verify(t.Context(), auditlog.Head{})
	if searchErr := l.Search(t.Context(), Query{}, nil); !errdefs.Is(err, errdefs.FailedPrecondition) || !errdefs.Is(searchErr, errdefs.FailedPrecondition) {
		t.Errorf("%v, %v", err, searchErr)
	}
}

// TestVerifyWhileWritten verifies again and again while lines are added and the
// file is moved.
func TestVerifyWhileWritten(t *testing.T) {
	path := logFile(t)
	l, _ := open(t, Config{Path: path})
	// So many lines a round: what is written faster than it is read would have
	// no bounds.
	const lines = 3000
	due := make(chan struct{}, lines)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(due)
	wg.Go(func() {
		i := 0
		for range due {
			i++
			l.Add(&Event{Time: time.Now(), Kind: Result, Reason: strings.Repeat("r", i%900)})
			if i%20 == 0 {
				change(t, l, fmt.Sprint(i))
			}
		}
	})
	for i := range 10 {
		for range lines {
			due <- struct{}{}
		}
		recorded := l.Head()
		r, err := l.Verify(t.Context(), recorded)
		if err != nil || !r.Whole() {
			t.Fatalf("round %d: %+v, %v", i, r, err)
		}
		if has, err := l.Has(t.Context(), recorded); err != nil || !has {
			t.Fatalf("round %d: the log does not have its line %d: %v", i, recorded.Sequence, err)
		}
		must(t, os.Rename(path, fmt.Sprintf("%s.%d", path, 100-i)))
		l.Reopen()
		eventually(t, "there is another file", func() bool { info, err := os.Stat(path); return err == nil && info.Size() > 0 })
	}
}
