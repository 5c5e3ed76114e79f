package zfs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Capabilities is what the installed ZFS is and can do.
type Capabilities struct {
	// Userland and Kernel are versions such as 2.4.4-1~bpo13+1.
	Userland, Kernel string
	// EncryptedSendUnsafe says why no encrypted dataset is to be sent by this version;
	// empty: it may.
	EncryptedSendUnsafe string
	// Programs: snapshots are destroyed by guid in one transaction.
	Programs bool
}

// Probe tells what the installed ZFS is and can do. Its error is of code
// ZFS_ABSENT where there is none, or none in the kernel.
func (z *ZFS) Probe(ctx context.Context) (Capabilities, error) {
	out, err := z.output(ctx, command{program: "zfs", args: []string{"version"}})
	if ctx.Err() != nil || has(err, CodeAbsent) {
		return Capabilities{}, err
	}
	c := parseVersions(out)
	if err != nil || c.Kernel == "" {
		return c, errdefs.New(errdefs.Unimplemented, CodeAbsent, "the kernel of this host has no ZFS, or had none when systemd started this agent (then restart it)").WithCause(err)
	}
	return c, nil
}

// parseVersions reads what zfs version prints: zfs-VERSION, zfs-kmod-VERSION.
func parseVersions(out string) Capabilities {
	var c Capabilities
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "zfs-kmod-"); ok {
			c.Kernel = v
		} else if v, ok := strings.CutPrefix(line, "zfs-"); ok {
			c.Userland = v
		}
	}
	c.EncryptedSendUnsafe = unsafeToSend(c.Kernel)
	v, ok := parseVersion(c.Kernel)
	c.Programs = ok && !v.before(0, 8, 0)
	return c
}

// unsafeToSend says why a kernel's ZFS is not to send encrypted datasets; empty: it
// may. Distributions may have mended theirs without changing the number: it is the
// number that counts here.
func unsafeToSend(kernel string) string {
	v, ok := parseVersion(kernel)
	switch {
	case !ok:
		return fmt.Sprintf("the version %q of ZFS is not understood, and some corrupt encrypted datasets when they are sent", kernel)
	case v.before(2, 3, 3):
		return fmt.Sprintf("ZFS %s can corrupt encrypted datasets that are sent while they have snapshots (openzfs #12014, mended in 2.3.3)", kernel)
	case v == version{2, 4, 3}:
		return fmt.Sprintf("ZFS %s is reported to corrupt raw streams (openzfs #18739)", kernel)
	default:
		return ""
	}
}

// version is major, minor and patch.
type version [3]int

func (v version) before(major, minor, patch int) bool {
	for i, n := range []int{major, minor, patch} {
		if v[i] != n {
			return v[i] < n
		}
	}
	return false
}

func parseVersion(s string) (v version, ok bool) {
	numbers := strings.SplitN(s, ".", 3)
	if len(numbers) < 3 {
		return v, false
	}
	if end := strings.IndexFunc(numbers[2], func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		numbers[2] = numbers[2][:end]
	}
	for i, n := range numbers {
		number, err := strconv.Atoi(n)
		if err != nil {
			return v, false
		}
		v[i] = number
	}
	return v, true
}
