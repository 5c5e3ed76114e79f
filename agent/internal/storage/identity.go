package storage

import (
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceID is made of the identity that a block device has on every host that
// sees it: its WWID, or a logical volume's UUID. 0: it has none, or is no block
// device. It asks the kernel only.
func DeviceID(name string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0
	}
	return deviceID("/sys/dev/block", st.Rdev)
}

// deviceID is DeviceID by the kernel's number, sysfs's directory given.
func deviceID(directory string, rdev uint64) uint64 {
	number := strconv.Itoa(int(unix.Major(rdev))) + ":" + strconv.Itoa(int(unix.Minor(rdev)))
	device, err := filepath.EvalSymlinks(filepath.Join(directory, number))
	if err != nil {
		return 0
	}
	part := attribute(device, "partition")
	if part != "" {
		device = filepath.Dir(device)
	}
	identity := worldwide(device)
	if identity == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(identity + " " + part))
	return max(h.Sum64(), 1)
}

// worldwide is the identity of a whole device. Those that virtual hardware and
// cheap disks make up from their model are no two devices' own, and left out.
func worldwide(device string) string {
	switch uuid := attribute(device, "dm/uuid"); {
	case strings.HasPrefix(uuid, "LVM-"):
		return uuid
	case strings.HasPrefix(uuid, "mpath-3"):
		return "naa." + strings.TrimPrefix(uuid, "mpath-3") // as its paths call themselves
	}
	for _, name := range []string{"wwid", "device/wwid"} {
		wwid := attribute(device, name)
		for _, kind := range []string{"naa.", "eui.", "uuid."} {
			if id, ok := strings.CutPrefix(wwid, kind); ok && strings.Trim(id, "0-") != "" {
				return wwid
			}
		}
	}
	return ""
}

func attribute(device, name string) string {
	content, err := os.ReadFile(filepath.Join(device, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}
