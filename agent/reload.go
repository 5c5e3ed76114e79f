package agent

import (
	"context"
	"errors"
	"net"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/agent/internal/storage"
	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Check tells all that is wrong with a configuration before it is used: errors
// that name the flag, its value and what would be accepted, joined.
func (c Config) Check() error {
	_, tunnels := parsePortRange(c.TunnelListen)
	_, shared := storage.ParseSharedDirs(c.SharedDirs)
	errs := []error{tunnels, shared, c.check(), c.Trace.Check()}
	if _, _, err := net.SplitHostPort(c.PeerListen); err != nil {
		errs = append(errs, errdefs.Field("peer-listen", c.PeerListen, "host:port, such as 192.0.2.1:7445, or :7445"))
	}
	return errors.Join(errs...)
}

// Look reads what a configuration names, the identity that enroll made and what
// the collector of traces is known by, and starts nothing.
func Look(c Config) error {
	_, _, err := enroll.Home{Dir: c.DataDir}.Open(hclog.NewNullLogger())
	return errors.Join(err, c.Trace.Look())
}

// hangUps reads anew what SIGHUP asks for, until ctx ends: the log goes on in
// the file that then is at its path, the configuration is read and with it what
// is said of the log, and the certificate. What is broken changes nothing.
func hangUps(ctx context.Context, cfg Config, own *certs.Reloader) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-cfg.HangUps:
			cfg.Notify.Reload(func() { hangUp(cfg, own) })
		}
	}
}

func hangUp(cfg Config, own *certs.Reloader) {
	reopened := cfg.ReopenLog()
	if reopened != nil {
		cfg.Log.Error("the log goes on in the file that it had", "error", reopened)
	}
	changes, err := cfg.Reload()
	if err != nil {
		for _, mistake := range config.Each(err) {
			cfg.Log.Error("the configuration is refused; what was in force stays so", "error", mistake)
		}
		cfg.Notify.Remark("the last reload was refused: " + config.Brief(err))
		return
	}
	for _, c := range changes {
		if c.Live {
			cfg.Log.Info("the configuration has changed", "key", c.Key, "old", c.Old, "new", c.New)
		} else {
			cfg.Log.Warn("the configuration has changed, which needs a restart", "key", c.Key, "old", c.Old, "new", c.New)
		}
	}
	if err := own.Reload(); err != nil {
		cfg.Log.Error("the certificate's files cannot be used; the one that was read before stays in use", "error", err)
		cfg.Notify.Remark("the last reload was refused: " + config.Brief(err))
		return
	}
	cfg.Log.Debug("the certificate's files were read anew", "serial", certs.Serial(own.Leaf()))
	if reopened != nil {
		cfg.Log.Warn("reload ended: not all was taken over", "error", reopened)
		cfg.Notify.Remark("the last reload left the log in the file that it had: " + config.Brief(reopened))
		return
	}
	cfg.Log.Info("reload ended: all was taken over that needs no restart")
	cfg.Notify.Remark("")
}
