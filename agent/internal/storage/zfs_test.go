package storage

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestDisksOnZFS(t *testing.T) {
	root := t.TempDir()
	link := func(name, to string) {
		path := filepath.Join(root, "dev/zvol", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
	link("tank/vms/web", "../../../zd0")
	link("tank/vms/web-part1", "../../../zd0p1")
	link("tank/my+vm", "../../zd16")
	link("tank/db@noon", "../../zd32")
	link("tank/odd", "../../sda")
	known := linkedVolumes(filepath.Join(root, "dev/zvol"))
	if want := map[string]string{"zd0": "tank/vms/web", "zd16": "tank/my vm", "zd32": "tank/db"}; !maps.Equal(known, want) {
		t.Errorf("volumes %v, want %v", known, want)
	}
	mounts, err := parseMounts(strings.NewReader(strings.Join([]string{
		`27 1 254:0 / / rw - ext4 /dev/vda rw`,
		`40 27 0:50 / /tank rw - zfs tank rw,xattr`,
		`41 40 0:51 / /tank/my\040vms rw - zfs tank/my\040vms rw,xattr`,
		`42 41 0:52 / /tank/my\040vms/.zfs/snapshot/noon ro - zfs tank/my\040vms@noon ro`,
		`43 40 0:53 / /tank/nfs rw - nfs4 nas:/x rw`,
		`44 27 0:51 /images /srv/images rw - zfs tank/my\040vms rw`,
	}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Node: "n1", Root: root})
	for _, c := range []struct{ kind, source, resolved, want string }{
		{"block", "/dev/zvol/tank/vms/web", "/dev/zd0", "tank/vms/web"},
		{"block", "/dev/zvol/tank/vms/web-part1", "/dev/zd0p1", "tank/vms/web"},
		{"block", "/dev/zd0", "/dev/zd0", "tank/vms/web"},
		{"block", "/dev/zd16p2", "/dev/zd16p2", "tank/my vm"},
		{"block", "/dev/tank/my+vm", "/dev/zd16", "tank/my vm"},
		{"block", "/dev/zvol/tank/db@noon", "/dev/zd32", "tank/db"},
		{"block", "/dev/zvol/tank/odd", "/dev/sda", ""},
		{"block", "/dev/zd48", "/dev/zd48", ""},
		{"block", "/dev/sda", "/dev/sda", ""},
		{"block", "/dev/zvol/tank/gone", "", "tank/gone"},
		{"file", "/tank/a.qcow2", "/tank/a.qcow2", "tank"},
		{"file", "/tank/my vms/a.qcow2", "/tank/my vms/a.qcow2", "tank/my vms"},
		{"file", "/tank/my vms/.zfs/snapshot/noon/a", "/tank/my vms/.zfs/snapshot/noon/a", "tank/my vms"},
		{"file", "/srv/images/a", "/srv/images/a", "tank/my vms"},
		{"file", "/tank/nfs/a", "/tank/nfs/a", ""},
		{"file", "/a", "/a", ""},
		{"file", "/tank/out", "/a", ""}, // a link that leads out of it
	} {
		d := &debvisorv1.VMDisk{Type: c.kind, Source: c.source}
		s.describe(mounts, s.volumes(), d, file{resolved: c.resolved})
		if d.GetZfsDataset() != c.want || d.GetStorageId() == "" {
			t.Errorf("%s %s (%s): %q, want %q; storage %q", c.kind, c.source, c.resolved, d.GetZfsDataset(), c.want, d.GetStorageId())
		}
	}
}
