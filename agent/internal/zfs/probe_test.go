package zfs

import (
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	c, err := New(Config{}).Probe(t.Context())
	fine(t, err)
	if !strings.HasPrefix(c.Kernel, "2.") || !strings.HasPrefix(c.Userland, "2.") || !c.Programs {
		t.Errorf("this machine has %+v", c)
	}
	if want := raw(t, "zfs", "version"); !strings.Contains(want, "zfs-kmod-"+c.Kernel) || !strings.Contains(want, "zfs-"+c.Userland+"\n") {
		t.Errorf("%+v is not what zfs says: %s", c, want)
	}
}

func TestVersionsThatCorrupt(t *testing.T) {
	for version, unsafe := range map[string]bool{
		"0.8.6-1": true, "2.0.3-9": true, "2.1.11-1+deb12u1": true, "2.2.10-1": true, "2.3.2-2~bpo12+2": true, "2.4.3-1": true,
		"2.3.3-1": false, "2.3.9-0+deb13u1": false, "2.4.2-1": false, "2.4.4-1~bpo13+1": false, "2.10.0": false, "3.0.0-rc1": false,
		"": true, "new": true, "2.4": true, "2.x.1": true,
	} {
		if got := parseVersions("zfs-2.4.4-1\nzfs-kmod-" + version + "\n").EncryptedSendUnsafe; (got != "") != unsafe {
			t.Errorf("%q: %q", version, got)
		}
	}
	if c := parseVersions("zfs-2.4.4-1\n"); c.Kernel != "" || c.Userland != "2.4.4-1" || c.Programs {
		t.Errorf("without a kernel's: %+v", c)
	}
}
