package ceph

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// A Daemon is the monitor or an OSD.
type Daemon struct {
	Name string // "mon.a", "osd.0"

	cluster *Cluster
	program string
	process Process // nil: never started
}

// Start starts a daemon that does not run, with what it kept. An OSD of a memstore that was killed kept nothing.
func (d *Daemon) Start() error {
	_, id, _ := strings.Cut(d.Name, ".")
	var err error
	d.process, err = d.cluster.opts.Place.Start(d.Name, d.Log(), d.program, "-f", "-c", d.cluster.path(daemonsConf), "-i", id, "--no-mon-config")
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	return nil
}

// Kill ends the daemon by SIGKILL; one that does not run is left as it is.
func (d *Daemon) Kill() error {
	if !d.Alive() {
		return nil
	}
	return d.process.Kill()
}

// Shutdown ends the daemon in order (SIGTERM).
func (d *Daemon) Shutdown(ctx context.Context) error { return d.process.Terminate(ctx) }

// Pause makes the daemon stand still (SIGSTOP): its connections stay, and nothing is answered.
func (d *Daemon) Pause(ctx context.Context) error { return d.process.Stop(ctx) }

// Resume lets a paused daemon go on.
func (d *Daemon) Resume() error { return d.process.Cont() }

// Alive says whether the daemon's process is there; a paused one is.
func (d *Daemon) Alive() bool { return d.process != nil && d.process.Alive() }

// Log is the file with what the daemon says on standard error; its own log is beside it.
func (d *Daemon) Log() string { return d.cluster.path("log/" + d.Name + ".out") }

// Said is what the daemon said last, for the message of a test that failed.
func (d *Daemon) Said() string {
	raw, err := os.ReadFile(d.Log())
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-2000):])
}
