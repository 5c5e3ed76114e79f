package inventory

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	cephNone    = "none"
	cephUnknown = "HEALTH_UNKNOWN"
	cephTimeout = 5 * time.Second
)

// sampleCeph is Ceph's own word for its health, "none" on a host that is no
// client of a Ceph cluster, HEALTH_UNKNOWN where Ceph does not answer.
func (c *Collector) sampleCeph(ctx context.Context) string {
	if c.withoutCeph() {
		return cephNone
	}
	ctx, cancel := context.WithTimeout(ctx, cephTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ceph", "health", "--connect-timeout", "4")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	word, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || !strings.HasPrefix(word, "HEALTH_") {
		c.cfg.Log.Warn("ceph does not tell its health", "error", err)
		return cephUnknown
	}
	return word
}

func (c *Collector) withoutCeph() bool {
	_, err := os.Stat(c.host.path("etc/ceph/ceph.conf"))
	return errors.Is(err, fs.ErrNotExist)
}
