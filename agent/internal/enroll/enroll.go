package enroll

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Request says how a host becomes a node.
type Request struct {
	// Server is the callers' listener of any replica, host:port.
	Server string
	// Token is the join token.
	Token string
	// Node is the node's id.
	Node string
	// Hostname, IP and Version are noted in the node's record.
	Hostname, IP, Version string
}

// Enroll exchanges the token for the agent's certificate and fills the data
// directory. It refuses a directory that has a certificate. After any other
// failure it can be repeated with the same token: the key is kept.
func Enroll(ctx context.Context, home Home, req Request) (Record, error) {
	token, err := identity.ParseJoinToken(req.Token)
	if err != nil {
		return Record{}, err
	}
	if err := certs.CheckName("node", req.Node); err != nil {
		return Record{}, err
	}
	files := home.Files()
	if _, err := os.Stat(files.Cert); !errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("%s exists: this host is enrolled already; remove the file to enrol it anew (with a --replace token)", files.Cert)
	}
	if err := os.MkdirAll(filepath.Dir(files.Cert), certs.DirMode); err != nil {
		return Record{}, fmt.Errorf("make the data directory: %w", err)
	}
	key, err := home.pair().NextKey()
	if err != nil {
		return Record{}, err
	}
	csr, err := certs.NewRequest(key, "agent:"+req.Node)
	if err != nil {
		return Record{}, err
	}
	resp, err := ask(ctx, token, req, csr)
	if err != nil {
		return Record{}, err
	}
	record, err := home.settleIn(token, req.Node, resp)
	if err != nil {
		return Record{}, fmt.Errorf("enrol with %s: %w", req.Server, err)
	}
	return record, nil
}

func ask(ctx context.Context, token identity.JoinToken, req Request, csr []byte) (*agentv1.EnrollResponse, error) {
	host, _, err := net.SplitHostPort(req.Server)
	if err != nil {
		return nil, errdefs.Field("server", req.Server, "host:port of a replica")
	}
	conn, err := rpc.Dial(req.Server, certs.BootstrapClient(host, token.Fingerprint))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := agentv1.NewEnrollServiceClient(conn).Enroll(ctx, &agentv1.EnrollRequest{
		Token: req.Token, NodeId: req.Node, Csr: csr,
		Hostname: req.Hostname, Ip: req.IP, AgentVersion: req.Version,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol with %s: %w", req.Server, errdefs.FromStatus(err))
	}
	return resp, nil
}

// settleIn checks the answer and writes the directory. The certificate comes
// last: without it the host counts as not enrolled, and Enroll can be repeated.
func (h Home) settleIn(token identity.JoinToken, node string, resp *agentv1.EnrollResponse) (Record, error) {
	cas, err := certs.ParseCertificates(resp.GetCa())
	if err != nil {
		return Record{}, fmt.Errorf("read the CA: %w", err)
	}
	if _, err := certs.FindByFingerprint(cas, token.Fingerprint); err != nil {
		return Record{}, err
	}
	r := Record{Node: node, Cluster: resp.GetCluster(), Servers: resp.GetServers()}
	if err := certs.CheckCluster(r.Cluster); err != nil {
		return Record{}, err
	}
	if err := certs.WriteFile(h.Files().CA, resp.GetCa(), certs.PublicMode); err != nil {
		return Record{}, err
	}
	if err := h.write(r); err != nil {
		return Record{}, err
	}
	return r, h.pair().Install(resp.GetCertificate())
}
