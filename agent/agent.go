package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/agent/internal/answer"
	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/agent/internal/failover"
	"github.com/debvisor/debvisor/agent/internal/freeze"
	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/image"
	"github.com/debvisor/debvisor/agent/internal/inventory"
	"github.com/debvisor/debvisor/agent/internal/migration"
	"github.com/debvisor/debvisor/agent/internal/power"
	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/replication"
	"github.com/debvisor/debvisor/agent/internal/session"
	"github.com/debvisor/debvisor/agent/internal/storage"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/rpc"
	"github.com/debvisor/debvisor/shared/run"
	"github.com/debvisor/debvisor/shared/task"
)

// reloadEvery is how often the certificate's files are looked at: whoever
// replaces them by hand needs no restart.
const reloadEvery = time.Minute

// Run runs an agent until ctx ends, which is no error, or until it cannot go
// on: without its journal it could keep none of its promises.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Check(); err != nil {
		return err
	}
	shared, err := storage.ParseSharedDirs(cfg.SharedDirs)
	if err != nil {
		return err
	}
	home := enroll.Home{Dir: cfg.DataDir}
	record, reloader, err := home.Open(cfg.Log.Named("certs"))
	if err != nil {
		return err
	}
	bootID, err := inventory.BootID()
	if err != nil {
		return err
	}
	tracing, err := openTracing(ctx, cfg, record.Node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeTracing(ctx, tracing)) }()
	others, err := listenForPeers(ctx, cfg, record, reloader)
	if err != nil {
		return err
	}
	defer others.server.Stop()
	hv := hypervisor.New(hypervisor.Config{URI: cfg.LibvirtURI, Log: cfg.Log.Named("hypervisor")})
	pools := zfs.New(zfs.Config{Log: cfg.Log.Named("zfs")})
	images := rbd.New(rbd.Config{Conf: cfg.CephConf, User: cfg.CephUser, Log: cfg.Log.Named("ceph")}) //nolint:contextcheck // it lives until it is closed
	defer func() { err = errors.Join(err, images.Close()) }()
	ports, err := tunnelPorts(cfg, others)
	if err != nil {
		return err
	}
	moves := newMigration(cfg, record, bootID, reloader, hv, pools, images, others, ports)
	defer func() { err = errors.Join(err, moves.Close()) }()
	orders := power.New(power.Config{Hypervisor: hv, BootID: bootID, Log: cfg.Log.Named("power")})
	freezer := newFreezer(cfg, hv)
	copies := newReplication(cfg, record, reloader, pools, freezer, ports)
	recoveries := failover.New(failover.Config{Hypervisor: hv, Power: orders, ZFS: pools, BootID: bootID, Log: cfg.Log.Named("failover")})
	imageTasks := image.New(image.Config{Ceph: images, Freezer: freezer, Log: cfg.Log.Named("image")})
	var host *inventory.Collector // before the first task runs
	kinds := lookingAfter(slices.Concat(moves.Kinds(), copies.Kinds(), recoveries.Kinds()), func() { host.PokeZFS() })
	work, err := worker.Open(worker.Config{
		Path: filepath.Join(cfg.DataDir, "journal.db"), Kinds: slices.Concat(kinds, orders.Kinds(), imageTasks.Kinds()), BootID: bootID,
		Tracing: tracing, Log: cfg.Log.Named("worker"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	sweep(cfg, moves, work)
	host = inventory.New(inventory.Config{
		Node: record.Node, Hypervisor: hv, ZFS: pools, Ceph: images, Shared: shared, PeerAddress: others.address,
		DirtyRateEvery: cfg.DirtyRateEvery, Busy: func() bool { return atWork(work) }, Log: cfg.Log.Named("inventory"),
	})
	renewer := &enroll.Renewer{Home: home, Reloader: reloader, Log: cfg.Log.Named("enroll")}
	trust := enroll.NewTrust(renewer, cfg.Log.Named("enroll"))
	link := session.New(session.Config{
		Node: record.Node, Version: cfg.Version, BootID: bootID, PeerAddress: others.address,
		Servers: record.Servers, ServersFile: filepath.Join(cfg.DataDir, "servers.json"),
		TLS: reloader.ReplicaClient, Leaf: reloader.Leaf, Trust: trust, Work: work, Host: host,
		Answers: answer.Answers{Hypervisor: hv, ZFS: answer.NewZFS(pools), Ceph: answer.NewCeph(images)}, Up: func(leader string) { cfg.Notify.Status("session with leader " + leader) }, Down: func() { cfg.Notify.Status(leaderless) }, Log: cfg.Log.Named("session"),
	})
	renewer.Servers = link.Servers
	cfg.Log.Info("agent runs", "node", record.Node, "cluster", record.Cluster, "version", cfg.Version, "journal", work.JournalID(), "peers", others.address)
	var group run.Group
	group.Add("hypervisor", hv.Run)
	group.Add("frozen guests", freezer.Run)
	group.Add("inventory", host.Run)
	group.Add("peers", others.run)
	group.Add("worker", work.Run)
	group.Add("tunnels", (&tunnel.Tunnels{Log: cfg.Log.Named("tunnel")}).Watch)
	addCertificates(&group, cfg, reloader, renewer)
	group.Add("trust", trust.Run)
	group.Add("session", link.Run)
	group.Add("service manager", watchOver(cfg, work, link, others, reloader.PeerClient(record.Cluster, record.Node)))
	return group.Run(ctx)
}

// sweep removes what former tunnels have left.
func sweep(cfg Config, moves *migration.Migration, work *worker.Worker) {
	if err := moves.Sweep(work.Open()); err != nil {
		cfg.Log.Warn("former tunnels have left something", "error", err)
	}
}

// addCertificates adds what keeps the agent's certificate valid and current.
func addCertificates(group *run.Group, cfg Config, reloader *certs.Reloader, renewer *enroll.Renewer) {
	group.Add("certificate files", func(ctx context.Context) error { return reloader.Run(ctx, reloadEvery) })
	group.Add("certificate", func(ctx context.Context) error { return keepValid(ctx, renewer) })
	group.Add("SIGHUP", func(ctx context.Context) error { return hangUps(ctx, cfg, reloader) })
}

// atWork tells whether a task is under way.
func atWork(w *worker.Worker) bool {
	return slices.ContainsFunc(w.Open(), func(r *agentv1.TaskReport) bool { return !task.Ended(r.GetState()) })
}

// tunnelPorts is where other agents' tunnels and streams are listened for.
func tunnelPorts(cfg Config, others *peers) (portRange, error) {
	ports, err := parsePortRange(cfg.TunnelListen)
	if err != nil {
		return ports, err
	}
	if ip := net.ParseIP(ports.host); ports.host == "" || ip != nil && ip.IsUnspecified() {
		// What is told to sources must be an address; the peers' is a good one.
		ports.host, _, err = net.SplitHostPort(others.address)
	}
	return ports, err
}

// newFreezer makes what freezes guests, in children of this very program.
func newFreezer(cfg Config, hv *hypervisor.Hypervisor) *freeze.Freezer {
	return freeze.New(freeze.Config{
		Dir: cfg.DataDir, LibvirtURI: cfg.LibvirtURI, Command: []string{"/proc/self/exe", "freeze"}, Thaw: hv, Log: cfg.Log.Named("freeze"),
	})
}

// newReplication makes the kinds of tasks that replicate datasets.
func newReplication(cfg Config, record enroll.Record, reloader *certs.Reloader, pools *zfs.ZFS, freezer *freeze.Freezer, ports portRange) *replication.Replication {
	return replication.New(replication.Config{
		Node: record.Node, Cluster: record.Cluster, ZFS: pools, Certificates: reloader,
		Host: ports.host, FirstPort: ports.first, LastPort: ports.last, Freezer: freezer, Log: cfg.Log.Named("replication"),
	})
}

// newMigration makes the kinds of tasks that move VMs and has their side told
// to other agents.
func newMigration(cfg Config, record enroll.Record, bootID string, reloader *certs.Reloader, hv *hypervisor.Hypervisor, pools *zfs.ZFS, images *rbd.Client, others *peers, ports portRange) *migration.Migration {
	m := migration.New(migration.Config{
		Node: record.Node, Cluster: record.Cluster, BootID: bootID, Hypervisor: hv, ZFS: pools, Images: images,
		Tunnels:      &tunnel.Tunnels{Log: cfg.Log.Named("tunnel")},
		Certificates: reloader, Files: enroll.Home{Dir: cfg.DataDir}.Files(),
		TunnelHost: ports.host, FirstPort: ports.first, LastPort: ports.last, Log: cfg.Log.Named("migration"),
	})
	m.Register(others.server)
	return m
}

// keepValid renews the certificate, first of all one that has expired. What
// runs on the host goes on meanwhile.
func keepValid(ctx context.Context, r *enroll.Renewer) error {
	if err := r.EnsureValid(ctx); err != nil {
		return err
	}
	return r.Run(ctx)
}

// peers is the listener for other agents.
type peers struct {
	server   *grpc.Server
	listener net.Listener
	address  string // as it is told to them, host:port
}

func listenForPeers(ctx context.Context, cfg Config, record enroll.Record, reloader *certs.Reloader) (*peers, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.PeerListen)
	if err != nil {
		return nil, fmt.Errorf("--peer-listen %s, for other agents: %w", cfg.PeerListen, err)
	}
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err == nil {
		host, err = advertised(ctx, host, record.Servers)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	//nolint:contextcheck // each call brings its own context
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: reloader.PeersServer(record.Cluster), Log: cfg.Log.Named("peers")})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return &peers{server, listener, net.JoinHostPort(host, port)}, nil
}

// run serves until ctx ends; calls that wait then are cut off.
func (p *peers) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.server.Stop)
	defer stop()
	if err := p.server.Serve(p.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) && ctx.Err() == nil {
		return fmt.Errorf("serving other agents at %s: %w", p.address, err)
	}
	return nil
}
