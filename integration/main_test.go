// Package integration holds the end-to-end and fault tests: a whole cluster with real libvirt, asked from outside. What is
// true is asked of both libvirts, the process tables, the guests' disks and etcd, never of our own API alone.
package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	"github.com/debvisor/debvisor/integration/lab"
)

// certLife is the life of agents' certificates in the lab of plain programs: they are renewed all the time.
const certLife = 30 * time.Second

// The labs are started when a test first needs them and used by all tests, one after the other.
var (
	plain  = newShared("DEBVISOR_BIN", "../bin", false, "--agent-cert-life", certLife.String())
	faulty = newShared("DEBVISOR_FAILPOINT_BIN", "../build/failpoint/bin", true)
	// faultyToo is another, for tests that wait more than they work.
	faultyToo = newShared("DEBVISOR_FAILPOINT_BIN", "../build/failpoint/bin", true)
	// pooled has machines instead of nodes, with a ZFS pool each and a libvirtd, and a Ceph cluster that they are no clients of until a
	// test gives it to them. Systemd runs their agents by the unit that we ship: what is done with ZFS is done under its restrictions.
	pooled = newShared("DEBVISOR_FAILPOINT_BIN", "../build/failpoint/bin", true).with(lab.Options{Machines: 2, MachineLibvirt: true, Ceph: images(), MachineUnit: agentUnitFile})
	// cephed has two hypervisors that are clients of a Ceph cluster, which keeps what it has through kills.
	cephed = newShared("DEBVISOR_FAILPOINT_BIN", "../build/failpoint/bin", true).with(lab.Options{Nodes: 2, Ceph: images()})
)

func images() *ceph.Options {
	return &ceph.Options{Store: ceph.Bluestore, Pools: []string{"vms", "clones"}}
}

func TestMain(m *testing.M) {
	dir, err := furnished()
	if err != nil {
		fmt.Fprintln(os.Stderr, "what the replicas are told:", err)
		os.Exit(1)
	}
	plain.args = append(plain.args, "--jwt-key", filepath.Join(dir.Path, issuerFile), "--access-file", filepath.Join(dir.Path, accessFile))
	code := m.Run()
	for _, s := range []*shared{plain, faulty, faultyToo, pooled, cephed} {
		if err := s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "closing a lab:", err)
			code = max(code, 1)
		}
	}
	_ = dir.Remove()
	os.Exit(code)
}

// shared is a lab that many tests use.
type shared struct {
	env, bin   string // where the programs are: the variable that says it, or this directory
	failpoints bool
	args       []string // of every replica
	nodes      lab.Options
	before     func(*lab.Lab) // is called before the daemons are made; may be nil

	once   *sync.Once
	lab    *lab.Lab
	err    error
	guests map[string]*lab.Guest // by name
	// secrets must be found nowhere in the end.
	secrets []string
}

func newShared(env, bin string, failpoints bool, args ...string) *shared {
	return &shared{once: &sync.Once{}, env: env, bin: bin, failpoints: failpoints, nodes: lab.Options{Nodes: 2}, args: append(args, "--rate-limit", "0"), guests: map[string]*lab.Guest{}}
}

// with has the lab other nodes than two hypervisors.
func (s *shared) with(nodes lab.Options) *shared {
	s.nodes = nodes
	return s
}

// start starts the lab; later calls give what the first gave.
func (s *shared) start() error {
	s.once.Do(func() {
		bin := s.bin
		if set := os.Getenv(s.env); set != "" {
			bin = set
		}
		if bin, s.err = filepath.Abs(bin); s.err != nil {
			return
		}
		if _, s.err = os.Stat(filepath.Join(bin, "debvisor-rpcd")); s.err != nil {
			s.err = fmt.Errorf("programs to test (make e2e builds them; %s says where they are): %w", s.env, s.err)
			return
		}
		ctx := context.Background() // the lab outlives the test that happens to be the first
		options := s.nodes
		options.Replicas, options.Bin, options.Failpoints, options.Kind = 3, bin, s.failpoints, "test"
		s.lab, s.err = lab.New(ctx, options)
		if s.err != nil {
			s.lab = nil
			return
		}
		for _, r := range s.lab.Replicas {
			r.Args = append(r.Args, s.args...)
		}
		if s.before != nil {
			s.before(s.lab)
		}
		s.err = s.lab.StartCluster(ctx)
	})
	return s.err
}

// renew throws a broken lab away: the next test gets a new one.
func (s *shared) renew() {
	if err := s.close(); err != nil {
		fmt.Fprintln(os.Stderr, "closing a lab:", err)
	}
	s.lab, s.err, s.once, s.guests = nil, nil, &sync.Once{}, map[string]*lab.Guest{}
}

func (s *shared) close() error {
	if s.lab == nil {
		return nil
	}
	return errors.Join(s.leaks(), s.lab.Close())
}
