package controlplane

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// TestAccessFile follows a replica's access file: what it says is in force, a
// broken one is refused and the old one stays, and one that takes the last
// operator away is refused as well.
func TestAccessFile(t *testing.T) {
	key, err := identity.NewAPIKey()
	if err != nil {
		t.Fatal(err)
	}
	r := newReplica(t)
	r.cfg.AccessFile = filepath.Join(r.home.Dir, "access.yaml")
	file := func(content string) {
		t.Helper()
		next := r.cfg.AccessFile + ".next"
		if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, r.cfg.AccessFile); err != nil {
			t.Fatal(err)
		}
	}
	ci := func(role string) string {
		return fmt.Sprintf("principals:\n  ci: {roles: [%s]}\nkeys:\n  %s: {sha256: %s, principal: ci}\n", role, key.ID, key.Hash())
	}
	file(ci("viewer"))
	stop := r.start()
	operator := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(operator)
	front, err := rpc.Dial(r.cfg.Listen, certs.BootstrapClient("127.0.0.1", fingerprint(t, r.home)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = front.Close() }()
	access := debvisorv1.NewAccessServiceClient(front)
	withKey := func() context.Context {
		return metadata.AppendToOutgoingContext(r.within(), "authorization", "Bearer "+key.Text())
	}
	who, err := access.WhoAmI(withKey(), &debvisorv1.Empty{})
	if err != nil || who.GetPrincipal() != "ci" || strings.Join(who.GetRoles(), " ") != "viewer" {
		t.Fatalf("by the file's key: %v, %v", who, err)
	}
	if p, err := debvisorv1.NewAccessServiceClient(operator).GetPrincipal(r.within(), &debvisorv1.PrincipalRef{Name: "ci"}); err != nil || p.GetSource() != "file" {
		t.Errorf("the file's principal is %v, %v", p, err)
	}

	file("principals:\n  ci: {roles: [operator]}\n  ci: {}\n")
	r.auditHas(map[string]string{"event": "access_file_refused", "reason": r.cfg.AccessFile + `:3: "ci" is in principals twice, first in line 2`})
	if who, err := access.WhoAmI(withKey(), &debvisorv1.Empty{}); err != nil || strings.Join(who.GetRoles(), " ") != "viewer" {
		t.Errorf("after a broken file: %v, %v", who, err)
	}
	// A hang-up has it read again, and who asks is told again.
	own := make(chan os.Signal, 1) // a replica that does not listen must not end the test
	signal.Notify(own, syscall.SIGHUP)
	defer signal.Stop(own)
	before := strings.Count(r.audit(), "access_file_refused")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); strings.Count(r.audit(), "access_file_refused") == before; <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("SIGHUP did nothing")
		}
	}

	file("principals:\n  operator: {tenant: shop}\n")
	r.auditHas(map[string]string{
		"event": "access_file_refused",
		"reason": r.cfg.AccessFile + ": this access file would leave no principal with all permissions of the role operator and without a tenant: " +
			"make another one operator first",
	})

	file(ci("monitor"))
	r.auditHas(map[string]string{"event": "access_file_taken", "principal": "system:access-file"})
	if who, err := access.WhoAmI(withKey(), &debvisorv1.Empty{}); err != nil || strings.Join(who.GetRoles(), " ") != "monitor" {
		t.Errorf("after another file: %v, %v", who, err)
	}
	if _, err := debvisorv1.NewVMServiceClient(front).ListVMs(withKey(), &debvisorv1.VMFilter{}); !errdefs.Is(errdefs.FromStatus(err), errdefs.PermissionDenied) {
		t.Errorf("what the file allows no more: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	file("keys: []\n")
	if err := Run(t.Context(), r.cfg); err == nil || err.Error() != r.cfg.AccessFile+":1: keys is a list; expected a mapping" {
		t.Errorf("a start with a broken file: %v", err)
	}
}
