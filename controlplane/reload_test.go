package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// configuration is what a reload finds.
type configuration struct {
	perMinute int
	changes   []config.Change
	err       error
}

// TestSIGHUP follows a replica through configurations that come by SIGHUP: a
// broken one changes nothing, a good one acts on the next call, and what needs a
// restart is told again each time.
func TestSIGHUP(t *testing.T) {
	r := newReplica(t)
	r.cfg.AccessFile = filepath.Join(r.home.Dir, "access.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(r.cfg.AccessFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("principals:\n  ci: {roles: [viewer]}\n")
	var next atomic.Pointer[configuration]
	var reopened atomic.Int32
	var stuck atomic.Bool // the log's file cannot be opened anew
	stuck.Store(true)
	hangUps := make(chan os.Signal, 1)
	r.cfg.HangUps = hangUps
	r.cfg.ReopenLog = func() error {
		reopened.Add(1)
		if stuck.Load() {
			return errors.New("no such directory")
		}
		return nil
	}
	r.cfg.Reload = func() (Config, []config.Change, error) {
		n := next.Load()
		return Config{PerMinute: n.perMinute}, n.changes, n.err
	}
	hangUp := func(c configuration) {
		t.Helper()
		was := strings.Count(r.log.String(), "reload ended")
		next.Store(&c)
		hangUps <- syscall.SIGHUP
		for deadline := time.Now().Add(patience); strings.Count(r.log.String(), "reload ended") == was; <-time.After(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("SIGHUP did nothing: %s", r.log)
			}
		}
	}
	stop := r.start()
	operator := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(operator)
	nodes := debvisorv1.NewNodeServiceClient(operator)
	calls := func(n int) (refused int) {
		t.Helper()
		for range n {
			switch _, err := nodes.ListNodes(r.within(), &debvisorv1.Empty{}); {
			case errdefs.Is(errdefs.FromStatus(err), errdefs.ResourceExhausted):
				refused++
			case err != nil:
				t.Fatal(err)
			}
		}
		return refused
	}

	hangUp(configuration{perMinute: 1, err: errors.Join(errors.New("rpcd.yaml:3: it is broken"), errors.New("rpcd.yaml:4: this as well"))})
	r.auditHas(map[string]string{"event": "config_refused", "principal": "system:config", "reason": "rpcd.yaml:3: it is broken (and 1 more)"})
	if n := calls(5); n > 0 {
		t.Errorf("a broken configuration has %d of 5 calls refused", n)
	}
	for _, want := range []string{"rpcd.yaml:3: it is broken", "rpcd.yaml:4: this as well", "the log goes on in the file that it had"} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}

	hangUp(configuration{perMinute: 100000})
	if want := "not all was taken over: error=\"no such directory\""; !strings.Contains(r.log.String(), want) {
		t.Errorf("a log that stays in its file is no failure: the log lacks %q", want)
	}
	stuck.Store(false)

	changes := []config.Change{{Key: "rate_limit", Old: "100000", New: "1", Live: true}, {Key: "listen", Old: "a:1", New: "b:1"}}
	hangUp(configuration{perMinute: 1, changes: changes})
	r.auditHas(map[string]string{"event": "config_changed", "principal": "system:config", "args": `key=rate_limit old="100000" new="1"`, "reason": "applied"})
	r.auditHas(map[string]string{"event": "config_changed", "args": `key=listen old="a:1" new="b:1"`, "reason": "needs a restart"})
	if n := calls(5); n == 0 {
		t.Error("a lower limit does not act on the next calls")
	}
	hangUp(configuration{perMinute: 0})
	if n := calls(5); n > 0 {
		t.Errorf("without a limit %d of 5 calls are refused", n)
	}

	// A broken file that the configuration names does not keep the rest from being
	// taken over.
	write("principals: []\n")
	hangUp(configuration{perMinute: 1})
	if n := calls(5); n == 0 {
		t.Error("a broken access file has kept the limit from being taken over")
	}
	if !strings.Contains(r.log.String(), "the access file is refused") {
		t.Error("a broken access file is not told of")
	}
	if reopened.Load() != 5 {
		t.Errorf("the log was opened anew %d times of 5", reopened.Load())
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestLook finds what would stop a start without starting anything.
func TestLook(t *testing.T) {
	r := newReplica(t)
	if err := Look(r.cfg); err != nil {
		t.Fatal(err)
	}
	bad := r.cfg
	bad.AccessFile = filepath.Join(r.home.Dir, "access.yaml")
	if err := os.WriteFile(bad.AccessFile, []byte("keys: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad.JWT.Key = filepath.Join(r.home.Dir, "none.pem")
	bad.TLSCert, bad.TLSKey, bad.TLSCA = r.home.Server().Cert, r.home.EtcdPeer().Key, r.home.Server().CA
	bad.EtcdEndpoints = []string{"http://192.0.2.1:2379"}
	bad.Trace = obs.TraceConfig{Endpoint: "https://192.0.2.1:4317", CA: filepath.Join(r.home.Dir, "no-ca.pem")}
	mistakes := config.Each(Look(bad))
	for _, want := range []string{"access.yaml:1: keys is a list", "--jwt-key", "does not match", "--etcd-endpoints", "trace-ca"} {
		found := 0
		for _, m := range mistakes {
			if strings.Contains(m.Error(), want) && !strings.Contains(m.Error(), "\n") {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%d lines with %q in %v", found, want, mistakes)
		}
	}
	empty := Config{DataDir: t.TempDir()}
	if err := Look(empty); err == nil || !strings.Contains(err.Error(), "init") {
		t.Errorf("a directory without a replica: %v", err)
	}
	if files, err := os.ReadDir(empty.DataDir); err != nil || len(files) > 0 {
		t.Errorf("a look has made %v, %v", files, err)
	}
}

func TestConfigTellsAllMistakesAtOnce(t *testing.T) {
	cfg := Config{
		Listen: "nowhere", GatewayListen: "7446", MetricsListen: "x", EtcdPeerListen: "host:1", Drain: time.Hour, LeaderTTL: time.Minute,
		ServerLife: -1, AgentLife: 31 * 24 * time.Hour, PerMinute: -1, JWT: JWT{Issuer: "x"}, TLSCert: "x",
	}
	mistakes := config.Each(cfg.Check())
	for _, want := range []string{
		"--listen", "--gateway-listen", "--metrics-listen", "--etcd-peer-listen", "--drain", "--leader-ttl", "--server-cert-life", "--agent-cert-life",
		"--rate-limit", "--jwt-key", "RPC_TLS_CERT",
	} {
		found := 0
		for _, m := range mistakes {
			if strings.Contains(m.Error(), want) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%d mistakes name %s: %v", found, want, mistakes)
		}
	}
	good := Config{Listen: "192.0.2.1:7443", EtcdPeerListen: "[2001:db8::1]:2380", LeaderTTL: 3 * time.Second, Drain: time.Second}
	if err := good.Check(); err != nil || good.AgentsListen != "" {
		t.Errorf("a good one: %+v, %v", good, err)
	}
}
