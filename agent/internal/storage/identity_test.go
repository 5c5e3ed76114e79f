package storage

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceID: the same device has the same on every host, whatever its number
// and its way there; what is no identity is none.
func TestDeviceID(t *testing.T) {
	sys := t.TempDir()
	id := func(number string, major, minor uint32, attributes map[string]string) uint64 {
		t.Helper()
		for name, content := range attributes {
			path := filepath.Join(sys, "devices", filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		at := filepath.Join(sys, number)
		if err := os.Symlink(filepath.Join("devices", attributes["of"]), at); err != nil {
			t.Fatal(err)
		}
		return deviceID(sys, unix.Mkdev(major, minor))
	}
	disk := id("8:0", 8, 0, map[string]string{"of": "sda", "sda/device/wwid": "naa.600140512345678"})
	path := id("253:3", 253, 3, map[string]string{"of": "dm-3", "dm-3/dm/uuid": "mpath-3600140512345678"})
	part := id("8:1", 8, 1, map[string]string{"of": "sda/sda1", "sda/sda1/partition": "1"})
	other := id("8:16", 8, 16, map[string]string{"of": "sdb", "sdb/device/wwid": "naa.600140587654321"})
	volume := id("253:4", 253, 4, map[string]string{"of": "dm-4", "dm-4/dm/uuid": "LVM-abc"})
	if disk == 0 || path != disk || part == 0 || part == disk || other == 0 || other == disk || volume == 0 {
		t.Errorf("disk %x, by multipath %x, its partition %x, another disk %x, a volume %x", disk, path, part, other, volume)
	}
	for number, wwid := range map[string]string{"8:32": "t10.ATA     QEMU HARDDISK   QM00001", "8:48": "eui.0000000000000000", "8:64": ""} {
		minor := map[string]uint32{"8:32": 32, "8:48": 48, "8:64": 64}[number]
		if got := id(number, 8, minor, map[string]string{"of": "d" + number, "d" + number + "/device/wwid": wwid}); got != 0 {
			t.Errorf("%q is taken for an identity", wwid)
		}
	}
}
