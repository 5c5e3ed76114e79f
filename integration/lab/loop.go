package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Loop devices belong to the machine, not to a namespace: which ones are a lab's is told by their files, which are below its
// directory.

// attachLoop makes a block device out of a file, known by the name at device.
func attachLoop(file, device string) error {
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput() //nolint:noctx // it does not wait for anything
	if err != nil {
		return fmt.Errorf("block device out of %s: %w: %s", file, err, out)
	}
	var st unix.Stat_t
	if err := unix.Stat(strings.TrimSpace(string(out)), &st); err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	if err := unix.Mknod(device, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("block device %s: %w", device, err)
	}
	return nil
}

// detachLoops detaches the loop devices of the files below a directory.
func detachLoops(dir string) error {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	var failed []error
	for _, path := range found {
		file, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(file), dir+"/") {
			continue // detached meanwhile, or another's
		}
		device := "/dev/" + strings.Split(path, "/")[3]
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil { //nolint:noctx // as above
			failed = append(failed, fmt.Errorf("detach %s: %w: %s", device, err, out))
		}
	}
	return errors.Join(failed...)
}
