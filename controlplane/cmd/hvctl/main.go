// Hvctl is the command line of DebVisor's control plane: a client of the
// debvisor.v1 API of any replica, and of nothing else.
//
// What it prints on standard output is the answer, so that scripts can use it;
// hints, progress and errors go to standard error. It ends with one of the exit
// codes of exitcodes.go. Interrupting it never stops an operation: those belong
// to the cluster.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run runs one command line and answers its exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends hvctl at once.
	context.AfterFunc(ctx, stop)

	a := &app{out: os.Stdout, errOut: os.Stderr}
	root := newRoot(a)
	root.SetArgs(args)
	failed, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNo):
		return exitNo
	}
	f := a.explain(failed, err)
	f.write(a.errOut)
	return f.exit
}
