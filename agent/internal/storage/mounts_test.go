package storage

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// recorded are mounts as Linux 6.1 showed them, with one of each trap: spaces,
// optional fields, a bind mount, a covered mount, a file, network file systems.
const recorded = `27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
31 27 0:25 / /run rw,nosuid - tmpfs tmpfs rw,size=2410044k,mode=755
33 27 8:17 / /srv/my\040vms\134x rw,relatime shared:9 master:3 - xfs /dev/sdb1 rw,attr2,inode64
40 27 0:50 / /mnt/nfs rw,relatime shared:20 - nfs4 nas.example.org:/export/vms rw,vers=4.2,addr=192.0.2.9
41 27 0:50 /sub /mnt/part rw,relatime shared:20 - nfs4 nas.example.org:/export/vms rw,vers=4.2,addr=192.0.2.9
42 27 0:51 / /mnt/ceph rw,relatime - ceph 10.0.0.2:6789,10.0.0.1:6789:/vms rw,name=admin
43 27 0:52 / /mnt/ceph2 rw,relatime - ceph admin@11111111-2222-3333-4444-555555555555.cephfs=/ rw
44 27 253:3 / /mnt/gfs ro,relatime - gfs2 /dev/mapper/vg-gfs rw
45 27 254:0 /etc/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
46 27 8:33 / /data rw - ext4 /dev/sdc1 rw
47 46 8:34 / /data/inner rw - ext4 /dev/sdc2 rw
48 46 8:49 / /data rw - btrfs /dev/sdd1 rw
49 48 8:50 / /data/new ro - ext4 /dev/sdd2 rw
50 27 0:60 / /mnt/fuse rw - fuse.glusterfs gluster1:/vol rw,user_id=0
51 27 0:61 / /mnt/word rw - fuse.ceph-fuse ceph-fuse rw
52 27 0:62 / /mnt/empty\011source rw - tmpfs  rw
`

func parsed(t *testing.T) []mount {
	t.Helper()
	mounts, err := parseMounts(strings.NewReader(recorded))
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func TestWhatAPathLiesOn(t *testing.T) {
	mounts := parsed(t)
	s := New(Config{Node: "n1", Root: t.TempDir(), Shared: []SharedDir{{"/san", "pool"}, {"/san/own/a", "inner"}}})
	for name, want := range map[string]struct {
		id     string
		shared bool
	}{
		"/var/lib/libvirt/images/a.raw": {"local:n1:254:0", false},
		"/srv/my vms\\x/a.raw":          {"local:n1:8:17", false},
		"/srv/my vms\\xy/a.raw":         {"local:n1:254:0", false},
		"/mnt/nfs/a.raw":                {"nfs4:nas.example.org:/export/vms", true},
		"/mnt/part/a.raw":               {"nfs4:nas.example.org:/export/vms/sub", true},
		"/mnt/ceph/a.raw":               {"ceph:10.0.0.1:6789,10.0.0.2:6789:/vms", true},
		"/mnt/ceph2/a.raw":              {"ceph:11111111-2222-3333-4444-555555555555.cephfs=/", true},
		"/mnt/gfs/a.raw":                {"gfs2:/dev/mapper/vg-gfs", true},
		"/mnt/fuse/a.raw":               {"fuse.glusterfs:gluster1:/vol", true},
		"/mnt/word/a.raw":               {"fuse.ceph-fuse:ceph-fuse@n1", true},
		"/data/a.raw":                   {"local:n1:8:49", false},
		"/data/inner/a.raw":             {"local:n1:8:49", false}, // its mount is covered
		"/data/new/a.raw":               {"local:n1:8:50", false},
		"/san/a.raw":                    {"pool", true},
		"/san/own/a/b.raw":              {"inner", true},
		"/sandwich/a.raw":               {"local:n1:254:0", false},
	} {
		p, ok := s.placeOfFile(mounts, name)
		if !ok || p.id != want.id || p.shared != want.shared {
			t.Errorf("%s: %+v, %v, want %+v", name, p, ok, want)
		}
	}
	for name, want := range map[string]place{
		"/dev/mapper/a": {"local:n1:/dev/dm-7", false},
		"/san/lun1":     {"pool", true},
	} {
		if got := s.placeOfDevice(name, "/dev/dm-7"); got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if m, _ := deepest(mounts, "/mnt/gfs/x"); !m.readOnly {
		t.Error("a mount read only is not")
	}
	if m, ok := deepest(mounts, "/mnt/empty\tsource/x"); !ok || m.kind != "tmpfs" || m.source != "" {
		t.Errorf("a mount without a source: %+v", m)
	}
}

func TestMountsThatHoldNoDisks(t *testing.T) {
	for _, m := range parsed(t) {
		want := m.point != "/proc" && m.point != "/run"
		if got := holdsDisks(m); got != want {
			t.Errorf("%s: %v", m.point, got)
		}
	}
}

func TestLinesThatAreNone(t *testing.T) {
	for _, line := range []string{"", "x", "27 1 254:0 / / rw - ext4", "27 1 254:0 / relative rw - ext4 /dev/vda rw", "27 1 254:0 / / - ext4 /dev/vda rw"} {
		if got, err := parseMounts(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func FuzzMounts(f *testing.F) {
	f.Add(recorded)
	f.Add("1 1 0:1 / / rw - a \\")
	f.Add("1 2 0:1 / / rw - a b rw\n2 1 0:1 / / rw - a b rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMounts(strings.NewReader(text))
		if err != nil {
			return
		}
		s := New(Config{Node: "n", Root: "/nonexistent"})
		for _, m := range mounts {
			if m.point == "" || m.point[0] != '/' {
				t.Fatalf("mounted at %q", m.point)
			}
			found, ok := deepest(mounts, m.point)
			if !ok || found.point != m.point {
				t.Fatalf("%q lies on %q", m.point, found.point)
			}
			if p := s.placeOf(m); !p.shared && !strings.HasPrefix(p.id, localPrefix) {
				t.Fatalf("%q has the id %q", m.point, p.id)
			}
		}
	})
}

func FuzzUnescape(f *testing.F) {
	f.Add(`a\040b\134`)
	f.Fuzz(func(t *testing.T, s string) {
		got := unescape(s)
		if len(got) > len(s) || !strings.Contains(s, `\`) && got != s {
			t.Fatalf("%q became %q", s, got)
		}
		if escaped := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(s); unescape(escaped) != s {
			t.Fatalf("%q is not what was escaped", s)
		}
		_ = utf8.ValidString(got)
	})
}
