package controlplane

import (
	"errors"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// Look reads what a configuration names: the data directory's certificates and
// keys, the listener's, the access file, the keys of tokens' issuer, what the
// collector of traces is known by. It starts and writes nothing. The error joins
// all that would stop a start, one line each.
func Look(cfg Config) error {
	log := hclog.NewNullLogger()
	errs := []error{members.Look(members.Home{Dir: cfg.DataDir, WrapKey: cfg.WrapKey})}
	if cfg.TLSCert != "" {
		_, err := certs.NewReloader(certs.Files{Cert: cfg.TLSCert, Key: cfg.TLSKey, CA: cfg.TLSCA}, log)
		errs = append(errs, err)
	}
	if len(cfg.EtcdEndpoints) > 0 {
		outside := store.ExternalConfig{Endpoints: cfg.EtcdEndpoints, CAFile: cfg.EtcdCA, CertFile: cfg.EtcdCert, KeyFile: cfg.EtcdKey}
		errs = append(errs, outside.Check())
	}
	_, err := accessfile.Open(accessfile.Config{Path: cfg.AccessFile, Log: log})
	errs = append(errs, err)
	errs = append(errs, cfg.Trace.Look())
	r := &replica{cfg: cfg}
	r.cfg.Log = log
	return errors.Join(append(errs, r.openTokens())...)
}
