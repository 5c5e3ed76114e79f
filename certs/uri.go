package certs

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// namePattern is what a cluster, a node, a replica or a principal may be
// called: it must be safe in a URI's path, in an etcd key and in a file name.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?$`)

// CheckName refuses a name that could be taken for something else where it is
// used: in a SPIFFE id, in a key of etcd, in a path.
func CheckName(what, name string) error {
	if !namePattern.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%s %q is not a name: 1 to 63 letters, digits, '.', '_', '@' or '-', first and last a letter or digit", what, name)
	}
	return nil
}

// AgentURI returns the URI SAN of the agent of a node.
func AgentURI(cluster, node string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/agent/" + node}
}

// ReplicaURI returns the URI SAN of a replica.
func ReplicaURI(cluster, replica string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/replica/" + replica}
}
