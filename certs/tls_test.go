package certs_test

import (
	"bytes"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

func TestListenersAndTheirClients(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	day := 24 * time.Hour
	server := member(t, ca, certs.ServerLeaf(cluster, "r1", []string{"10.1.2.3"}, 0))
	agent := func(ca *certs.Authority, cluster string, issued time.Duration) *certs.Reloader {
		files := issue(t, ca, certs.AgentLeaf(cluster, "node-1", 0), time.Now().Add(-issued))
		files.Grace = 1000 * day
		return reloader(t, files)
	}
	client := member(t, ca, certs.ClientLeaf("operator", 0))
	withOwnRoots := func(r *certs.Reloader) *tls.Config {
		cfg := r.ReplicaClient("127.0.0.1")
		cfg.VerifyConnection = nil // a client that accepts any server: the server's check is under test
		return cfg
	}
	expired := func(leaf certs.Leaf) *certs.Reloader {
		files := issue(t, ca, leaf, time.Now().Add(-day))
		files.Grace = 1000 * day
		return reloader(t, files)
	}
	anonymous := client.ReplicaClient("127.0.0.1")
	anonymous.GetClientCertificate = nil

	callers, agents := server.CallersServer(), server.AgentsServer(cluster)
	peers := agent(ca, cluster, 0).PeersServer(cluster)
	for name, c := range map[string]struct {
		server, client *tls.Config
		ok             bool
	}{
		"caller without certificate":         {callers, anonymous, true},
		"caller with certificate":            {callers, client.ReplicaClient("127.0.0.1"), true},
		"caller by name":                     {callers, client.ReplicaClient("localhost"), true},
		"caller with a foreign certificate":  {callers, withOwnRoots(member(t, foreign, certs.ClientLeaf("operator", 0))), false},
		"caller with an expired certificate": {callers, withOwnRoots(agent(ca, cluster, 31*day)), false},
		"agent":                              {agents, agent(ca, cluster, 0).ReplicaClient("127.0.0.1"), true},
		"agent expired 89 days ago":          {agents, agent(ca, cluster, 119*day).ReplicaClient("127.0.0.1"), true},
		"agent expired 91 days ago":          {agents, agent(ca, cluster, 121*day).ReplicaClient("127.0.0.1"), false},
		"agent of another cluster's name":    {agents, agent(ca, "other", 0).ReplicaClient("127.0.0.1"), false},
		"agent of a foreign CA":              {agents, withOwnRoots(agent(foreign, cluster, 0)), false},
		"no certificate for agents":          {agents, anonymous, false},
		"a principal for agents":             {agents, client.ReplicaClient("127.0.0.1"), false},
		"another replica":                    {agents, member(t, ca, certs.ServerLeaf(cluster, "r2", nil, 0)).ReplicaClient("127.0.0.1"), true},
		"an expired replica":                 {agents, withOwnRoots(expired(certs.ServerLeaf(cluster, "r2", nil, time.Hour))), false},
		"a replica of another cluster":       {agents, member(t, ca, certs.ServerLeaf("other", "r2", nil, 0)).ReplicaClient("127.0.0.1"), false},
		"a replica of a foreign CA":          {agents, withOwnRoots(member(t, foreign, certs.ServerLeaf(cluster, "r2", nil, 0))), false},
		"an etcd member for agents":          {agents, member(t, ca, certs.EtcdPeerLeaf("r2", nil, 0)).ReplicaClient("127.0.0.1"), false},
		"a replica for peers":                {peers, withOwnRoots(server), false},
		"peer":                               {peers, agent(ca, cluster, 0).PeerClient(cluster, "node-1"), true},
		"expired peer":                       {peers, agent(ca, cluster, 31*day).PeerClient(cluster, "node-1"), false},
		"another node than was dialled":      {peers, agent(ca, cluster, 0).PeerClient(cluster, "node-2"), false},
		"an agent poses as replica":          {peers, agent(ca, cluster, 0).ReplicaClient("127.0.0.1"), false},
		"replica under another address":      {callers, client.ReplicaClient("10.1.2.4"), false},
		"replica under no address":           {callers, client.ReplicaClient(""), false},
		"server of a foreign CA":             {callers, member(t, foreign, certs.ClientLeaf("operator", 0)).ReplicaClient("127.0.0.1"), false},
		"a server's expired certificate":     {agent(ca, cluster, 31*day).PeersServer(cluster), agent(ca, cluster, 0).PeerClient(cluster, "node-1"), false},
	} {
		t.Run(name, func(t *testing.T) {
			state, serverErr, clientErr := handshake(t, c.server, c.client)
			if ok := serverErr == nil && clientErr == nil; ok != c.ok {
				t.Fatalf("accepted: %v (server: %v, client: %v)", ok, serverErr, clientErr)
			}
			if c.ok && state.Version != tls.VersionTLS13 {
				t.Errorf("version %x", state.Version)
			}
		})
	}
}

func TestNothingBelowTLS13(t *testing.T) {
	ca := newCA(t)
	server := member(t, ca, certs.ServerLeaf(cluster, "r1", nil, 0))
	old := server.ReplicaClient("127.0.0.1")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, serverErr, _ := handshake(t, server.CallersServer(), old); serverErr == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestExpiredAgentIsRecognised(t *testing.T) {
	ca := newCA(t)
	server := member(t, ca, certs.ServerLeaf(cluster, "r1", nil, 0))
	files := issue(t, ca, certs.AgentLeaf(cluster, "node-1", 0), time.Now().Add(-40*24*time.Hour))
	files.Grace = certs.RenewalGrace
	state, _, err := handshake(t, server.AgentsServer(cluster), reloader(t, files).ReplicaClient("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if !certs.Expired(state.PeerCertificates[0], time.Now()) {
		t.Error("not told to be expired")
	}
}

func TestBootstrapByFingerprint(t *testing.T) {
	ca := newCA(t)
	server := member(t, ca, certs.ServerLeaf(cluster, "r1", nil, 0)).CallersServer()
	right := certs.Fingerprint(ca.Certificate())
	leafPrint := certs.Fingerprint(member(t, ca, certs.ServerLeaf(cluster, "r1", nil, 0)).Leaf())
	agent := member(t, ca, certs.AgentLeaf(cluster, "node-1", 0)).CallersServer()
	for name, c := range map[string]struct {
		server            *tls.Config
		host, fingerprint string
		want              string
	}{
		"right":             {server, "127.0.0.1", right, ""},
		"another CA":        {server, "127.0.0.1", certs.Fingerprint(newCA(t).Certificate()), "not of the cluster"},
		"empty fingerprint": {server, "127.0.0.1", "", "not of the cluster"},
		"a leaf's":          {server, "127.0.0.1", leafPrint, "not of the cluster"},
		"another host":      {server, "example.org", right, "example.org"},
		"an agent":          {agent, "127.0.0.1", right, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := handshake(t, c.server, certs.BootstrapClient(c.host, c.fingerprint))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestRefusalIsLogged(t *testing.T) {
	ca := newCA(t)
	var log bytes.Buffer
	server, err := certs.NewReloader(issue(t, ca, certs.ServerLeaf(cluster, "r1", nil, 0), time.Now()),
		hclog.New(&hclog.LoggerOptions{Output: &log}))
	if err != nil {
		t.Fatal(err)
	}
	stranger := member(t, newCA(t), certs.AgentLeaf(cluster, "node-1", 0)).ReplicaClient("127.0.0.1")
	stranger.VerifyConnection = nil
	if _, serverErr, _ := handshake(t, server.AgentsServer(cluster), stranger); serverErr == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"connection refused", "127.0.0.1:", "CN=agent:node-1", "unknown authority"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q: %s", want, log.String())
		}
	}
}
