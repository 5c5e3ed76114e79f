package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// metricName is one of ours in an expression.
var metricName = regexp.MustCompile(`\bdebvisor_[a-z0-9_]+`)

// TestMetrics has Debian's Prometheus scrape a lab by the configuration, the rules and the dashboard in docs.
func TestMetrics(t *testing.T) {
	c := plain.use(t)
	a, leader := c.follower()
	c.hvctl(a.replica, "principal", "set", "prometheus", "--type", "service", "--permission", "metrics:get")
	c.hvctl(a.replica, "principal", "set", "nosy", "--type", "service", "--permission", "vm:list")
	defer c.hvctl(a.replica, "principal", "delete", "prometheus")
	defer c.hvctl(a.replica, "principal", "delete", "nosy")

	c.scrapersAreChecked(leader)
	p := c.prometheus()
	p.up()
	c.hostileLabels(a.replica)
	p.expressions(t)
	c.nodeAlert(p)
}

// scrape asks a replica for its metrics; without a name, with no certificate.
func (c *cluster) scrape(r *lab.Replica, name string) (status int, body string) {
	c.t.Helper()
	config, err := c.OperatorTLS()
	c.must(err)
	if config.Certificates, config.GetClientCertificate = nil, nil; name != "" {
		certPEM, keyPEM, err := lab.Issue(c.ca(), certs.ClientLeaf(name, time.Hour), time.Now())
		c.must(err)
		config, err = c.TLSWith(certPEM, keyPEM)
		c.must(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: c.Operator.DialContext, TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.within(10*time.Second), http.MethodGet, "https://"+r.Metrics()+"/metrics", nil)
	c.must(err)
	resp, err := client.Do(req)
	c.must(err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	c.must(err)
	return resp.StatusCode, string(raw)
}

// scrapersAreChecked checks who gets metrics.
func (c *cluster) scrapersAreChecked(r *lab.Replica) {
	c.t.Helper()
	for name, want := range map[string]int{"": http.StatusUnauthorized, "nosy": http.StatusForbidden, "prometheus": http.StatusOK, "nobody-knows-me": http.StatusForbidden} {
		c.eventually(10*time.Second, "the replica knows who may scrape", func() error { // the records are on their way
			if status, body := c.scrape(r, name); status != want {
				return fmt.Errorf("%q gets %d: %.200s", name, status, body)
			}
			return nil
		})
	}
	agent, err := c.AgentTLS(c.Nodes[0].Name)
	c.must(err)
	client := &http.Client{Transport: &http.Transport{DialContext: c.Operator.DialContext, TLSClientConfig: agent}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.within(10*time.Second), http.MethodGet, "https://"+r.Metrics()+"/metrics", nil)
	c.must(err)
	resp, err := client.Do(req)
	c.must(err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		c.t.Errorf("an agent gets %s", resp.Status)
	}
}

// sometimes are the metrics that docs/metrics.md says are there only when there is any.
func sometimes(t *testing.T) map[string]bool {
	t.Helper()
	raw, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `(\\S+)` \\| \\S+ \\| [^|]*\\| (always|when there is any) \\|").FindAllStringSubmatch(string(raw), -1)
	if len(rows) < 50 {
		t.Fatalf("docs/metrics.md has %d metrics only", len(rows))
	}
	only := map[string]bool{}
	for _, row := range rows {
		only[row[1]] = row[2] != "always"
	}
	return only
}

// expressions checks that Prometheus can work out what rules and dashboard ask, and has what they name.
func (p *prometheus) expressions(t *testing.T) {
	t.Helper()
	var said struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError string }
		}
	}
	p.c.must(p.get("rules", nil, &said))
	var all []string
	for _, group := range said.Groups {
		for _, rule := range group.Rules {
			all = append(all, rule.Query)
			if rule.Health == "err" {
				t.Errorf("rule %s: %s", rule.Name, rule.LastError)
			}
		}
	}
	if len(all) != len(alerts(t)) {
		t.Errorf("prometheus has %d rules", len(all))
	}
	raw, err := os.ReadFile("../docs/grafana/debvisor.json")
	p.c.must(err)
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	p.c.must(json.Unmarshal(raw, &board))
	before := len(all)
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			all = append(all, strings.NewReplacer("$job", "debvisor", "$__rate_interval", "1m").Replace(target.Expr))
		}
	}
	if len(all)-before < 30 {
		t.Errorf("the dashboard asks %d questions only", len(all)-before)
	}
	names, only := p.names(), sometimes(t)
	for _, expr := range all {
		if err := p.query(expr); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
		for _, name := range metricName.FindAllString(expr, -1) {
			whole := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if !names[name] && !only[name] && !only[whole] {
				t.Errorf("prometheus has no %s, which is asked for by %s", name, expr)
			}
		}
	}
}

// mark is in all that the hostile caller says.
const mark = "h0st1le"

// hostileLabels lets a caller whom a tenant confines say what it likes wherever it can, and looks for it in every replica's metrics.
func (c *cluster) hostileLabels(at *lab.Replica) {
	c.t.Helper()
	c.hvctl(at, "tenant", "set", mark+"-tenant")
	c.hvctl(at, "principal", "set", mark, "--type", "service", "--tenant", mark+"-tenant", "--role", "operator")
	defer c.hvctl(at, "tenant", "delete", mark+"-tenant")
	defer c.hvctl(at, "principal", "delete", mark)
	v := c.visitor(at, mark, "")
	ctx := metadata.AppendToOutgoingContext(v.ctx(), "debvisor-request-id", mark+"-request", "traceparent", mark, "user-agent", mark, mark, mark)
	vm := &debvisorv1.VMRef{VmId: mark + "-vm"}
	certPEM, keyPEM, err := lab.Issue(c.ca(), certs.ClientLeaf(mark, time.Hour), time.Now())
	c.must(err)
	config, err := c.TLSWith(certPEM, keyPEM)
	c.must(err)
	conn, err := c.DialAs(at, config)
	c.must(err)
	defer func() { _ = conn.Close() }()
	calls := []error{
		conn.Invoke(ctx, "/"+mark+".v1.Service/"+mark, &debvisorv1.Empty{}, &debvisorv1.Empty{}),
		conn.Invoke(ctx, "/debvisor.v1.VMService/"+mark, &debvisorv1.Empty{}, &debvisorv1.Empty{}),
	}
	_, err = v.vms.GetVM(ctx, vm)
	calls = append(calls, err)
	_, err = v.vms.StartVM(ctx, vm)
	calls = append(calls, err)
	_, err = v.vms.ListVMs(ctx, &debvisorv1.VMFilter{})
	if err != nil {
		c.t.Errorf("the caller is not who it is meant to be: %v", err)
	}
	bearer := c.visitor(at, mark, "dvk_"+mark+"_"+strings.Repeat(mark, 6))
	_, err = bearer.vms.ListVMs(bearer.ctx(), &debvisorv1.VMFilter{})
	calls = append(calls, err)
	for i, err := range calls {
		if err == nil {
			c.t.Errorf("hostile call %d was answered", i)
		}
	}
	for _, r := range c.Replicas {
		_, body := c.scrape(r, "prometheus")
		if r == at && (!strings.Contains(body, `method="unknown"`) || !strings.Contains(body, "debvisor_authentication_failures_total{")) {
			c.t.Errorf("%s has counted nothing of it", r.Name)
		}
		c.plainLabels(r, body)
	}
}

// labels are those of a line of metrics.
var (
	sample = regexp.MustCompile(`^debvisor_\w+(?:\{(.*)\})? \S+$`)
	labels = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// plainLabels checks every value of a label in metrics: it is a word of our own, or a node's id.
func (c *cluster) plainLabels(r *lab.Replica, body string) {
	c.t.Helper()
	if strings.Contains(body, mark) {
		c.t.Errorf("the metrics of %s have what a caller has said", r.Name)
	}
	nodes := map[string]bool{"other": true}
	list, err := c.api(r).nodes.ListNodes(c.within(10*time.Second), &debvisorv1.Empty{})
	c.must(err)
	for _, n := range list.GetNodes() { // other tests' too
		nodes[n.GetInfo().GetId().GetId()] = true
	}
	word := regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	method := regexp.MustCompile(`^(unknown|/(debvisor|grpc)\.[a-zA-Z0-9.]+/[A-Za-z]+)$`)
	free := map[string]*regexp.Regexp{"le": regexp.MustCompile(`^[0-9.e+]+$|^\+Inf$`), "method": method, "version": nil, "commit": nil, "go": nil}
	n := 0
	for line := range strings.Lines(body) {
		m := sample.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		for _, l := range labels.FindAllStringSubmatch(m[1], -1) {
			n++
			rule, special := free[l[1]]
			switch {
			case l[1] == "node" || l[1] == "source" || l[1] == "target":
				if !nodes[l[2]] {
					c.t.Errorf("%s: %q is no node", r.Name, l[2])
				}
			case special && rule != nil && !rule.MatchString(l[2]), !special && !word.MatchString(l[2]):
				c.t.Errorf("%s: a label %s has the value %q", r.Name, l[1], l[2])
			}
		}
	}
	if n < 50 {
		c.t.Errorf("the metrics of %s have %d labels only", r.Name, n)
	}
}

// nodeAlert kills an agent and waits for the alert of its node, and for that to end.
func (c *cluster) nodeAlert(p *prometheus) {
	c.t.Helper()
	lost := c.Nodes[1]
	name := "DebvisorNodeUnreachable " + lost.Name
	if fires, err := p.firing(); err != nil || fires[name].State != "" {
		c.t.Fatalf("before anything has happened: %v, %v", fires, err)
	}
	c.must(lost.Agent.Kill())
	began := time.Now()
	c.eventually(40*time.Second, "the alert of the lost node fires", func() error {
		fires, err := p.firing()
		if err != nil {
			return err
		}
		a, ok := fires[name]
		if !ok {
			return fmt.Errorf("these fire: %v", fires)
		}
		if want := "Node " + lost.Name + " is unreachable"; a.Annotations["summary"] != want || a.Labels["severity"] != "critical" {
			return fmt.Errorf("it says %v", a)
		}
		return nil
	})
	c.t.Logf("the alert fired %s after its agent was killed", time.Since(began).Round(time.Second/10))
	c.must(lost.Agent.Start())
	c.eventually(40*time.Second, "the alert of the node that is back ends", func() error {
		fires, err := p.firing()
		if _, still := fires[name]; err == nil && still {
			err = errors.New("it fires still")
		}
		return err
	})
	c.must(c.whole(context.WithoutCancel(c.within(time.Minute))))
}
