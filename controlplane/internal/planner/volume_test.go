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
		"made there":            {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3", "w", "a→b copy", "vda:COPY_LIVE-"},
		"off":                   {a + "node b 16 8 pool=tank:50\nvm w a 2 off zvol=tank/w:20:3", "w", "a→b offline", "vda:COPY_OFFLINE-"},
		"two, in a dataset":     {a + "node b 16 8 pool=tank:50 has=tank/vms\nvm w a 2 zvol=tank/vms/w:20:3 zvol=tank/x:1:1", "w", "a→b copy", "vda:COPY_LIVE- vdb:COPY_LIVE-"},
		"a shared one besides":  {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3 disk=file:none", "w", "a→b copy", "vda:COPY_LIVE- vdb:SHARED"},
		"no ZFS":                {a + "node b 16 8\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE", ""},
		"another pool":          {a + "node b 16 8 pool=dozer:50\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE", ""},
		"no such dataset":       {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/vms/w:20:3", "w", "no b:DISK_SPACE", ""},
		"one of that name":      {a + "node b 16 8 pool=tank:50 has=tank/w\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_EXISTS", ""},
		"no room":               {a + "node b 16 8 pool=tank:3\nvm w a 2 zvol=tank/w:20:3", "w", "no b:DISK_SPACE b:DISK_SPACE", ""},
		"room while sparse":     {a + "node b 16 8 pool=tank:4\nvm w a 2 zvol=tank/w:20:3", "w", "a→b copy", "vda:COPY_LIVE-"},
		"no room to reserve":    {a + "node b 16 8 pool=tank:20\nvm w a 2 zvol=tank/w:20:3:thick", "w", "no b:DISK_SPACE b:DISK_SPACE", ""},
		"room to reserve":       {a + "node b 16 8 pool=tank:22\nvm w a 2 zvol=tank/w:20:3:thick", "w", "a→b copy", "vda:COPY_LIVE-"},
		"no room for both":      {a + "node b 16 8 pool=tank:5\nvm w a 2 zvol=tank/w:20:3 zvol=tank/x:20:3", "w", "no b:DISK_SPACE", ""},
		"promised to another":   {a + "node b 16 8 pool=tank:5\nvm w a 2 zvol=tank/w:20:3\nvm x a 2 zvol=tank/x:20:3\nop o x b", "w", "no b:DISK_SPACE", ""},
		"encrypted":             {a + "node b 16 8 pool=tank:50\nvm w a 2 zvol=tank/w:20:3:enc", "w", "no b:DISK_NOT_COPYABLE", ""},
		"encrypted there too":   {a + "node b 16 8 pool=tank:50 has=tank/vms:enc\nvm w a 2 zvol=tank/vms/w:20:3:enc", "w", "a→b copy", "vda:COPY_LIVE-"},
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
