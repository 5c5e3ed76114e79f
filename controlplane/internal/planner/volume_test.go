package planner

import (
	"strings"
	"testing"
)

// A VM on ZFS volumes goes where they can be made: into a dataset that is there,
// has room, holds nothing of that name and encrypts what was encrypted.
func TestVolumes(t *testing.T) {
	const a = "node a 16 8 pool=tank:50 has=tank/vms\n"
	for name, c := range map[string]struct{ world, ask, want, disks string }{
		"made there":            {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3", "w", "a→b copy", "vda:ZFS-"},
		"off":                   {a + "node b 16 8 pool=tank:50\nvm w a 2 off zvol=tank/w:20:3", "w", "a→b offline", "vda:ZFS-"},
		"two, in a dataset":     {a + "node b 16 8 pool=tank:50 has=tank/vms\nvm w a 2 zvol=tank/vms/w:20:3 zvol=tank/x:1:1", "w", "a→b copy", "vda:ZFS- vdb:ZFS-"},
		"a shared one besides":  {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3 disk=file:none", "w", "a→b copy", "vda:ZFS- vdb:SHARED"},
		"no ZFS":                {a + "node b 16 8\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE", ""},
		"another pool":          {a + "node b 16 8 pool=dozer:50\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE", ""},
		"no such dataset":       {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/vms/w:20:3", "w", "no b:DISK_SPACE", ""},
		"one of that name":      {a + "node b 16 8 pool=tank:50 has=tank/w\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_EXISTS", ""},
		"no room":               {a + "node b 16 8 pool=tank:3\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE b:DISK_SPACE", ""},
		"room while sparse":     {a + "node b 16 8 pool=tank:4\nvm w a 2 zvol=tank/w:20:3", "w", "a→b copy", "vda:ZFS-"},
		"no room to reserve":    {a + "node b 16 8 pool=tank:20\nvm w a 2 zvol=tank/w:20:3:thick", "w", "no b:DISK_SPACE b:DISK_SPACE", ""},
		"room to reserve":       {a + "node b 16 8 pool=tank:22\nvm w a 2 zvol=tank/w:20:3:thick", "w", "a→b copy", "vda:ZFS-"},
		"no room for both":      {a + "node b 16 8 pool=tank:5\nvm w a 2 zvol=tank/w:20:3 zvol=tank/x:20:3", "w", "no b:DISK_SPACE", ""},
		"promised to another":   {a + "node b 16 8 pool=tank:5\nvm w a 2 zvol=tank/w:20:3\nvm x a 2 zvol=tank/x:20:3\nop o x b", "w", "no b:DISK_SPACE", ""},
		"encrypted":             {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:enc", "w", "no b:DISK_NOT_COPYABLE", ""},
		"encrypted there too":   {a + "node b 16 8 pool=tank:50 has=tank/vms:enc\nvm w a 2 zvol=tank/vms/w:20:3:enc", "w", "a→b copy", "vda:COPY_LIVE-"},
		"with a cache":          {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:writeback", "w", "a→b copy", "vda:COPY_LIVE-"},
		"off, with a cache":     {a + "node b 16 8 pool=tank:50\nvm w a 2 off zvol=tank/w:20:3:writeback", "w", "a→b offline", "vda:ZFS-"},
		"one with a cache":      {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3 zvol=tank/x:1:1:writeback", "w", "a→b copy", "vda:COPY_LIVE- vdb:COPY_LIVE-"},
		"read-only":             {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:ro", "w", "a→b copy", "vda:COPY_OFFLINE-"},
		"by a name of the host": {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:dm", "w", "no DISK_NOT_COPYABLE", ""},
		"with an image in it":   {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:qcow2", "w", "no DISK_NOT_COPYABLE", ""},
		"not reported":          {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:0:0", "w", "no DISK_NOT_COPYABLE", ""},
		"another's too":         {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3\nvm x a 2 off zvol=tank/w:20:3", "w", "no DISK_NOT_COPYABLE", ""},
	} {
		t.Run(name, func(t *testing.T) {
			result := ask(t, c.world, c.ask+" >b only")
			if got := verdict(result); got != c.want {
				t.Errorf("%s, want %s: %s", got, c.want, result.Refusal())
			}
			var disks []string
			for _, d := range result.Disks {
				one := d.GetTarget() + ":" + strings.TrimPrefix(d.GetAction().String(), "DISK_ACTION_")
				if d.GetRemoveSource() {
					one += "-"
				}
				if d.GetZfsDataset() != "" && (d.GetCapacityBytes() == 0 || d.GetVolumeBlockBytes() != 16384) {
					t.Errorf("disk %s: of %d bytes in blocks of %d", d.GetTarget(), d.GetCapacityBytes(), d.GetVolumeBlockBytes())
				}
				disks = append(disks, one)
			}
			if got := strings.Join(disks, " "); got != c.disks {
				t.Errorf("disks %q, want %q", got, c.disks)
			}
		})
	}
}

// Increments of what a volume holds are cheaper than all of it, but not where the
// guest writes so much that it would stand still for long; the plan says by how much.
func TestWayOfVolumes(t *testing.T) {
	for name, c := range map[string]struct{ world, action, reason string }{
		"little in it": {
			"node a 16 8 pool=tank:50 link=100\nnode b 16 8 pool=tank:50 link=100\nvm w a 1 zvol=tank/w:20:2", "DISK_ACTION_ZFS",
			"in increments of ZFS's snapshots: 3.0 GiB in 33.2s, 900ms of standstill; copied whole: 21.0 GiB in 3m36.5s, 300ms of standstill",
		},
		"full, and written to": {
			"node a 16 8 pool=tank:50 link=100\nnode b 16 8 pool=tank:50 link=100\nvm w a 4 dirty=60 zvol=tank/w:2:2", "DISK_ACTION_COPY_LIVE",
			"copied whole: 12.0 GiB in 2m4s, 500ms of standstill; in increments of ZFS's snapshots: 16.9 GiB in 2m58s, 21.6s of standstill",
		},
		"full, and little written to": {
			"node a 16 8 pool=tank:50 link=100\nnode b 16 8 pool=tank:50 link=100\nvm w a 4 dirty=60 writes=100 zvol=tank/w:20:2", "DISK_ACTION_ZFS", "",
		},
		"unknown link": {
			"node a 16 8 pool=tank:50\nnode b 16 8 pool=tank:50\nvm w a 1 zvol=tank/w:20:2", "DISK_ACTION_ZFS",
			"in increments of ZFS's snapshots: 3.0 GiB; copied whole: 21.0 GiB",
		},
		"off": {
			"node a 16 8 pool=tank:50 link=100\nnode b 16 8 pool=tank:50 link=100\nvm w a 1 off zvol=tank/w:20:2", "DISK_ACTION_ZFS",
			"in increments of ZFS's snapshots: 2.0 GiB in 23s, 0s of standstill; copied whole: 20.0 GiB in 3m26.3s, 0s of standstill",
		},
		"encrypted": {
			"node a 16 8 pool=tank:50 has=tank/e:enc link=100\nnode b 16 8 pool=tank:50 has=tank/e:enc link=100\nvm w a 1 zvol=tank/e/w:20:2:enc", "DISK_ACTION_COPY_LIVE",
			"copied whole, as disk vda is encrypted by ZFS",
		},
		"cached": {
			"node a 16 8 pool=tank:50 link=100\nnode b 16 8 pool=tank:50 link=100\nvm w a 1 zvol=tank/w:20:2:writeback", "DISK_ACTION_COPY_LIVE",
			"copied whole, as disk vda has cache mode writeback (none or directsync is needed for increments)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := ask(t, c.world, "w >b only")
			if len(r.Disks) != 1 {
				t.Fatal(r.Refusal())
			}
			if d := r.Disks[0]; d.GetAction().String() != c.action || d.GetReason() != c.reason && c.reason != "" {
				t.Errorf("%s: %s\nwant %s: %s", d.GetAction(), d.GetReason(), c.action, c.reason)
			}
		})
	}
}
