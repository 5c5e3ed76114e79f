package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Versions of the packages in the test; the second is an upgrade of the first.
const (
	packagedFirst  = "0.9.1"
	packagedSecond = "0.9.2"
)

// credential is where systemd finds the key that seals the CA's keys.
const credential = "/etc/credstore/debvisor-rpcd.wrap.key"

// TestPackages goes the way of an operator's packages on two Debian 12 hosts with systemd: installed, run, upgraded while a guest moves,
// reloaded, hung, put under load, removed, purged.
func TestPackages(t *testing.T) {
	h, dir := &hosts{t: t}, packagesDir(t)
	begin := time.Now()
	var group sync.WaitGroup
	var failed error
	group.Go(func() {
		h.Lab, failed = lab.New(t.Context(), lab.Options{Nodes: 2, Systemd: true, Packages: dir, Ceph: &ceph.Options{}, Kind: "test"})
	})
	t.Cleanup(func() {
		group.Wait()
		if h.Lab != nil {
			h.must(h.Close())
		}
	})
	digests := debs(t, dir, packagedFirst)
	aCommand(t, nil, "/bin/bash", "-c", "lintian --fail-on error "+filepath.Join(dir, packagedFirst, "*.deb"))
	group.Wait()
	h.must(failed)
	debs(t, dir, packagedSecond)
	h.a, h.b = h.Nodes[0], h.Nodes[1]
	h.sameBytes(digests)
	t.Logf("packages and hosts after %v", time.Since(begin).Round(time.Second))

	before := h.files(h.b)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"install", h.install},
		{"cluster", h.cluster},
		{"images", h.images},
		{"limits", h.limits},
		{"upgrade", h.upgrade},
		{"reload", h.reload},
		{"rotate", h.rotate},
		{"sealed", h.sealed},
		{"watchdog", h.watchdog},
		{"refused", h.refused},
		{"remove", h.remove},
		{"purge", func() { h.purge(before) }},
	} {
		begin := time.Now()
		step.do()
		t.Logf("%s: %v", step.name, time.Since(begin).Round(time.Second/10))
	}
}

// sameBytes makes the first packages once more: the same programs give the same bytes.
func (h *hosts) sameBytes(digests string) {
	h.t.Helper()
	if again := debs(h.t, packagesDir(h.t), packagedFirst); again != digests || strings.Count(digests, ".deb") != 3 {
		h.t.Errorf("made twice, packages are not the same:\n%s\n%s", digests, again)
	}
}

// dpkg installs packages of a version, whose dependencies must be there.
func (h *hosts) dpkg(n *lab.Node, version string, packages ...string) {
	h.t.Helper()
	line := "dpkg --install"
	for _, p := range packages {
		line += fmt.Sprintf(" %s/%s/%s_%s_amd64.deb", lab.PackagesSeen, version, p, version)
	}
	h.sh(n, line)
}

// install installs the packages. Nothing runs yet: there is nothing to run.
func (h *hosts) install() {
	h.dpkg(h.a, packagedFirst, "debvisor-rpcd", "debvisor-agent", "hvctl")
	h.dpkg(h.b, packagedFirst, "debvisor-agent")
	for _, at := range []struct {
		n    *lab.Node
		unit string
	}{{h.a, rpcdUnit}, {h.a, agentUnit}, {h.b, agentUnit}} {
		if u := h.unit(at.n, at.unit); u.active != "inactive" || u.enabled != "enabled" || u.all["ConditionResult"] != "no" {
			h.t.Errorf("%s on %s, just installed: %v", at.unit, at.n.Name, u.all)
		}
	}
	for _, line := range []string{
		"getent passwd debvisor-rpc", "man -w debvisor-rpcd", "man hvctl-migrate-run | grep -q allow-downtime", "man debvisor-agent-enroll | grep -q token",
		"bash -c '. /usr/share/bash-completion/completions/hvctl && complete -p hvctl'",
		"test -s /usr/share/zsh/vendor-completions/_hvctl -a -s /usr/share/fish/vendor_completions.d/debvisor-rpcd.fish",
		// Whatever is not commented out in a default configuration would be a decision of ours.
		"! grep -v '^#' /etc/debvisor/rpc/rpcd.yaml /etc/debvisor/agent/agent.yaml | grep -v ':$'",
	} {
		h.sh(h.a, line)
	}
	for _, n := range h.Nodes {
		h.sh(n, "grep -q /run/debvisor/tunnel/ /etc/apparmor.d/local/abstractions/libvirt-qemu")
	}
	if out := h.sh(h.a, "dpkg --verify debvisor-rpcd debvisor-agent hvctl"); out != "" {
		h.t.Errorf("files are not as in the packages: %s", out)
	}
}

// cluster makes a replica and two nodes of the hosts: two commands each, once they are configured.
func (h *hosts) cluster() {
	// A hung daemon is found within 10 s here, to save the test some time; as shipped it is 30 s.
	const quick = "mkdir -p /etc/systemd/system/%[1]s.d && printf '[Service]\\nWatchdogSec=10\\n' >/etc/systemd/system/%[1]s.d/test.conf && systemctl daemon-reload"
	h.sh(h.a, fmt.Sprintf(quick, rpcdUnit))
	h.sh(h.a, fmt.Sprintf(quick, agentUnit))
	h.sh(h.a, fmt.Sprintf("printf 'listen: %s:7443\\nrate_limit: 0\\n' >>/etc/debvisor/rpc/rpcd.yaml", h.a.Addr))
	// The key that seals the CA's keys is systemd's to hand out, in the way of docs/packages.md.
	h.sh(h.a, "umask 077; mkdir -p /etc/credstore; head -c 32 /dev/urandom | base64 >"+credential+"; install -o debvisor-rpc -m 400 "+credential+" /run/wrap.key")
	h.sh(h.a, fmt.Sprintf("debvisor-rpcd init --wrap-key-file /run/wrap.key --cluster %s --host %s; rm /run/wrap.key", lab.ClusterName, h.a.Addr))
	if keys := h.sh(h.a, "find /var/lib/debvisor -name 'wrap*'"); keys != "" {
		h.t.Errorf("the key that seals the CA's keys lies beside them: %s", keys)
	}
	if whose := h.sh(h.a, `find /var/lib/debvisor/rpcd ! -user debvisor-rpc -o -name '*key*' -perm /077`); whose != "" {
		h.t.Errorf("made by root's init, and not the service's alone: %s", whose)
	}
	h.sh(h.a, "systemctl start "+rpcdUnit)   // ends at READY
	out, err := h.hvctl("cluster", "status") // enrolling, below, needs the CA's key
	if err != nil {
		h.t.Fatalf("it is ready and does not answer: %v\n%s", err, out)
	}
	for _, n := range h.Nodes {
		token, err := h.hvctl("node", "token", n.Name)
		h.must(err)
		words := strings.Fields(token)
		h.sh(n, "echo 'shared_dir: ["+lab.SharedDir+"]' >>/etc/debvisor/agent/agent.yaml")
		h.sh(n, fmt.Sprintf("debvisor-agent enroll --server %s:7443 --token %s --node %s", h.a.Addr, words[len(words)-1], n.Name))
		h.sh(n, "systemctl start "+agentUnit)
	}
	h.online(h.a.Name, h.b.Name)
	h.sh(h.a, "RPC_WRAP_KEY_FILE="+credential+" debvisor-rpcd config check && debvisor-agent config check")
	for _, n := range h.Nodes {
		if failed := h.sh(n, "systemctl --failed --no-legend --plain"); failed != "" {
			h.t.Errorf("units that failed on %s: %s", n.Name, failed)
		}
	}
}

// limits puts the replica under load, and looks whether its limits are the kernel's and it keeps to them.
func (h *hosts) limits() {
	u := h.unit(h.a, rpcdUnit)
	for property, want := range map[string]string{
		"MemoryMax": "536870912", "CPUQuotaPerSecUSec": "2s", "TasksMax": "512", "Type": "notify",
	} {
		if u.all[property] != want {
			h.t.Errorf("%s of the unit is %q, want %s", property, u.all[property], want)
		}
	}
	group := controlGroup(h.t, h.hostPid(h.a, u.pid))
	if got := group.read(h.t, "memory.limit_in_bytes", "memory.max"); got != "536870912" {
		h.t.Errorf("the kernel's limit of memory is %s", got)
	}
	if got := group.read(h.t, "pids.max", "pids.max"); got != "512" {
		h.t.Errorf("the kernel's limit of tasks is %s", got)
	}
	if got := strings.Fields(group.read(h.t, "cpu.cfs_quota_us", "cpu.max"))[0]; got != "200000" {
		h.t.Errorf("the kernel's quota of processors is %s in 100 ms", got)
	}
	calls := h.load(8*time.Second, 64)
	peak := group.read(h.t, "memory.max_usage_in_bytes", "memory.peak")
	tasks := group.read(h.t, "pids.current", "pids.current")
	h.t.Logf("under its limits: %d calls in 8 s, at most %s bytes of memory with its files' cache, %s tasks", calls, peak, tasks)
	if after := h.unit(h.a, rpcdUnit); after.pid != u.pid || after.active != "active" || calls < 100 {
		h.t.Errorf("under load: %d calls, and it is %v", calls, after.all)
	}
}

// upgrade installs higher versions while a guest moves from one host to the other: nothing of it is disturbed.
func (h *hosts) upgrade() {
	g, err := h.a.StartGuest(h.within(2*time.Minute), lab.GuestSpec{Name: "web"})
	h.must(err)
	still, err := h.b.StartGuest(h.within(2*time.Minute), lab.GuestSpec{Name: "still"})
	h.must(err)
	h.eventually(time.Minute, "the guests are known", func() error {
		out, err := h.hvctl("vm", "list")
		if err == nil && (!strings.Contains(out, "web") || !strings.Contains(out, "still")) {
			err = errors.New(out)
		}
		return err
	})
	h.must(h.a.SetMigrateSpeed(g.UUID, slow))
	id, err := h.hvctl("migrate", "run", "web", "--to", h.b.Name, "--no-wait")
	h.must(err)
	h.eventually(time.Minute, "the guest's memory is on its way", func() error {
		active, err := h.a.Migrating(g.UUID)
		if err == nil && !active {
			op, err := h.operation(id)
			return fmt.Errorf("libvirt has no job: %v %w", op, err)
		}
		return err
	})
	qemu := h.qemu(h.b, still.UUID)
	was := []unit{h.unit(h.a, rpcdUnit), h.unit(h.a, agentUnit), h.unit(h.b, agentUnit)}
	h.dpkg(h.a, packagedSecond, "debvisor-rpcd", "debvisor-agent", "hvctl")
	h.dpkg(h.b, packagedSecond, "debvisor-agent")
	is := []unit{h.unit(h.a, rpcdUnit), h.unit(h.a, agentUnit), h.unit(h.b, agentUnit)}
	for i := range was {
		if is[i].pid == was[i].pid || is[i].active != "active" || is[i].restarts != 0 {
			h.t.Errorf("upgraded: %v, before: %v", is[i].all, was[i].all)
		}
	}
	if active, err := h.a.Migrating(g.UUID); err != nil || !active {
		op, err2 := h.operation(id)
		h.t.Errorf("the migration is not what it was: %v, %v; %v %v", active, err, op, err2)
	}
	h.online(h.a.Name, h.b.Name)
	h.must(h.a.SetMigrateSpeed(g.UUID, full))
	h.eventually(2*time.Minute, "the migration ends", func() error {
		op, err := h.operation(id)
		if op.GetState() == debvisorv1.OperationState_OPERATION_STATE_FAILED {
			h.t.Fatalf("it failed: %v", op)
		}
		if err == nil && op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
			err = fmt.Errorf("it is %v", op)
		}
		return err
	})
	h.must(g.Ticks(h.within(time.Minute)))
	history, err := g.History()
	h.must(err)
	h.must(history.Check(nil))
	if d, err := h.a.Domain(g.UUID); err != nil || d.State != lab.DomainAbsent {
		h.t.Errorf("where the guest was it is %v, %v", d, err)
	}
	if now := h.qemu(h.b, still.UUID); now != qemu {
		h.t.Errorf("the guest that did not move has process %d, had %d", now, qemu)
	}
	// Those that run are found again by the upgraded agents, and that nothing is left of the move.
	h.eventually(time.Minute, "no tunnel is left", func() error {
		for _, n := range h.Nodes {
			if out := h.sh(n, "systemctl list-units --plain --no-legend 'debvisor-tunnel-*'"); out != "" {
				return errors.New(out)
			}
		}
		return nil
	})
}

// qemu is the one process of a guest.
func (h *hosts) qemu(n *lab.Node, vm string) int {
	h.t.Helper()
	all, err := n.QEMUs(vm)
	h.must(err)
	if len(all) != 1 {
		h.t.Fatalf("processes of guest %s on %s: %v", vm, n.Name, all)
	}
	return all[0].Pid
}

// reload changes configurations and has systemd reload them.
func (h *hosts) reload() {
	for _, d := range []struct{ unit, file string }{{rpcdUnit, "/etc/debvisor/rpc/rpcd.yaml"}, {agentUnit, "/etc/debvisor/agent/agent.yaml"}} {
		was := h.unit(h.a, d.unit)
		h.sh(h.a, "echo 'log_level: debug' >>"+d.file+" && systemctl reload "+d.unit)
		h.eventually(20*time.Second, d.unit+" logs what it took over", func() error {
			out, err := h.try(h.a, "(journalctl --no-pager -u "+d.unit+"; cat /var/log/debvisor/rpc.log) | grep log_level")
			if err == nil && !strings.Contains(out, "debug") {
				err = errors.New(out)
			}
			return err
		})
		h.sh(h.a, "cp "+d.file+" /root/good.yaml && echo 'log_levl: info' >>"+d.file+" && systemctl reload "+d.unit)
		h.eventually(20*time.Second, d.unit+" tells systemctl status what is wrong", func() error {
			u, err := h.askUnit(h.a, d.unit)
			if err == nil && !strings.Contains(u.all["StatusText"], "log_levl") {
				err = fmt.Errorf("its status is %q", u.all["StatusText"])
			}
			return err
		})
		h.sh(h.a, "cp /root/good.yaml "+d.file+" && systemctl reload "+d.unit)
		if is := h.unit(h.a, d.unit); is.pid != was.pid || is.active != "active" {
			h.t.Errorf("reloaded: %v, before %v", is.all, was.all)
		}
	}
}

// rotate has the host's logrotate move the logs away: the replica writes new ones, and the audit log's chain leads over them.
func (h *hosts) rotate() {
	was := h.unit(h.a, rpcdUnit)
	h.sh(h.a, "logrotate --force /etc/logrotate.d/debvisor-rpcd")
	h.sh(h.a, "cd /var/log/debvisor && test -s rpc-audit.log.1 -a -s rpc.log.1")
	if _, err := h.hvctl("role", "list"); err != nil {
		h.t.Error(err)
	}
	h.eventually(20*time.Second, "both logs go on in new files, which are the service's alone", func() error {
		out, err := h.try(h.a, "cd /var/log/debvisor && grep -c ListRoles rpc-audit.log && test -s rpc.log && find . -name 'rpc*.log' ! -user debvisor-rpc -o -name 'rpc*.log' -perm /027")
		if err == nil && strings.Contains(out, "rpc") {
			err = errors.New("others may read or write " + out)
		}
		return err
	})
	for _, line := range []string{"audit verify", "audit verify /var/log/debvisor/rpc-audit.log.1 /var/log/debvisor/rpc-audit.log"} {
		if out, err := h.hvctl(strings.Fields(line)...); err != nil {
			h.t.Errorf("hvctl %s, after a rotation: %v\n%s", line, err, out)
		}
	}
	if is := h.unit(h.a, rpcdUnit); is.pid != was.pid || is.active != "active" {
		h.t.Errorf("rotated: %v, before %v", is.all, was.all)
	}
}

// sealed takes the replica's credential away: it says what is missing, and starts when it is back.
func (h *hosts) sealed() {
	h.sh(h.a, "mv "+credential+" /root/wrap.key; systemctl stop "+rpcdUnit)
	out, err := h.try(h.a, "systemctl start "+rpcdUnit)
	if err == nil {
		h.t.Error("it starts without the key that seals the CA's keys")
	}
	if log := h.sh(h.a, "tail -n 5 /var/log/debvisor/rpc.log; journalctl --no-pager -n 20 -u "+rpcdUnit); !strings.Contains(log, "wrap key") {
		h.t.Errorf("without its credential it says: %s\n%s", out, log)
	}
	h.sh(h.a, "mv /root/wrap.key "+credential+"; systemctl restart "+rpcdUnit)
	h.online(h.a.Name, h.b.Name)
}

// watchdog stops both daemons of a host: systemd finds it out by itself and starts others, and guests run on.
func (h *hosts) watchdog() {
	units := []string{rpcdUnit, agentUnit}
	was := map[string]unit{}
	begin := time.Now()
	for _, name := range units {
		was[name] = h.unit(h.a, name)
		h.sh(h.a, fmt.Sprintf("kill -STOP %d", was[name].pid))
	}
	for _, name := range units {
		h.eventually(time.Minute, name+" is started again", func() error {
			u, err := h.askUnit(h.a, name)
			if err == nil && (u.pid == was[name].pid || u.pid == 0 || u.active != "active" || u.restarts == 0) {
				err = fmt.Errorf("it is %v", u.all)
			}
			return err
		})
		if log := h.sh(h.a, "journalctl --no-pager -u "+name); !strings.Contains(log, "Watchdog timeout") {
			h.t.Errorf("%s was restarted, but not by its watchdog", name)
		}
	}
	h.t.Logf("hung, both daemons of a host worked again after %v", time.Since(begin).Round(time.Second/10))
	h.online(h.a.Name, h.b.Name)
}

// refused installs a package where the configuration is wrong: dpkg comes to its end and tells of the service.
func (h *hosts) refused() {
	const file = "/etc/debvisor/agent/agent.yaml"
	h.sh(h.b, "cp "+file+" /root/good.yaml && echo 'log_levl: info' >>"+file)
	out := h.sh(h.b, fmt.Sprintf("dpkg --install %s/%s/debvisor-agent_%s_amd64.deb 2>&1", lab.PackagesSeen, packagedSecond, packagedSecond))
	if state := h.sh(h.b, "dpkg-query --show --showformat '${db:Status-Status}' debvisor-agent"); state != "installed" || !strings.Contains(out, "does not run") {
		h.t.Errorf("with a configuration that is wrong the package is %s: %s", state, out)
	}
	h.sh(h.b, "mv /root/good.yaml "+file+" && systemctl restart "+agentUnit)
	h.online(h.b.Name)
}

// remove removes the agent of the host that runs both guests: they run on, and what it kept is there for the next.
func (h *hosts) remove() {
	domains, err := h.b.Domains()
	h.must(err)
	h.sh(h.b, "dpkg --remove debvisor-agent")
	if u := h.unit(h.b, agentUnit); u.active != "inactive" || u.pid != 0 {
		h.t.Errorf("removed: %v", u.all)
	}
	after, err := h.b.Domains()
	h.must(err)
	if len(domains) != 2 || fmt.Sprint(after) != fmt.Sprint(domains) {
		h.t.Errorf("with the agent go guests: %v, before %v", after, domains)
	}
	h.sh(h.b, "test -e /var/lib/debvisor/agent/agent.json -a -e /etc/debvisor/agent/agent.yaml -a ! -e /usr/bin/debvisor-agent")
	h.dpkg(h.b, packagedSecond, "debvisor-agent")
	if u := h.unit(h.b, agentUnit); u.active != "active" || u.enabled != "enabled" {
		h.t.Errorf("installed again: %v", u.all)
	}
	h.online(h.b.Name)
}

// purge removes all, of which nothing is left but the guests.
func (h *hosts) purge(before map[string]bool) {
	h.sh(h.b, "dpkg --purge debvisor-agent")
	h.sh(h.a, "rm -r /etc/systemd/system/debvisor-*.service.d "+credential) // the test's own
	h.sh(h.a, "dpkg --purge debvisor-agent debvisor-rpcd hvctl")
	var left []string
	for path := range h.files(h.b) {
		// A directory of systemd's own that any package's unit brings; logs of the host's own.
		others := strings.HasPrefix(path, "/var/lib/systemd/deb-systemd-helper") ||
			strings.HasPrefix(path, "/var/log/") && !strings.Contains(path, "debvisor")
		if !before[path] && !others {
			left = append(left, path)
		}
	}
	slices.Sort(left)
	if len(left) > 0 {
		h.t.Errorf("purged, and left on %s:\n%s", h.b.Name, strings.Join(left, "\n"))
	}
	h.sh(h.b, "! grep -q debvisor /etc/apparmor.d/local/abstractions/libvirt-qemu")
	if out := h.sh(h.a, "find /etc /usr /var /run /root -xdev -iname '*debvisor*' ! -path '/var/log/journal/*' ! -path '/var/cache/man/*'; getent passwd debvisor-rpc || true; getent group debvisor-rpc || true"); out != "" {
		h.t.Errorf("purged, and left on %s:\n%s", h.a.Name, out)
	}
	domains, err := h.b.Domains()
	h.must(err)
	for vm, d := range domains {
		if d.State != lab.DomainRunning {
			h.t.Errorf("the purge has made guest %s %s", vm, d.State)
		}
	}
	if len(domains) != 2 {
		h.t.Errorf("guests after the purge: %v", domains)
	}
	if _, err := os.Stat(h.a.HostFile("/var/lib/debvisor")); err == nil {
		// What an overlay shows of a directory that is gone is a character device.
		if info, err := os.Lstat(filepath.Clean(h.a.HostFile("/var/lib/debvisor"))); err == nil && info.IsDir() {
			h.t.Error("/var/lib/debvisor is there")
		}
	}
}
