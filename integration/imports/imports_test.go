// Package imports holds the table of which package of ours may import which.
// Imports go down only; a package that is not in the table fails the test, so
// that a new room is given its place on purpose.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/debvisor/debvisor/"

// layer is a set of packages, why they stand there, and what of ours they may
// import besides the wire messages (proto/…), which everyone may.
type layer struct {
	packages []string
	reason   string
	may      []string
}

// common is what any daemon's package may build on.
var common = []string{"shared/errdefs", "shared/task", "shared/identity", "shared/run", "shared/obs"}

func table() []layer {
	var (
		cp    = "controlplane/internal/"
		ag    = "agent/internal/"
		with  = func(more ...string) []string { return append(slices.Clone(common), more...) }
		state = []string{cp + "cluster", cp + "store"}
	)
	return []layer{
		{[]string{"proto/debvisor/v1", "proto/debvisor/agent/v1", "proto/debvisor/store/v1"}, "messages import messages only", nil},
		{[]string{"shared/errdefs"}, "kinds of error: below all, but for the contract's ErrorDetails", nil},
		{[]string{"shared/task", "shared/run", "shared/obs"}, "words that all share; they know no package but the errors", []string{"shared/errdefs"}},
		{[]string{"shared/yamlfile"}, "YAML that people write; knows nothing of what it says", nil},
		{[]string{"shared/config"}, "what a daemon is told: keys, flags, a file; knows no daemon", []string{"shared/errdefs", "shared/yamlfile"}},
		{[]string{"shared/config/configtest"}, "files made from the keys, held against these", []string{"shared/config"}},
		{[]string{"shared/manual"}, "man pages and completions of the programs' commands, for packages", []string{"shared/errdefs", "shared/obs"}},
		{[]string{"shared/obs/obstest"}, "takes the traces of tests", nil},
		{[]string{"certs"}, "keys, certificates and TLS configs; knows no cluster", []string{"shared/errdefs"}},
		{[]string{"shared/identity"}, "what a verified certificate says", []string{"shared/errdefs", "certs"}},
		{[]string{"shared/rpc"}, "builders with every limit set", with("certs")},

		{[]string{cp + "cluster"}, "the snapshot: pure, so that planner and tests need no etcd", []string{"shared/errdefs", "shared/task"}},
		{[]string{cp + "store"}, "the only way to etcd", with(cp + "cluster")},
		{[]string{cp + "store/storetest"}, "real etcds for tests of all packages above the store", with(state...)},
		{[]string{cp + "election"}, "leadership; what is done with it is not its business", with(state...)},
		{[]string{cp + "planner"}, "pure: snapshot in, plan out", []string{"shared/errdefs", "shared/task", cp + "cluster"}},
		{[]string{cp + "schedule/zone"}, "time zones by name; knows nothing else", []string{"shared/errdefs"}},
		{[]string{cp + "repldiff"}, "pure: what both ends have in, what to send out", nil},
		{[]string{cp + "repldiff/look"}, "asks both ends by a function, and decides; for dry runs and runs alike", []string{"shared/errdefs", "shared/task", cp + "cluster", cp + "repldiff"}},
		{[]string{cp + "retention"}, "pure: snapshots and a policy in, verdicts out", []string{"shared/errdefs", cp + "schedule/zone"}},
		{[]string{cp + "retention/facts"}, "pure: records and an agent's listing in, what retention decides on out", []string{cp + "cluster", cp + "retention"}},
		{[]string{cp + "advisor"}, "what only libvirt can say of a plan; asks by an interface", []string{"shared/errdefs", cp + "planner"}},
		{[]string{cp + "plans"}, "computes plans; a controller meets others only through records in etcd", with(append(state, cp+"election", cp+"planner")...)},
		{[]string{cp + "operations"}, "submit, wait, watch, cancel; knows no kind of operation", with(state...)},
		{[]string{cp + "inventory"}, "liveness and last-known state", with(append(state, cp+"election")...)},
		{[]string{cp + "accessfile"}, "an access policy from a file; what it means is for authn and authz", []string{"shared/errdefs", "shared/identity", "shared/yamlfile"}},
		{[]string{cp + "authn"}, "who a caller is", with(cp+"cluster", cp+"accessfile", "shared/rpc", "certs")},
		{[]string{cp + "authz"}, "what a caller may do", with(cp+"cluster", cp+"authn", cp+"accessfile")},
		{[]string{"shared/auditlog"}, "the audit log's format and its proof: replicas write it, hvctl checks copies without a replica's help", nil},
		{[]string{cp + "access"}, "the rules of changing who may do what; the leader's keeper of keys", with(append(state, cp+"authn", cp+"authz", cp+"accessfile", cp+"election", cp+"audit")...)},
		{[]string{cp + "audit"}, "what a caller did; its end goes to etcd", with(append(state, "shared/auditlog")...)},
		{[]string{cp + "health"}, "whether a replica is ready; what is looked at is brought by others", nil},
		{[]string{cp + "limit"}, "how often a caller may; knows names and rates", []string{"shared/errdefs"}},
		{[]string{cp + "pki"}, "certificates that were issued, and the exchange of the CA: records in, changes out", with(append(state, "certs")...)},
		{[]string{cp + "enroll"}, "tokens and agents' certificates; speaks of the peers of calls", with(append(state, "certs", "shared/rpc", cp+"pki")...)},
		{[]string{cp + "backup"}, "a backup's file and its recovery key; replicas restore from it, hvctl writes and checks it", nil},
		{[]string{cp + "members"}, "replicas joining, leaving, taking backups, restored from one; the replica's own files", with(append(state, "certs", "shared/rpc", cp+"backup", cp+"enroll", cp+"pki")...)},
		{[]string{cp + "migrate"}, "a controller meets others only through records in etcd; what tunnels refused is audited", with(append(state, cp+"election", cp+"planner", cp+"audit")...)},
		{[]string{cp + "drain"}, "plans of many moves; the moves themselves are operations of migrate's kind", with(append(state, cp+"election", cp+"planner")...)},
		{[]string{cp + "storage"}, "a controller meets others only through records in etcd; what streams refused and missed RPOs are audited", with(append(
			state, cp+"election", cp+"audit", cp+"repldiff", cp+"repldiff/look", cp+"retention", cp+"retention/facts")...)},
		{[]string{cp + "failover"}, "a controller meets others only through records in etcd; its judgement is pure, for dry runs as well", with(append(state, cp+"election", cp+"planner")...)},
		{[]string{cp + "recovery"}, "the return from a backup; a controller meets others only through records in etcd", with(append(state, cp+"election")...)},
		{[]string{cp + "power"}, "a controller meets others only through records in etcd", with(append(state, cp+"election")...)},
		{[]string{cp + "traces"}, "spans of what the records tell; nobody waits for it", with(append(state, cp+"election")...)},
		{[]string{cp + "schedule"}, "when policies are due; a controller meets others only through records in etcd", with(append(state, cp+"election", cp+"schedule/zone")...)},
		{[]string{cp + "dispatch"}, "agents' sessions: sends tasks, hands reports to records and inventory", with(append(state, "certs", cp+"election", cp+"inventory", "shared/rpc")...)},
		{[]string{cp + "relay"}, "questions to agents from any replica, by way of the leader", with(append(state, cp+"dispatch", "shared/rpc")...)},
		{[]string{cp + "api"}, "thin handlers and the chain they stand behind", with(append(
			state, cp+"operations", cp+"planner", cp+"plans", cp+"authn", cp+"authz", cp+"access", cp+"accessfile", cp+"audit", cp+"health", cp+"limit", cp+"enroll", cp+"pki", "shared/rpc", "certs", "shared/auditlog",
			cp+"retention", cp+"retention/facts", cp+"schedule", cp+"repldiff", cp+"repldiff/look", cp+"failover", cp+"events",
		)...)},
		{[]string{cp + "metrics"}, "what is counted and what is read from memory when somebody scrapes", with(append(state, cp+"audit", cp+"api")...)},
		{[]string{cp + "api/rungs"}, "what each stage of the chain costs: the bench's, and no part of the product", with(
			cp+"api", cp+"authn", cp+"authz", cp+"limit", cp+"audit", cp+"metrics", cp+"cluster", "shared/rpc", "certs",
		)},
		{[]string{cp + "events"}, "facts out of etcd's history; who may see which is part of them", with(state...)},
		{[]string{cp + "gateway/debvisor/v1"}, "generated: messages to paths", nil},
		{[]string{cp + "gateway"}, "HTTP to gRPC; a client of the callers' server, that knows nothing behind it", []string{"shared/errdefs", "shared/rpc", cp + "gateway/debvisor/v1"}},
		{[]string{"controlplane"}, "the assembly: the only package that knows all of the control plane", with(append(
			state, "certs", "shared/rpc", "shared/config", cp+"election", cp+"planner", cp+"operations", cp+"inventory", cp+"accessfile", cp+"access", cp+"authn", cp+"authz", cp+"audit",
			cp+"health", cp+"limit", cp+"enroll", cp+"pki", cp+"members", cp+"traces", cp+"migrate", cp+"drain", cp+"recovery", cp+"power", cp+"storage", cp+"failover", cp+"schedule", cp+"dispatch", cp+"relay", cp+"api", cp+"advisor", cp+"plans", cp+"metrics", cp+"gateway", cp+"events",
		)...)},
		{[]string{"controlplane/cmd/debvisor-rpcd"}, "flags to Config; init and join make the files that serve reads", with("shared/manual", "certs", "shared/config", "controlplane", cp+"members", cp+"backup", cp+"enroll")},
		{[]string{"controlplane/cmd/hvctl"}, "a client: knows the API only, as any other client, and how to check a copy of an audit log and a backup", []string{"shared/manual", "shared/errdefs", "shared/rpc", "shared/obs", "shared/auditlog", cp + "backup"}},

		{[]string{ag + "hypervisor"}, "the only package that touches libvirt", with()},
		{[]string{ag + "tunnel"}, "byte streams between agents", with("certs")},
		{[]string{ag + "pace"}, "a limit of bytes a second; knows nothing else", nil},
		{[]string{ag + "diskcopy"}, "files over a connection that it is given", with(ag + "pace")},
		{[]string{ag + "answer"}, "questions of the leader, asked of interfaces", with(ag + "zfs")},
		{[]string{ag + "storage"}, "what disks lie on; knows no libvirt", with()},
		{[]string{ag + "rbd"}, "the only package that speaks to Ceph", with()},
		{[]string{ag + "zfs"}, "the only package that runs zfs and zpool", with()},
		{[]string{ag + "inventory"}, "what the host is and has", with(ag+"hypervisor", ag+"storage", ag+"zfs")},
		{[]string{ag + "worker"}, "runs kinds it does not know", with()},
		{[]string{ag + "zvol"}, "one volume of a VM that moves", with(ag + "zfs")},
		{[]string{ag + "migration"}, "task kinds above hypervisor and tunnel", with("certs", "shared/rpc", ag+"hypervisor", ag+"tunnel", ag+"diskcopy", ag+"storage", ag+"worker", ag+"pace", ag+"zfs", ag+"zvol")},
		{[]string{ag + "replication"}, "task kinds above zfs and tunnel", with("certs", ag+"zfs", ag+"tunnel", ag+"pace", ag+"worker")},
		{[]string{ag + "freeze"}, "guests stand still for a moment; what is done meanwhile is not its business", with(ag + "hypervisor")},
		{[]string{ag + "image"}, "task kinds above rbd", with(ag+"rbd", ag+"worker")},
		{[]string{ag + "power"}, "task kinds above hypervisor", with(ag+"hypervisor", ag+"worker")},
		{[]string{ag + "failover"}, "task kinds above power and replication: what they do to VMs and copies, in its own order", with(
			ag+"hypervisor", ag+"power", ag+"replication", ag+"worker", ag+"zfs", ag+"zvol",
		)},
		{[]string{ag + "enroll"}, "the agent's certificate", with("certs", "shared/rpc")},
		{[]string{ag + "session"}, "the stream to the leader", with("certs", "shared/rpc", ag+"worker")},
		{[]string{"agent"}, "the assembly: the only package that knows all of the agent", with(
			"certs", "shared/rpc", "shared/config", ag+"hypervisor", ag+"tunnel", ag+"inventory", ag+"worker", ag+"migration", ag+"power", ag+"enroll", ag+"session", ag+"storage", ag+"answer", ag+"zfs", ag+"replication", ag+"freeze", ag+"rbd", ag+"image", ag+"failover",
		)},
		{[]string{"agent/cmd/debvisor-agent"}, "flags to Config", with("shared/manual", "shared/config", "agent", ag+"enroll", ag+"tunnel", ag+"rbd", ag+"freeze")},
	}
}

type listed struct {
	ImportPath string
	Imports    []string
}

// ours lists our packages outside of integration, which may see all.
func ours(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errOut.String())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		if !strings.HasPrefix(p.ImportPath, module+"integration") {
			all = append(all, p)
		}
	}
}

func TestImportsGoDownOnly(t *testing.T) {
	allowed := map[string]layer{}
	for _, l := range table() {
		if l.reason == "" {
			t.Errorf("%v stands without a reason", l.packages)
		}
		for _, p := range l.packages {
			allowed[p] = l
		}
	}
	seen := map[string]bool{}
	for _, p := range ours(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		seen[name] = true
		l, ok := allowed[name]
		if !ok {
			t.Errorf("%s is not in the table: give it its place and the reason", name)
			continue
		}
		for _, imported := range p.Imports {
			target, internal := strings.CutPrefix(imported, module)
			if !internal || strings.HasPrefix(target, "proto/") || slices.Contains(l.may, target) {
				continue
			}
			t.Errorf("%s must not import %s (%s)", name, target, l.reason)
		}
	}
	for p := range allowed {
		if !seen[p] {
			t.Errorf("%s is in the table and nowhere else: take it out", p)
		}
	}
}
