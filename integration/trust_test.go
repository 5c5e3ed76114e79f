package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/simagent"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// impostor is an agent with a certificate of the CA's for a node, issued as if it were at.
func (c *cluster) impostor(ca *certs.Authority, of, claims string, life time.Duration, at time.Time) *simagent.Agent {
	c.t.Helper()
	certPEM, keyPEM, err := lab.Issue(ca, certs.AgentLeaf(lab.ClusterName, of, life), at)
	c.must(err)
	config, err := c.TLSWith(certPEM, keyPEM)
	c.must(err)
	return &simagent.Agent{
		Node: claims, Journal: "impostor", TLS: config,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return c.Operator.DialContext(ctx, "tcp", addr)
		},
	}
}

func (c *cluster) ca() *certs.Authority {
	c.t.Helper()
	ca, err := c.Authority()
	c.must(err)
	return ca
}

// undisturbed says whether an agent's session goes on, since a mark in its log.
func (c *cluster) undisturbed(log logMark, a *api, n *lab.Node) {
	c.t.Helper()
	if lines := log.lines("no session"); len(lines) > 0 {
		c.t.Errorf("%s lost its session: %v", n.Name, lines)
	}
	nodes, err := a.nodes.ListNodes(c.within(10*time.Second), &debvisorv1.Empty{})
	c.must(err)
	if s := find(nodes, n.Name); s.GetState() != debvisorv1.NodeState_NODE_STATE_ONLINE {
		c.t.Errorf("%s is %v", n.Name, s)
	}
}

// TestTwoAgentsOfOneNode runs a second agent with the files of one that has its session.
func TestTwoAgentsOfOneNode(t *testing.T) {
	c := plain.use(t)
	a, leader := c.follower()
	n, elsewhere := c.Nodes[0], c.Nodes[1]
	copied := filepath.Join(c.Dir, "second-agent")
	c.must(os.CopyFS(filepath.Join(copied, "pki"), os.DirFS(filepath.Join(n.Agent.Data, "pki"))))
	c.must(os.Chmod(filepath.Join(copied, "pki", "agent-key.pem"), 0o600))
	record, err := os.ReadFile(filepath.Join(n.Agent.Data, "agent.json"))
	c.must(err)
	c.must(os.WriteFile(filepath.Join(copied, "agent.json"), record, 0o600))

	replica, own := c.mark(leader.LogFile()), c.mark(n.Agent.LogFile())
	second, err := elsewhere.Start(lab.Command{
		Name: "second agent", Log: filepath.Join(c.Dir, "logs", "second-agent.log"),
		Args: []string{
			c.Program("debvisor-agent"), "run", "--data-dir", copied, "--libvirt-uri", "qemu:///system",
			"--peer-listen", elsewhere.Addr + ":7446", "--tunnel-listen", elsewhere.Addr + ":7500-7509",
		},
	})
	c.must(err)
	t.Cleanup(func() {
		if err := second.Kill(); err != nil {
			t.Error(err)
		}
	})
	c.log(second.Log).says("refused", n.Name)
	replica.says("refused", n.Name, elsewhere.Addr)
	c.undisturbed(own, a, n)
	if lines := c.log(second.Log).lines("session open"); len(lines) > 0 {
		t.Errorf("the second agent has a session: %v", lines)
	}
}

// TestAgentSpeaksForAnotherNode says Hello, and reports, for a node that the certificate is not of.
func TestAgentSpeaksForAnotherNode(t *testing.T) {
	c := plain.use(t)
	a, leader := c.follower()
	mine, other := c.Nodes[0], c.Nodes[1]
	replica, own := c.mark(leader.LogFile()), c.mark(other.Agent.LogFile())
	s := c.impostor(c.ca(), mine.Name, other.Name, time.Hour, time.Now())
	_, err := s.Hello(c.within(10*time.Second), leader.Agents())
	refused(t, err, codes.PermissionDenied)
	replica.says("another node", mine.Name, other.Name)

	conn, err := c.DialTo(leader.Agents(), s.TLS)
	c.must(err)
	defer func() { _ = conn.Close() }()
	nodes := debvisorv1.NewNodeServiceClient(conn)
	_, err = nodes.Heartbeat(c.within(10*time.Second), &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: other.Name}})
	refused(t, err, codes.PermissionDenied)
	_, err = nodes.Heartbeat(c.within(10*time.Second), &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: mine.Name}, Overall: debvisorv1.StatusCode_STATUS_OK})
	c.must(err)
	_, err = nodes.ListNodes(c.within(10*time.Second), &debvisorv1.Empty{})
	refused(t, err, codes.PermissionDenied)
	c.log(leader.Audit()).says("permission_denied", mine.Name)
	c.undisturbed(own, a, other)

	// At the door of callers its name counts for nothing.
	conn, err = c.DialAs(leader, s.TLS)
	c.must(err)
	defer func() { _ = conn.Close() }()
	_, err = debvisorv1.NewNodeServiceClient(conn).ListNodes(c.within(10*time.Second), &debvisorv1.Empty{})
	if got := status.Code(err); got != codes.PermissionDenied && got != codes.Unauthenticated {
		t.Errorf("an agent may list nodes: %v", err)
	}
}

// TestUsedToken enrols two nodes with one token.
func TestUsedToken(t *testing.T) {
	c := plain.use(t)
	a, _ := c.follower()
	out, err := c.Hvctl(c.within(20*time.Second), a.replica, "node", "token", "spare")
	c.must(err)
	words := strings.Fields(out)
	token := words[len(words)-1]
	enroll := func(dir string) (string, error) {
		var said bytes.Buffer
		err := c.Nodes[0].RunTo(c.within(30*time.Second), nil, &said, c.Program("debvisor-agent"), "enroll",
			"--server", a.replica.Callers(), "--token", token, "--data-dir", filepath.Join(c.Dir, dir), "--node", "spare")
		return said.String(), err
	}
	if said, err := enroll("spare-1"); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	logs := []logMark{c.mark(a.replica.LogFile()), c.mark(a.replica.Audit())}
	said, err := enroll("spare-2")
	if err == nil || !holds(said, "used") {
		t.Errorf("the thief's agent says %q: %v", said, err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "spare-2", "pki", "agent.pem")); err == nil {
		t.Error("the thief has a certificate")
	}
	logs[0].says("token", "used")
	logs[1].says("enroll", "used")
}

// badCertificate is one that nobody should accept.
type badCertificate struct {
	name   string
	reason string // a word of what is said of it
	ca     func(*cluster) *certs.Authority
	life   time.Duration
}

// TestBadCertificates knocks with a certificate of another CA and with an expired one: at both doors, and as a real agent.
func TestBadCertificates(t *testing.T) {
	foreign := func(c *cluster) *certs.Authority {
		ca, err := certs.NewAuthority("foreign", time.Now())
		c.must(err)
		return ca
	}
	for _, bad := range []badCertificate{
		{"foreign", "authority", foreign, time.Hour},
		{"expired", "expired", (*cluster).ca, 2 * time.Second}, // issued after the node was enrolled, or that would count
	} {
		t.Run(bad.name, func(t *testing.T) {
			c := plain.use(t)
			a, leader := c.follower()
			n := c.Nodes[0]
			own := c.mark(n.Agent.LogFile())
			ca, at := bad.ca(c), time.Now()

			door, audit := c.mark(leader.LogFile()), c.mark(leader.Audit())
			s := c.impostor(ca, n.Name, n.Name, bad.life, at)
			if bad.name == "expired" {
				<-time.After(time.Until(at.Add(bad.life + time.Second)))
			}
			m, err := s.Hello(c.within(10*time.Second), leader.Agents())
			switch {
			case err == nil:
				t.Errorf("the agents' door is open: %v", m)
			case bad.name == "expired": // it may come in to renew, and for nothing else
				refused(t, err, codes.Unauthenticated)
				audit.says("certificate_expired", "agent:"+n.Name)
			default:
				door.says("refused", "agent:"+n.Name, bad.reason)
			}

			door = c.mark(leader.LogFile())
			certPEM, keyPEM, err := lab.Issue(ca, certs.ClientLeaf("operator", bad.life), at)
			c.must(err)
			config, err := c.TLSWith(certPEM, keyPEM)
			c.must(err)
			conn, err := c.DialAs(leader, config)
			c.must(err)
			defer func() { _ = conn.Close() }()
			if _, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(c.within(10*time.Second), &debvisorv1.Empty{}); err == nil {
				t.Error("the callers' door is open")
			}
			door.says("refused", "operator", bad.reason)
			c.undisturbed(own, a, n)
		})
	}
}

// TestBadCertificateOfAnAgent starts a real agent with a certificate that is not worth anything: it ends at once with one clear
// line.
func TestBadCertificateOfAnAgent(t *testing.T) {
	c := plain.use(t)
	n := c.Nodes[0]
	foreign, err := certs.NewAuthority("foreign", time.Now())
	c.must(err)
	c.startsNot(n, foreign, badCertificate{name: "foreign", reason: "authority", life: time.Hour}, time.Now())
	past := time.Now().Add(-certs.RenewalGrace - 2*time.Hour)
	c.startsNot(n, c.ca(), badCertificate{name: "expired", reason: "expired", life: time.Hour}, past)
}

// startsNot runs a real agent with the bad certificate, which ends at once with one clear line.
func (c *cluster) startsNot(n *lab.Node, ca *certs.Authority, bad badCertificate, at time.Time) {
	c.t.Helper()
	dir := filepath.Join(c.Dir, "bad-"+bad.name)
	certPEM, keyPEM, err := lab.Issue(ca, certs.AgentLeaf(lab.ClusterName, n.Name, bad.life), at)
	c.must(err)
	caPEM, err := os.ReadFile(c.Replicas[0].PKI("ca.pem"))
	c.must(err)
	record, err := os.ReadFile(filepath.Join(n.Agent.Data, "agent.json"))
	c.must(err)
	c.must(os.MkdirAll(filepath.Join(dir, "pki"), 0o700))
	for name, content := range map[string][]byte{
		"pki/agent.pem": certPEM, "pki/agent-key.pem": keyPEM, "pki/ca.pem": caPEM, "agent.json": record,
	} {
		c.must(os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	var said bytes.Buffer
	err = n.RunTo(c.within(20*time.Second), nil, &said, c.Program("debvisor-agent"), "run", "--data-dir", dir,
		"--libvirt-uri", "qemu:///system", "--peer-listen", n.Addr+":7446", "--tunnel-listen", n.Addr+":7500-7509")
	if err == nil || !holds(said.String(), "certificate", bad.reason) || strings.Count(said.String(), "\n") != 1 {
		c.t.Errorf("an agent with a certificate that is %s says %q: %v", bad.name, said.String(), err)
	}
}

// TestCertificatesRenew waits until both agents have new certificates and show them: their sessions move to new connections, and
// nobody misses them for a heartbeat.
func TestCertificatesRenew(t *testing.T) {
	c := plain.use(t)
	var logs, replicas []logMark
	for _, n := range c.Nodes {
		logs = append(logs, c.mark(n.Agent.LogFile()))
	}
	for _, r := range c.Replicas {
		replicas = append(replicas, c.mark(r.LogFile()))
	}
	serials := c.serials()
	c.eventually(certLife+10*time.Second, "the agents have new certificates", func() error {
		for i, now := range c.serials() {
			if now == serials[i] || len(logs[i].lines("certificate renewed")) == 0 {
				return fmt.Errorf("%s still has %s", c.Nodes[i].Name, now)
			}
			if len(logs[i].lines("moves to a connection with the new certificate")) == 0 || len(logs[i].lines("session open")) == 0 {
				return fmt.Errorf("the session of %s shows the old one", c.Nodes[i].Name)
			}
		}
		return nil
	})
	for i, n := range c.Nodes {
		if lost := logs[i].lines("no session"); len(lost) > 0 {
			t.Errorf("%s lost its session: %v", n.Name, lost)
		}
	}
	for i, log := range replicas {
		for _, n := range c.Nodes { // those of a test before, which end now, are none of these
			if missed := log.lines("node liveness", "node="+n.Name); len(missed) > 0 {
				t.Errorf("%s noticed: %v", c.Replicas[i].Name, missed)
			}
		}
	}
	c.must(c.whole(c.within(10 * time.Second)))
}

// serials are the serial numbers of the nodes' certificates, on their disks.
func (c *cluster) serials() []string {
	c.t.Helper()
	var all []string
	for _, n := range c.Nodes {
		raw, err := os.ReadFile(filepath.Join(n.Agent.Data, "pki", "agent.pem"))
		c.must(err)
		list, err := certs.ParseCertificates(raw)
		c.must(err)
		all = append(all, certs.Serial(list[0]))
	}
	return all
}
