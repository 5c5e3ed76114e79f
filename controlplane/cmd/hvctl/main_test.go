package main

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hvctl": main})
}

// TestScripts runs hvctl itself, as a process, against a replica of ours that
// speaks the real protocol over real TLS and holds a made-up cluster. Each
// script has a replica of its own.
func TestScripts(t *testing.T) {
	trust := newPKI(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			f, err := startFake(trust)
			if err != nil {
				return err
			}
			env.Defer(f.stop)
			env.Values[fakeKey{}] = f
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("HVCTL_SERVER", f.addr)
			env.Setenv("HVCTL_CA", trust.path("ca.pem"))
			env.Setenv("HVCTL_CERT", trust.path("operator.pem"))
			env.Setenv("HVCTL_KEY", trust.path("operator-key.pem"))
			env.Setenv("PKI", trust.dir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // with -race each exit would take a second
			env.Setenv("ADDR", f.addr)
			env.Setenv("MISNAMED", f.misnamed)
			env.Setenv("OLD", f.old.Addr().String())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"requests": requests,
			"trouble":  trouble,
			"called":   called,
			"sigint":   sigint,
		},
	})
}

type fakeKey struct{}

func fakeOf(ts *testscript.TestScript) *fake { return ts.Value(fakeKey{}).(*fake) }

// exits CODE ARG…: runs hvctl, which must end with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARG...")
	}
	err := ts.Exec("hvctl", args[1:]...)
	code := "0"
	if err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != args[0] {
		ts.Fatalf("hvctl ended with %s, expected %s", code, args[0])
	}
}

// requests METHOD COUNT [WAIT]: the replica got COUNT calls of the method, all
// with one request id, or none where COUNT is "anonymous"; all with this
// debvisor-wait.
func requests(ts *testscript.TestScript, _ bool, args []string) {
	calls := fakeOf(ts).callsOf(args[0])
	wait := strings.Join(args[2:], " ")
	ids := map[string]bool{}
	for _, c := range calls {
		ids[c.requestID] = true
		if c.wait != wait {
			ts.Fatalf("%s: debvisor-wait is %q, expected %q", args[0], c.wait, wait)
		}
	}
	if args[1] == "anonymous" {
		if len(ids) != 1 || !ids[""] {
			ts.Fatalf("%s: request ids %v in %d calls, expected none", args[0], ids, len(calls))
		}
		return
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	if len(calls) != want || len(ids) != 1 || ids[""] {
		ts.Fatalf("%s: %d calls with the request ids %v, expected %d calls with one", args[0], len(calls), ids, want)
	}
}

// trouble METHOD KIND…: the next calls of the method meet one kind of trouble
// each.
func trouble(ts *testscript.TestScript, _ bool, args []string) {
	fakeOf(ts).trouble(args[0], args[1:])
}

// called METHOD: waits until the replica got a call of the method.
func called(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ts.Check(fakeOf(ts).await(ctx, args[0]))
}

// sigint NAME: interrupts the background command of that name.
func sigint(ts *testscript.TestScript, _ bool, args []string) {
	for _, cmd := range ts.BackgroundCmds() {
		if filepath.Base(cmd.Path) == args[0] {
			ts.Check(cmd.Process.Signal(syscall.SIGINT))
			return
		}
	}
	ts.Fatalf("no command %s in the background", args[0])
}
