package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// reloadEvery is how often the child looks for a renewed certificate.
const reloadEvery = time.Minute

// Main is the child process: one end of one tunnel. args are those that Open
// gave it, after the subcommand's name. It returns when the right has expired
// or the agent ends it (SIGTERM).
func Main(args []string) error {
	flags := flag.NewFlagSet("tunnel", flag.ContinueOnError)
	dir := flags.String("dir", "", "the tunnel's directory")
	_ = flags.String("task", "", "the task that it serves: to be seen in the process list")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	l := layout{*dir}
	lock, err := takeLock(l)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	data, err := os.ReadFile(l.config())
	if err != nil {
		return fmt.Errorf("reading the tunnel's configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("reading the tunnel's configuration: %w", err)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "tunnel", Output: os.Stderr, JSONFormat: true}).With(cfg.ids().Args("role", cfg.Role)...)
	err = serve(cfg, l, log)
	if err != nil {
		log.Error("tunnel failed", "error", err)
	}
	return err
}

// serve holds the end until the agent or the right's expiry ends it.
func serve(cfg Config, l layout, log hclog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithDeadline(ctx, cfg.ExpiresAt)
	defer cancel()
	reloader, err := certs.NewReloader(cfg.Certificates, log)
	if err != nil {
		return err
	}
	go func() { _ = reloader.Run(ctx, reloadEvery) }()
	e := &end{cfg: cfg, layout: l, certs: reloader, log: log, carried: make(chan struct{}, maxConnections), order: order{there: make(chan struct{})}}
	if err := e.run(ctx, announce); err != nil {
		return err
	}
	log.Info("tunnel ended", "expired", errors.Is(ctx.Err(), context.DeadlineExceeded))
	return nil
}

// takeLock makes this process the tunnel's only one. The lock is the proof that
// the process id in the file is still its: it goes with the process.
func takeLock(l layout) (*os.File, error) {
	f, err := os.OpenFile(l.lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the tunnel's lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("the tunnel in %s has a process already: %w", l.dir, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("writing the tunnel's lock: %w", err), f.Close())
	}
	return f, nil
}

// readyFD is the pipe on which the child's parent hears that it is ready.
const readyFD = 3

// announce tells the parent, if it still lives, then lets go of the pipe.
func announce() {
	pipe := os.NewFile(readyFD, "ready")
	if pipe == nil {
		return
	}
	_, _ = io.WriteString(pipe, "ready\n")
	_ = pipe.Close()
}

// writeFile replaces a file of the tunnel's directory in one step, also where
// several streams have the same to say at once.
func writeFile(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func readFile(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
