package store

import (
	"regexp"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

// What etcdctl wrote is decoded, or it grants nothing; a key's text is neither
// kept nor told.
func FuzzRecord(f *testing.F) {
	c := newCodec()
	told := regexp.MustCompile(`^decoding [^ ]+: it is not the JSON of such a record( \(line \d+:\d+\))?$`)
	f.Fuzz(func(t *testing.T, value []byte) {
		for name := range c.collections {
			d := cluster.Empty().Draft()
			err := c.apply(d, &mvccpb.KeyValue{Key: []byte(prefix + name + "x"), Value: value, ModRevision: 7}, false)
			if err != nil && (name == principals || name == apiKeys) && !told.MatchString(err.Error()) {
				t.Errorf("%s%q: it is told that %v", name, value, err)
			}
			s := d.Snapshot(7)
			p, role := s.Principals["x"], s.Roles["x"]
			switch {
			case name == principals && p.ModRevision != 7 || name == roles && role.ModRevision != 7:
				t.Errorf("%s%q is left out", name, value)
			case name == principals && err != nil && (p.Value.GetTenant() != Unreadable || len(p.Value.GetRoles())+len(p.Value.GetPermissions()) > 0):
				t.Errorf("%s%q is broken and read as %v", name, value, p.Value)
			case name == roles && err != nil && len(role.Value.GetPermissions()) > 0:
				t.Errorf("%s%q is broken and read as %v", name, value, role.Value)
			}
			if id := p.Value.GetApikeyId(); id != "" && !keyHash(id) && !keyID(id) {
				t.Errorf("%s%q: the key's text is kept as %q", name, value, id)
			}
			if k := s.APIKeys["x"].Value; k.GetPlain() && len(strings.Trim(k.GetSha256(), hexDigits)) > 0 {
				t.Errorf("%s%q: the key's text is kept as %q", name, value, k.GetSha256())
			}
		}
	})
}
