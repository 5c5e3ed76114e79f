package certs

import (
	"fmt"
	"net/url"
	"regexp"
)

var (
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	clusterPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
)

// CheckName refuses the name of a node or a replica that would be unsafe where
// names are used: in a URI's path, in a key of etcd, in the name of a file.
func CheckName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s %q is not a name: 1 to 63 letters, digits, '.', '_' or '-', first and last a letter or digit", what, name)
	}
	return nil
}

// CheckCluster refuses a cluster's name that cannot be the trust domain of a
// SPIFFE id.
func CheckCluster(name string) error {
	if !clusterPattern.MatchString(name) {
		return fmt.Errorf("cluster %q is not a name: 1 to 63 lower-case letters, digits, '.' or '-', first and last a letter or digit", name)
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
