package store_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestSocketIsForThisUserOnly(t *testing.T) {
	cfg := storetest.Configs(t, 1)[0]
	storetest.Start(t, cfg)
	socket := store.SocketPath(cfg.DataDir)
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
}

func TestPeersMustHaveACertificateOfTheEtcdCA(t *testing.T) {
	cfg := storetest.Configs(t, 1)[0]
	storetest.Start(t, cfg)
	foreign := storetest.Configs(t, 1)[0]
	pki := filepath.Join(foreign.DataDir, "etcd", "pki")
	ours := filepath.Join(cfg.DataDir, "etcd", "pki", "ca.pem")
	for name, peer := range map[string]store.ExternalConfig{
		"foreign certificate": {CAFile: ours, CertFile: filepath.Join(pki, "peer.pem"), KeyFile: filepath.Join(pki, "peer-key.pem")},
		"foreign server":      {CAFile: filepath.Join(pki, "ca.pem"), CertFile: filepath.Join(filepath.Dir(ours), "peer.pem"), KeyFile: filepath.Join(filepath.Dir(ours), "peer-key.pem")},
	} {
		peer.Endpoints, peer.Log = []string{"https://" + cfg.PeerListen}, hclog.NewNullLogger()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		client, err := store.Connect(ctx, peer)
		cancel()
		if err == nil {
			t.Errorf("%s: let in", name)
			_ = client.Close()
		}
	}
}

func TestThreeMembersSurviveTheLossOfOne(t *testing.T) {
	t.Parallel()
	ctx, configs := deadline(t), storetest.Configs(t, 3)
	members := storetest.StartAll(t, configs)
	v, _ := run(t, members[2].Client())
	key := func(id string) store.Change {
		return store.Change{Puts: []store.Put{store.PutString(store.InUseKey(id), "op")}}
	}
	first := commit(ctx, t, store.New(members[0].Client()), key("before"))
	if err := v.Await(ctx, first); err != nil {
		t.Fatal(err)
	}

	members[0].Close()
	second := store.New(members[1].Client())
	poll(t, "a commit through a quorum of two", func() bool {
		_, err := second.Commit(ctx, key("after"))
		if err != nil && !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	until(t, v, "the write of the two", func(s *cluster.Snapshot) bool { return s.InUse["after"].Value != "" })

	back := storetest.Start(t, configs[0])
	again, _ := run(t, back.Client())
	if got := again.Current().InUse; got["before"].Value == "" || got["after"].Value == "" {
		t.Errorf("the member that came back knows %v", got)
	}
}

func TestALeadersMemberDoesNotLeadEtcd(t *testing.T) {
	t.Parallel()
	ctx, members := deadline(t), storetest.StartAll(t, storetest.Configs(t, 3))
	raftLeader := func() uint64 {
		resp, err := members[0].Client().Status(ctx, members[0].Client().Endpoints()[0])
		if err != nil {
			t.Fatal(err)
		}
		return resp.Leader
	}
	var busy *store.Embedded
	poll(t, "a member leads etcd", func() bool {
		for _, m := range members {
			if m.MemberID() == raftLeader() {
				busy = m
			}
		}
		return busy != nil
	})
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- busy.StayRaftFollower(running) }()
	poll(t, "another member leads etcd", func() bool { l := raftLeader(); return l != 0 && l != busy.MemberID() })
	stop()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	commit(ctx, t, store.New(busy.Client()), store.Change{Puts: []store.Put{store.PutString("k", "v")}})
}

func TestViewOfAMemberWithoutQuorumIsStale(t *testing.T) {
	t.Parallel()
	members := storetest.StartAll(t, storetest.Configs(t, 3))
	v, _ := run(t, members[0].Client())
	members[1].Close()
	members[2].Close()
	poll(t, "stale, though its own member runs", func() bool { return v.Fresh() != nil })
}

func TestAJoiningMemberWaitsForItsPromotion(t *testing.T) {
	t.Parallel()
	ctx, configs := deadline(t), storetest.Configs(t, 2)
	all := configs[0].Peers
	configs[0].Peers = map[string]string{"r1": all["r1"]}
	client := storetest.Start(t, configs[0]).Client()
	added, err := client.MemberAddAsLearner(ctx, []string{all["r2"]})
	if err != nil {
		t.Fatal(err)
	}
	configs[1].Existing = true
	log := &logBuffer{}
	configs[1].Log = hclog.New(&hclog.LoggerOptions{Output: log})
	type started struct {
		member *store.Embedded
		err    error
	}
	joined := make(chan started, 1)
	go func() {
		member, err := store.StartEmbedded(ctx, configs[1])
		joined <- started{member, err}
	}()
	poll(t, "it says that it waits", func() bool { return strings.Contains(log.String(), "learner") })
	select {
	case s := <-joined:
		t.Fatalf("started before its promotion: %v", s.err)
	default:
	}
	poll(t, "the promotion", func() bool {
		_, err := client.MemberPromote(ctx, added.Member.ID)
		return err == nil
	})
	s := <-joined
	if s.err != nil {
		t.Fatal(s.err)
	}
	defer s.member.Close()
	if s.member.MemberID() != added.Member.ID {
		t.Error("another member than was added")
	}
	commit(ctx, t, store.New(s.member.Client()), store.Change{Puts: []store.Put{store.PutString("k", "v")}})
}

func TestRunStopsTheMember(t *testing.T) {
	cfg := storetest.Configs(t, 1)[0]
	member := storetest.Start(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := member.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", cfg.PeerListen); err == nil {
		_ = c.Close()
		t.Error("its peers' listener is still open")
	}
	if _, err := os.Stat(store.SocketPath(cfg.DataDir)); err == nil {
		t.Error("its socket is still there")
	}
}

func TestBadConfigurationsStopTheStart(t *testing.T) {
	good := storetest.Configs(t, 1)[0]
	long := good
	long.DataDir = "/" + strings.Repeat("d", 100)
	noCerts := good
	noCerts.CertFile = filepath.Join(good.DataDir, "none.pem")
	otherKey := good
	otherKey.KeyFile = filepath.Join(storetest.Configs(t, 1)[0].DataDir, "etcd", "pki", "peer-key.pem")
	named := good
	named.PeerListen = "localhost:7442"
	plain := good
	plain.Peers = map[string]string{"r1": "http://127.0.0.1:7442"}
	cases := []struct {
		name string
		cfg  store.EmbeddedConfig
		says string
	}{
		{"path too long", long, "data directory"},
		{"no certificate", noCerts, "none.pem"},
		{"key of another", otherKey, "private key does not match"},
		{"no IP", named, "peer listen address"},
		{"plain peers", plain, "peer r1"},
		{"no name", store.EmbeddedConfig{}, "replica name"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			member, err := store.StartEmbedded(t.Context(), c.cfg)
			if err == nil {
				member.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
}

func TestAStartWithoutQuorumEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	member, err := store.StartEmbedded(ctx, storetest.Configs(t, 3)[0])
	if err == nil {
		member.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestConnectRefusesWhatIsNotSafe(t *testing.T) {
	for _, endpoints := range [][]string{nil, {"http://h:2379"}, {"unix:///s", "ftp://h"}} {
		if _, err := store.Connect(t.Context(), store.ExternalConfig{Endpoints: endpoints}); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%v: got %v, want InvalidArgument", endpoints, err)
		}
	}
	if _, err := store.Connect(t.Context(), store.ExternalConfig{Endpoints: []string{"h:2379"}, CAFile: "/none"}); err == nil {
		t.Error("connects without a CA")
	}
}
