package ceph

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
)

// A Store is what an OSD keeps its objects in.
type Store string

// The stores of an OSD.
const (
	Memstore  Store = "memstore"  // memory: quick, and empty again after a kill
	Bluestore Store = "bluestore" // a file, as in earnest: for tests that kill
)

// The users of a cluster, by their entity's name without "client.".
const (
	Admin   = "admin"    // may do all
	Agent   = "debvisor" // what an agent of ours needs: profile rbd, and to take entries off the blocklist
	Libvirt = "libvirt"  // what QEMU needs: profile rbd
)

// startLimit is how long a cluster may take to come up.
const startLimit = time.Minute

// Options say what cluster to start. Zero values mean the default in parentheses.
type Options struct {
	Dir     string   // where it keeps everything; made if need be, and not removed. Short: sockets go below it
	Address string   // its IPv4 address in the Place (one of 127.0.0.0/8 at random)
	OSDs    int      // (1)
	Store   Store    // (Memstore)
	GiB     int      // of each OSD (8, sparse)
	Size    int      // replicas of each object (1)
	Pools   []string // all made for RBD ("rbd")
	Place   Place    // where its processes run (this process's own namespaces)
}

// A Place is where a cluster's processes run.
type Place interface {
	// Start starts a process that appends what it says to the file log.
	Start(name, log string, args ...string) (Process, error)
	// Run runs a command to its end and returns its standard output; the error of one that fails holds its standard error.
	Run(ctx context.Context, args ...string) (string, error)
}

// A Process is a daemon's.
type Process interface {
	Kill() error                         // by SIGKILL; returns when it is gone
	Terminate(ctx context.Context) error // by SIGTERM; returns when it is gone
	Stop(ctx context.Context) error      // by SIGSTOP; returns when it stands still
	Cont() error
	Alive() bool // a stopped one is
	Err() error  // how it ended
}

// A Cluster is a running cluster. Its methods may be called from several goroutines, those of one daemon not at once.
type Cluster struct {
	FSID string
	Mon  *Daemon
	OSDs []*Daemon

	opts Options
	keys map[string]string // by entity, "client.admin"
}

func (o Options) withDefaults() Options {
	if o.OSDs == 0 {
		o.OSDs = 1
	}
	if o.Store == "" {
		o.Store = Memstore
	}
	if o.GiB == 0 {
		o.GiB = 8
	}
	if o.Size == 0 {
		o.Size = 1
	}
	if len(o.Pools) == 0 {
		o.Pools = []string{"rbd"}
	}
	if o.Place == nil {
		o.Place = here{}
	}
	if o.Address == "" {
		var b [3]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Address = fmt.Sprintf("127.%d.%d.%d", b[0], b[1], 1+b[2]%254)
	}
	return o
}

// Start makes a cluster in an empty or new directory and waits until its pools take writes. It has to be stopped; if Start fails
// it is stopped already.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	o = o.withDefaults()
	c := &Cluster{FSID: uuid.NewString(), opts: o, keys: map[string]string{}}
	c.Mon = &Daemon{Name: "mon.a", cluster: c, program: "ceph-mon"}
	for i := range o.OSDs {
		c.OSDs = append(c.OSDs, &Daemon{Name: fmt.Sprintf("osd.%d", i), cluster: c, program: "ceph-osd"})
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("ceph in %s: %w", o.Dir, err), c.Stop())
		}
	}()
	if err := c.write(); err != nil {
		return nil, err
	}
	if err := c.format(ctx); err != nil {
		return nil, err
	}
	for _, d := range c.daemons() {
		if err := d.Start(); err != nil {
			return nil, err
		}
	}
	for _, pool := range o.Pools {
		if err := c.AddPool(ctx, pool); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// format makes the stores of the monitor and the OSDs. The OSDs are in the first map already, so that none has to be told of.
func (c *Cluster) format(ctx context.Context) error {
	monmap, osdmap := c.path("monmap"), c.path("osdmap")
	if _, err := c.opts.Place.Run(ctx, "monmaptool", "--create", "--clobber", "--fsid", c.FSID, "--addv", "a", c.monitors(), monmap); err != nil {
		return err
	}
	if _, err := c.opts.Place.Run(ctx, "osdmaptool", "-c", c.path(daemonsConf), "--createsimple", fmt.Sprint(c.opts.OSDs), "--clobber", osdmap); err != nil {
		return err
	}
	var group sync.WaitGroup
	failed := make([]error, c.opts.OSDs+1)
	for i := range c.OSDs {
		group.Go(func() {
			_, failed[i] = c.opts.Place.Run(ctx, "ceph-osd", "-c", c.path(daemonsConf), "-i", fmt.Sprint(i), "--no-mon-config", "--mkfs", "--osd-uuid", uuid.NewString())
		})
	}
	_, failed[c.opts.OSDs] = c.opts.Place.Run(ctx, "ceph-mon", "-c", c.path(daemonsConf), "-i", "a", "--mkfs", "--monmap", monmap, "--osdmap", osdmap,
		"--keyring", c.path(bootKeyring))
	group.Wait()
	return errors.Join(append(failed, os.Remove(monmap), os.Remove(osdmap), os.Remove(c.path(bootKeyring)))...)
}

// AddPool makes a pool for RBD and waits until it takes writes.
func (c *Cluster) AddPool(ctx context.Context, pool string) error {
	if _, err := c.Admin(ctx, "ceph", "osd", "pool", "create", pool, "8"); err != nil {
		return err
	}
	_, err := c.Admin(ctx, "rbd", "pool", "init", pool)
	return err
}

// Admin runs one of Ceph's commands, "ceph", "rbd" or "rados", as client.admin and returns its standard output. A cluster that is
// dead makes it wait until ctx is done, which kills it.
func (c *Cluster) Admin(ctx context.Context, program string, args ...string) (string, error) {
	return c.opts.Place.Run(ctx, append([]string{program, "-c", c.Conf(), "--name", "client." + Admin}, args...)...)
}

//go:embed readsnapshot.py
var readSnapshot string

// ReadSnapshot reads all that a snapshot of an image, "pool/image", holds. The name may be that of a group's snapshot.
func (c *Cluster) ReadSnapshot(ctx context.Context, image, snapshot string) ([]byte, error) {
	// Debian's own Python, which has Ceph's modules.
	out, err := c.opts.Place.Run(ctx, "/usr/bin/python3", "-c", readSnapshot, c.Conf(), image, snapshot)
	return []byte(out), err
}

// Ready waits until every pool answers, as after a fault. Each look is a new client's: one that met a dead OSD asks where it is
// now after 15 s only.
func (c *Cluster) Ready(ctx context.Context) error {
	for _, pool := range c.opts.Pools {
		for {
			_, err := c.Admin(ctx, "rados", "--rados-mon-op-timeout", "1", "--rados-osd-op-timeout", "1", "--client-mount-timeout", "1",
				"-p", pool, "stat", "rbd_info")
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("pool %s does not answer: %w: %w", pool, ctx.Err(), err)
			}
		}
	}
	return nil
}

// Revive starts the daemons that do not run, lets those go on that stand still, and waits until every pool answers.
func (c *Cluster) Revive(ctx context.Context) error {
	for _, d := range c.daemons() {
		do := d.Start
		if d.Alive() {
			do = d.Resume
		}
		if err := do(); err != nil {
			return err
		}
	}
	return c.Ready(ctx)
}

// Stop ends all daemons, whatever they do. Later calls do nothing.
func (c *Cluster) Stop() error {
	var failed []error
	for _, d := range c.daemons() {
		failed = append(failed, d.Kill())
	}
	return errors.Join(failed...)
}

func (c *Cluster) daemons() []*Daemon { return append([]*Daemon{c.Mon}, c.OSDs...) }

func (c *Cluster) path(name string) string { return filepath.Join(c.opts.Dir, name) }
