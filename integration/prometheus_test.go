package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
)

// prometheus is Debian's, at the operator's place. It scrapes the lab's replicas as a viewer, and nobody gets to it without a
// certificate.
type prometheus struct {
	c      *cluster
	client *http.Client
}

// prometheusAt is where it listens, in the operator's place.
const prometheusAt = "127.0.0.1:9090"

// soon are the rules with waits that a test can wait for.
func soon(rules []byte) []byte {
	return regexp.MustCompile(`(?m)^( *for:) \S+$`).ReplaceAll(rules, []byte("$1 2s"))
}

// prometheus starts one by the configuration in docs, with this lab's targets, and ends it with the test.
func (c *cluster) prometheus() *prometheus {
	c.t.Helper()
	dir := c.workDir("prometheus")
	c.must(os.Chmod(dir, 0o755))
	config, err := os.ReadFile(filepath.Join(rulesDir, "prometheus.yml"))
	c.must(err)
	rules, err := os.ReadFile(filepath.Join(rulesDir, "debvisor.rules.yml"))
	c.must(err)
	head, _, ok := strings.Cut(string(config), "      # The --metrics-listen")
	if !ok {
		c.t.Fatal("docs/prometheus/prometheus.yml says its targets otherwise")
	}
	head = strings.NewReplacer("15s", "1s", "/etc/prometheus/debvisor/", "").Replace(head) + "      - targets:\n"
	for _, r := range c.Replicas {
		head += "          - " + r.Metrics() + "\n"
	}
	ca, err := os.ReadFile(c.Replicas[0].PKI("ca.pem"))
	c.must(err)
	certPEM, keyPEM, err := lab.Issue(c.ca(), certs.ClientLeaf("prometheus", time.Hour), time.Now())
	c.must(err)
	// Its own listener has a CA of its own: nothing of it is the cluster's.
	own, err := certs.NewAuthority("prometheus", time.Now())
	c.must(err)
	webCert, webKey, err := lab.Issue(own, certs.ServerLeaf("prometheus", "web", []string{"127.0.0.1"}, time.Hour), time.Now())
	c.must(err)
	web := "tls_server_config: {cert_file: web.pem, key_file: web-key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: web-ca.pem, min_version: TLS13}\n"
	for name, content := range map[string][]byte{
		"prometheus.yml": []byte(head), "debvisor.rules.yml": soon(rules), "ca.pem": ca, "prometheus.pem": certPEM, "prometheus-key.pem": keyPEM,
		"web.yml": []byte(web), "web.pem": webCert, "web-key.pem": webKey, "web-ca.pem": own.PEM(),
	} {
		c.must(os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	process, err := c.Operator.Start(lab.Command{Name: "prometheus", Log: filepath.Join(dir, "log"), Args: []string{
		"prometheus", "--config.file=" + filepath.Join(dir, "prometheus.yml"), "--web.config.file=" + filepath.Join(dir, "web.yml"),
		"--web.listen-address=" + prometheusAt, "--storage.tsdb.path=" + filepath.Join(dir, "data"),
	}})
	c.must(err)
	c.t.Cleanup(func() {
		_ = process.Kill()
		<-process.Done()
	})
	meCert, meKey, err := lab.Issue(own, certs.ClientLeaf("test", time.Hour), time.Now())
	c.must(err)
	pair, err := tls.X509KeyPair(meCert, meKey)
	c.must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(own.PEM())
	p := &prometheus{c: c, client: &http.Client{Transport: &http.Transport{
		DialContext:     c.Operator.DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool},
	}}}
	c.eventually(time.Minute, "prometheus answers", func() error {
		if !process.Alive() {
			raw, _ := os.ReadFile(filepath.Join(dir, "log"))
			return fmt.Errorf("it has ended: %s", raw)
		}
		return p.get("targets", nil, &struct{}{})
	})
	return p
}

// get asks its API.
func (p *prometheus) get(what string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+prometheusAt+"/api/v1/"+what+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %s: %w", what, resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s %v: %s", what, query, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// up waits until it has scraped every replica.
func (p *prometheus) up() {
	p.c.t.Helper()
	p.c.eventually(30*time.Second, "all replicas are scraped", func() error {
		var targets struct {
			ActiveTargets []struct{ ScrapeURL, Health, LastError string }
		}
		if err := p.get("targets", nil, &targets); err != nil {
			return err
		}
		if len(targets.ActiveTargets) != len(p.c.Replicas) {
			return fmt.Errorf("it has the targets %v", targets.ActiveTargets)
		}
		for _, target := range targets.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
		}
		return nil
	})
}

// alert is one that it knows.
type alert struct {
	Labels, Annotations map[string]string
	State               string
}

// firing gives the alerts that fire, by name and node.
func (p *prometheus) firing() (map[string]alert, error) {
	var said struct{ Alerts []alert }
	if err := p.get("alerts", nil, &said); err != nil {
		return nil, err
	}
	all := map[string]alert{}
	for _, a := range said.Alerts {
		if a.State == "firing" {
			all[strings.TrimSpace(a.Labels["alertname"]+" "+a.Labels["node"])] = a
		}
	}
	return all, nil
}

// names are those of all metrics that it has.
func (p *prometheus) names() map[string]bool {
	p.c.t.Helper()
	var list []string
	p.c.must(p.get("label/__name__/values", nil, &list))
	names := map[string]bool{}
	for _, name := range list {
		names[name] = true
	}
	return names
}

// query checks that it can work an expression out.
func (p *prometheus) query(expr string) error {
	var result struct{ ResultType string }
	if err := p.get("query", url.Values{"query": {expr}}, &result); err != nil {
		return err
	}
	if result.ResultType == "" {
		return errors.New("no result")
	}
	return nil
}
