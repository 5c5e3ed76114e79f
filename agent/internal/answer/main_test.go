package answer

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/integration/machine"
)

// TestMain runs the tests in a machine with a pool named tank.
func TestMain(m *testing.M) {
	if machine.Inside() {
		if out, err := exec.Command("zpool", "create", "-O", "mountpoint=none", "tank", "/dev/ubda").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "no pool: %v: %s\n", err, out)
			os.Exit(1)
		}
	}
	machine.Main(m, machine.Spec{Name: "answer", MemoryMiB: 800, Disks: []machine.Disk{{MiB: 1000}}})
}

// run runs zfs or zpool.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
