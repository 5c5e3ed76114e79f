// Package accessfile reads an access policy from a file: principals, roles,
// tenants and the hashes of keys, beside those in etcd. A file is taken whole
// or not at all; while it is broken, what it said before stays in force.
// What a policy means is for others: authn reads the keys, authz the rest.
// A name that is in the file and in etcd is the file's.
package accessfile

import storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"

// Policy is what an access file says. It is never changed; another content of
// the file is another Policy, and the same content is the same one, so that
// pointers can be compared.
type Policy struct {
	// Version is the SHA-256 of the content, hex; empty where there is no file.
	Version string
	// Principals, Roles and Tenants are by name.
	Principals map[string]*storev1.Principal
	Roles      map[string]*storev1.Role
	Tenants    map[string]*storev1.Tenant
	// Keys are by id. Their source is "file". No two have the same hash.
	Keys map[string]*storev1.APIKey
}

// Source is what Policy's records have as their source.
const Source = "file"

func newPolicy(version string) *Policy {
	return &Policy{
		Version:    version,
		Principals: map[string]*storev1.Principal{},
		Roles:      map[string]*storev1.Role{},
		Tenants:    map[string]*storev1.Tenant{},
		Keys:       map[string]*storev1.APIKey{},
	}
}
