package main

import (
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Where a replica is sought when nobody says it.
const (
	defaultHost = "127.0.0.1"
	defaultPort = "7443"
)

// endpoint is how to reach a cluster and as whom: from flags, from the
// environment or from a context of the configuration file.
type endpoint struct {
	// Server is host[:port], several comma-separated.
	Server string `json:"server,omitempty"`
	// CA, Cert and Key are paths of PEM files.
	CA   string `json:"ca,omitempty"`
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// APIKey and Token are secrets, or "@" and the path of a file with one.
	APIKey string `json:"api-key,omitempty"`
	Token  string `json:"token,omitempty"`
}

// environment is the endpoint that HVCTL_* describe.
func environment() endpoint {
	return endpoint{
		Server: os.Getenv("HVCTL_SERVER"),
		CA:     os.Getenv("HVCTL_CA"),
		Cert:   os.Getenv("HVCTL_CERT"),
		Key:    os.Getenv("HVCTL_KEY"),
		APIKey: os.Getenv("HVCTL_API_KEY"),
		Token:  os.Getenv("HVCTL_TOKEN"),
	}
}

// over fills what e does not say from a lower one. An identity is taken as a
// whole: a certificate of one source never travels with a key of another.
func (e endpoint) over(lower endpoint) endpoint {
	if e.Server == "" {
		e.Server = lower.Server
	}
	if e.CA == "" {
		e.CA = lower.CA
	}
	if e.identity() == "" {
		e.Cert, e.Key, e.APIKey, e.Token = lower.Cert, lower.Key, lower.APIKey, lower.Token
	}
	return e
}

// identity tells the kinds of identity that e has, for people.
func (e endpoint) identity() string {
	var kinds []string
	if e.Cert != "" || e.Key != "" {
		kinds = append(kinds, "certificate")
	}
	if e.APIKey != "" {
		kinds = append(kinds, "API key")
	}
	if e.Token != "" {
		kinds = append(kinds, "token")
	}
	return strings.Join(kinds, " and ")
}

// check refuses an endpoint whose identity is not exactly one or none. Where
// tells people the source.
func (e endpoint) check(where string) error {
	if (e.Cert == "") != (e.Key == "") {
		return badConfig("%s: a client certificate needs both its cert and its key", where)
	}
	if id := e.identity(); strings.Contains(id, " and ") {
		return badConfig("%s: %s at once; give one identity", where, id)
	}
	return nil
}

// servers lists the replicas as host:port, in the order in which to try them.
func (e endpoint) servers() ([]string, error) {
	if e.Server == "" {
		return []string{net.JoinHostPort(defaultHost, defaultPort)}, nil
	}
	var list []string
	for field := range strings.SplitSeq(e.Server, ",") {
		server, err := withPort(strings.TrimSpace(field))
		if err != nil {
			return nil, err
		}
		list = append(list, server)
	}
	return list, nil
}

// withPort gives a server the default port where it has none.
func withPort(server string) (string, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		host, port = strings.Trim(server, "[]"), defaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			host = ""
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || host == "" || strings.ContainsAny(host, "/ @") {
		return "", badConfig("server %q is not accepted; expected host or host:port, several comma-separated", server)
	}
	return net.JoinHostPort(host, port), nil
}

// badConfig is an error of flags, environment or configuration file.
func badConfig(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, codeConfiguration, format, args...)
}
