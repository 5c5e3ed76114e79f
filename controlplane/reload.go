package controlplane

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/shared/config"
)

// systemConfig is the principal of what becomes of a changed configuration.
const systemConfig = "system:config"

// reloads counts what became of the SIGHUPs, for metrics. It is safe for
// concurrent use.
type reloads struct {
	taken, refused atomic.Int64
	// broken says that the last one was refused.
	broken atomic.Bool
}

// hangUps does what SIGHUP asks for, until ctx ends: all is read anew, and both
// logs go on in the files that then are at their paths.
func (r *replica) hangUps(ctx context.Context) error {
	signals := r.cfg.HangUps
	if signals == nil {
		own := make(chan os.Signal, 1)
		signal.Notify(own, syscall.SIGHUP)
		defer signal.Stop(own)
		signals = own
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			r.cfg.Notify.Reload(r.hangUp)
		}
	}
}

// hangUp goes on in new log files, and then reads the configuration anew, and
// the files that it names. Each that is broken changes nothing; a broken
// configuration has none of the others read.
func (r *replica) hangUp() {
	r.audit.Reopen()
	var reopened error
	if r.cfg.ReopenLog != nil {
		if reopened = r.cfg.ReopenLog(); reopened != nil {
			r.cfg.Log.Error("the log goes on in the file that it had", "error", reopened)
		}
	}
	err := r.reloadConfig()
	if err == nil {
		err = r.reloadFiles()
	}
	if err == nil {
		err = reopened
	}
	r.reloads.broken.Store(err != nil)
	if err != nil {
		r.reloads.refused.Add(1)
		r.cfg.Notify.Remark("the last reload was refused: " + config.Brief(err))
		r.cfg.Log.Warn("reload ended: not all was taken over", "error", config.Brief(err))
		return
	}
	r.reloads.taken.Add(1)
	r.cfg.Notify.Remark("")
	r.cfg.Log.Info("reload ended: all was taken over that needs no restart")
}

// reloadConfig takes over what can be changed while the replica runs, and tells
// of all that differs from what it runs with.
func (r *replica) reloadConfig() error {
	if r.cfg.Reload == nil {
		return nil
	}
	next, changes, err := r.cfg.Reload()
	if err != nil {
		for _, mistake := range config.Each(err) {
			r.cfg.Log.Error("the configuration is refused; what was in force stays so", "error", mistake)
		}
		r.audit.Add(&audit.Event{Time: time.Now(), Kind: audit.ConfigRefused, Principal: systemConfig, Reason: config.Brief(err)})
		return err
	}
	r.authz.SetDefaultPerMinute(next.PerMinute)
	for _, c := range changes {
		e := &audit.Event{
			Time: time.Now(), Kind: audit.ConfigChanged, Principal: systemConfig, Reason: "applied",
			Args: fmt.Sprintf("key=%s old=%q new=%q", c.Key, c.Old, c.New),
		}
		if c.Live {
			r.cfg.Log.Info("the configuration has changed", "key", c.Key, "old", c.Old, "new", c.New)
		} else {
			e.Reason = "needs a restart"
			r.cfg.Log.Warn("the configuration has changed, which needs a restart", "key", c.Key, "old", c.Old, "new", c.New)
		}
		r.audit.Add(e)
	}
	return nil
}

// reloadFiles reads certificates, the access file and the keys of tokens' issuer
// anew. One that is broken stays as it was, and does not keep the others from
// being read.
func (r *replica) reloadFiles() error {
	var failed error
	check := func(what string, err error) {
		if err != nil {
			r.cfg.Log.Error("a file cannot be used; what it said before stays in force", "file", what, "error", err)
			r.audit.Add(&audit.Event{Time: time.Now(), Kind: audit.ConfigRefused, Principal: systemConfig, Reason: config.Brief(err)})
			failed = err
		}
	}
	check("the replica's certificates", r.reloadCertificate(r.member.Server()))
	if r.own != r.member.Server() {
		check("the callers' listener's certificates", r.reloadCertificate(r.own))
	}
	if r.tokens != nil {
		check("the keys of tokens' issuer", r.tokens.Reload())
	}
	if err := r.access.Reload(); err != nil && failed == nil {
		failed = err // it has told of it
	}
	return failed
}

// reloadCertificate reads a certificate's files, and tells of another one.
func (r *replica) reloadCertificate(own *certs.Reloader) error {
	was := own.Leaf()
	if err := own.Reload(); err != nil {
		return err
	}
	if is := own.Leaf(); !is.Equal(was) {
		r.cfg.Log.Info("certificate reloaded", "subject", is.Subject.CommonName, "serial", certs.Serial(is), "not_after", is.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
