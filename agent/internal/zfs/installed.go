package zfs

import "os/exec"

// Installed tells whether the host has the commands.
func (z *ZFS) Installed() bool {
	for _, name := range []string{"zfs", "zpool"} {
		if _, err := exec.LookPath(name); err != nil {
			return false
		}
	}
	return true
}
