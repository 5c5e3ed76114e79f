package members

import "github.com/debvisor/debvisor/certs"

// EtcdPeer is what this replica shows to the others' etcd.
func (m *Member) EtcdPeer() *certs.Reloader { return m.peer }
