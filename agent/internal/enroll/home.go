package enroll

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// Home is an agent's data directory.
type Home struct {
	Dir string
}

// Record is what an agent knows of itself: agent.json.
type Record struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Servers are the agents' listeners of the replicas, host:port.
	Servers []string `json:"servers"`
}

// Files names the agent's CA, certificate and key. A certificate that expired
// not too long ago loads, since it can be renewed.
func (h Home) Files() certs.Files {
	return certs.Files{
		CA: h.pki("ca.pem"), Cert: h.pki("agent.pem"), Key: h.pki("agent-key.pem"),
		Remedy: "enrol the node again, with a token made for it with --replace, after removing this file",
		Grace:  certs.RenewalGrace,
	}
}

// RecordFile is where the Record is.
func (h Home) RecordFile() string { return filepath.Join(h.Dir, "agent.json") }

// Record reads what the agent knows of itself.
func (h Home) Record() (Record, error) {
	data, err := os.ReadFile(h.RecordFile())
	if err != nil {
		return Record{}, fmt.Errorf("%s is no agent's data directory (make it with debvisor-agent enroll): %w", h.Dir, err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%s is damaged (restore it from a backup, or enrol again): %w", h.RecordFile(), err)
	}
	if err := certs.CheckName("node", r.Node); err != nil {
		return Record{}, fmt.Errorf("%s: %w", h.RecordFile(), err)
	}
	return r, certs.CheckCluster(r.Cluster)
}

// Open reads the directory of an enrolled agent. Its error is one line fit to
// end a start with.
func (h Home) Open(log hclog.Logger) (Record, *certs.Reloader, error) {
	r, err := h.Record()
	if err != nil {
		return Record{}, nil, err
	}
	reloader, err := certs.NewReloader(h.Files(), log)
	if err != nil {
		return Record{}, nil, err
	}
	want := certs.AgentURI(r.Cluster, r.Node).String()
	if leaf := reloader.Leaf(); len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		return Record{}, nil, fmt.Errorf("certificate %s is not that of the agent of node %q, which %s names: use files of one enrolment",
			h.Files().Cert, r.Node, h.RecordFile())
	}
	return r, reloader, nil
}

func (h Home) pair() certs.Pair {
	f := h.Files()
	return certs.Pair{Cert: f.Cert, Key: f.Key}
}

func (h Home) pki(name string) string { return filepath.Join(h.Dir, "pki", name) }

func (h Home) write(r Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode agent.json: %w", err)
	}
	return certs.WriteFile(h.RecordFile(), append(data, '\n'), certs.PublicMode)
}
