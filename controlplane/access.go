package controlplane

import (
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// openAccess opens the access file, which stops the start if it is broken, and
// makes who decides by it.
func (r *replica) openAccess() error {
	var err error
	r.access, err = accessfile.Open(accessfile.Config{
		Path: r.cfg.AccessFile, Tell: r.auditAccess, Log: r.cfg.Log.Named("access"),
		Accept: func(next *accessfile.Policy) error { return r.authz.AcceptsFile(r.view.Current(), next) },
	})
	if err != nil {
		return err
	}
	r.authz = authz.New(authz.Config{Founders: []string{founder}, File: r.access, DefaultPerMinute: r.cfg.PerMinute})
	return nil
}

// ownerOf tells whose a dataset ("zfs") or an image ("rbd") is; empty: nobody's in
// particular.
func (r *replica) ownerOf(s *cluster.Snapshot, backend, pool, name string) string {
	return cluster.TenantOfStorage(func(yield func(string, *storev1.Tenant) bool) {
		for _, t := range r.authz.Tenants(s) {
			if !yield(t.Name, t.Value) {
				return
			}
		}
	}, backend, pool, name)
}

// auditAccess writes down what became of a changed access file.
func (r *replica) auditAccess(taken *accessfile.Policy, refused error) {
	e := &audit.Event{Time: time.Now(), Kind: audit.AccessFileTaken, Principal: "system:access-file"}
	if refused != nil {
		e.Kind, e.Reason = audit.AccessFileRefused, refused.Error()
	} else {
		e.Args = "version=" + taken.Version
	}
	r.audit.Add(e)
}
