package controlplane

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
)

// https is a client of a replica's gateway, with a pair of files or none.
func (r *replicaUnderTest) https(pair certs.Pair) *http.Client {
	r.t.Helper()
	ca, err := os.ReadFile(r.home.Authority().Cert)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AppendCertsFromPEM(ca)
	if pair.Cert != "" {
		own, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			r.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{own}
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// ask makes a request of the gateway and gives the status and the members of
// the answer.
func (r *replicaUnderTest) ask(c *http.Client, bearer, method, path, body string) (int, map[string]any) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.within(), method, "https://"+r.cfg.GatewayListen+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		r.t.Fatalf("%s %s: %s: %q: %v", method, path, resp.Status, raw, err)
	}
	return resp.StatusCode, members
}

// signer is an issuer of JWTs whose public key is in a file.
type signer struct{ key *rsa.PrivateKey }

func newSigner(t *testing.T, file string) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(crypto.PublicKey(&key.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return signer{key}
}

func (s signer) sign(t *testing.T, principal string) string {
	t.Helper()
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": "debvisor-auth", "aud": "debvisor-rpc", "sub": principal, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}).SignedString(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// gatewayUnderTest starts a replica with a gateway, a principal "ci" with a key
// and an issuer of JWTs.
func gatewayUnderTest(t *testing.T) (r *replicaUnderTest, operator *http.Client, key string, issuer signer) {
	t.Helper()
	r = newReplica(t)
	r.cfg.GatewayListen = storetest.FreeAddress(t)
	r.cfg.JWT.Key = filepath.Join(r.home.Dir, "jwt.pem")
	issuer = newSigner(t, r.cfg.JWT.Key)
	r.start()
	r.awaitLeader(r.dial(r.cfg.Listen, r.home.Operator()))
	operator = r.https(r.home.Operator())
	for name, role := range map[string]string{"ci": "viewer", "panel-user": "monitor"} {
		if status, p := r.ask(operator, "", http.MethodPut, "/v1/principals/"+name, `{"type":"service","roles":["`+role+`"]}`); status != http.StatusOK {
			t.Fatalf("making %s: %d %v", name, status, p)
		}
	}
	status, made := r.ask(operator, "", http.MethodPost, "/v1/keys", `{"principal":"ci"}`)
	if key, _ = made["key"].(string); status != http.StatusOK || key == "" {
		t.Fatalf("making a key: %d %v", status, made)
	}
	return r, operator, key, issuer
}

func TestTheGatewaysCallersAreThemselves(t *testing.T) {
	r, operator, key, issuer := gatewayUnderTest(t)
	nobody, token := r.https(certs.Pair{}), issuer.sign(t, "panel-user")
	// All of it over one connection and another: what one request shows is
	// nothing to the next.
	for range 3 {
		for _, c := range []struct {
			client          *http.Client
			bearer          string
			status          int
			principal, kind string
		}{
			{operator, "", 200, "operator", "CREDENTIAL_KIND_CERTIFICATE"},
			{nobody, key, 200, "ci", "CREDENTIAL_KIND_API_KEY"},
			{nobody, "", 401, "", ""},
			{nobody, token, 200, "panel-user", "CREDENTIAL_KIND_JWT"},
			{nobody, "dvk_0123456789abcdef_00", 401, "", ""},
			{operator, token, 200, "operator", "CREDENTIAL_KIND_CERTIFICATE"}, // a certificate goes before
		} {
			status, p := r.ask(c.client, c.bearer, http.MethodGet, "/v1/whoami", "")
			if status != c.status || status == 200 && (p["principal"] != c.principal || p["credential"] != c.kind) {
				t.Errorf("%s: %d %v", c.principal, status, p)
			}
		}
	}
	// Permissions are the principal's, and a malformed request tells a stranger
	// no more than any other.
	for _, c := range []struct {
		bearer, path, body string
		status             int
		code               string
	}{
		{key, "/v1/nodes/n1:cordon", `{}`, 403, "PERMISSION_DENIED"},
		{token, "/v1/nodes/n1:cordon", `{"nonsense":1}`, 403, "PERMISSION_DENIED"},
		{"", "/v1/nodes/n1:cordon", `{"nonsense":1}`, 401, "NO_IDENTITY"},
	} {
		if status, p := r.ask(nobody, c.bearer, http.MethodPost, c.path, c.body); status != c.status || p["code"] != c.code {
			t.Errorf("%s %s: %d %v", c.path, c.body, status, p)
		}
	}
	if status, p := r.ask(operator, "", http.MethodPost, "/v1/nodes/n1:cordon", `{"nonsense":1}`); status != 400 || p["code"] != "MALFORMED_REQUEST" {
		t.Errorf("a malformed request of the operator's: %d %v", status, p)
	}
	r.auditHas(map[string]string{"principal": "ci", "peer": "127.0.0.1", "method": "/debvisor.v1.NodeService/CordonNode", "event": "permission_denied"})
	r.auditHas(map[string]string{"principal": "operator", "peer": "127.0.0.1", "method": "/debvisor.v1.AccessService/CreateKey", "event": "rpc_result"})
	r.auditHas(map[string]string{"principal": "operator", "method": "/debvisor.v1.NodeService/CordonNode", "error": "MALFORMED_REQUEST"})
	for _, secret := range []string{key, token} {
		if strings.Contains(r.audit(), secret) || strings.Contains(r.log.String(), secret) {
			t.Error("a secret is in a log")
		}
	}
}

// auditHas waits for a line of the audit log with these members.
func (r *replicaUnderTest) auditHas(want map[string]string) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
		for line := range strings.Lines(r.audit()) {
			var got map[string]any
			found := json.Unmarshal([]byte(line), &got) == nil
			for member, value := range want {
				found = found && got[member] == value
			}
			if found {
				return
			}
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the audit log has no %v:\n%s", want, r.audit())
		}
	}
}

// TestARevokedCallerIsRefusedOnTheGateway shows that of a revoked key and a
// revoked certificate nothing is served, on the connections that stand, and that
// a watch ends.
func TestARevokedCallerIsRefusedOnTheGateway(t *testing.T) {
	r, operator, key, _ := gatewayUnderTest(t)
	nobody := r.https(certs.Pair{})
	if status, p := r.ask(nobody, key, http.MethodGet, "/v1/nodes", ""); status != 200 {
		t.Fatalf("%d %v", status, p)
	}
	_, keys := r.ask(operator, "", http.MethodGet, "/v1/keys?principal=ci", "")
	list, _ := keys["keys"].([]any)
	if len(list) != 1 {
		t.Fatalf("keys: %v", keys)
	}
	id, _ := list[0].(map[string]any)["id"].(string)
	// The stream that lasts without any VM is that of the audit log.
	if status, p := r.ask(operator, "", http.MethodPut, "/v1/principals/ci", `{"type":"service","roles":["operator"]}`); status != 200 {
		t.Fatalf("%d %v", status, p)
	}
	lines, end := r.follow(nobody, key)
	defer end()
	if status, p := r.ask(operator, "", http.MethodDelete, "/v1/keys/"+id, ""); status != 200 {
		t.Fatalf("%d %v", status, p)
	}
	began := time.Now()
	last := <-lines
	if took := time.Since(began); took > 2*time.Second || !bytes.Contains(last, []byte(`"KEY_NOT_ACCEPTED"`)) {
		t.Errorf("the watch of a revoked key ended after %s with %s", took, last)
	}
	if status, p := r.ask(nobody, key, http.MethodGet, "/v1/nodes", ""); status != 401 || p["code"] != "KEY_NOT_ACCEPTED" {
		t.Errorf("a revoked key: %d %v", status, p)
	}

	ada := r.principal("ada")
	client := r.https(ada)
	if status, p := r.ask(client, "", http.MethodGet, "/v1/whoami", ""); status != 200 || p["principal"] != "ada" {
		t.Fatalf("%d %v", status, p)
	}
	_, who := r.ask(client, "", http.MethodGet, "/v1/whoami", "")
	if status, p := r.ask(operator, "", http.MethodPost, "/v1/revoked-certificates", `{"serial":"`+who["credential_id"].(string)+`"}`); status != 200 {
		t.Fatalf("%d %v", status, p)
	}
	for deadline := time.Now().Add(5 * time.Second); ; <-time.After(10 * time.Millisecond) {
		status, p := r.ask(client, "", http.MethodGet, "/v1/whoami", "")
		if status == 401 && p["code"] == "CERTIFICATE_REVOKED" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a revoked certificate: %d %v", status, p)
		}
	}
}

// TestLimitsOnTheGateway shows that callers are counted by their names, and who
// has none by the address, and are told when to come back.
func TestLimitsOnTheGateway(t *testing.T) {
	r, operator, key, _ := gatewayUnderTest(t)
	nobody := r.https(certs.Pair{})
	if status, p := r.ask(operator, "", http.MethodPut, "/v1/principals/ci/limit", `{"limit":{"per_minute":6,"burst":3}}`); status != 200 {
		t.Fatalf("%d %v", status, p)
	}
	until := func(bearer, code string) {
		t.Helper()
		for range 200 {
			status, p := r.ask(nobody, bearer, http.MethodGet, "/v1/nodes", "")
			if status != http.StatusTooManyRequests {
				continue
			}
			if after, _ := p["retry_after"].(float64); p["code"] != code || after <= 0 || after > 60 {
				t.Errorf("beyond the limit: %v", p)
			}
			return
		}
		t.Errorf("200 calls are within the limit")
	}
	until(key, "RATE_LIMIT_EXCEEDED")
	until("", "TOO_MANY_FAILURES")
	if status, p := r.ask(operator, "", http.MethodGet, "/v1/nodes", ""); status != 200 {
		t.Errorf("another caller from that address: %d %v", status, p)
	}
}

// TestTheGatewayStopsWithItsReplica shows that a stream that stands open does not
// hold up the end, and ends in a problem.
func TestTheGatewayStopsWithItsReplica(t *testing.T) {
	r := newReplica(t)
	r.cfg.GatewayListen = storetest.FreeAddress(t)
	stop := r.start()
	r.awaitLeader(r.dial(r.cfg.Listen, r.home.Operator()))
	last, end := r.follow(r.https(r.home.Operator()), "")
	defer end()
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if took := time.Since(began); took > graceful-time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if line := <-last; !bytes.Contains(line, []byte(`{"error":{`)) || !bytes.Contains(line, []byte(`"UNAVAILABLE"`)) {
		t.Errorf("the stream ended with %s", line)
	}
}

// follow follows the audit log and gives the last line once it has ended.
func (r *replicaUnderTest) follow(c *http.Client, bearer string) (last <-chan []byte, end func()) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.cfg.GatewayListen+"/v1/audit?follow=true&last=1", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req) //nolint:bodyclose // the goroutine below closes it
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("following the audit log: %s: %s", resp.Status, body)
	}
	lines := make(chan []byte, 1)
	go func() {
		defer func() { _ = resp.Body.Close() }()
		all, _ := io.ReadAll(resp.Body)
		parts := bytes.Split(bytes.TrimSpace(all), []byte("\n"))
		lines <- parts[len(parts)-1]
	}()
	return lines, cancel
}

// principal gives the pair of a new principal's certificate.
func (r *replicaUnderTest) principal(name string) certs.Pair {
	r.t.Helper()
	made, err := members.IssueClient(r.home, name, filepath.Join(r.home.Dir, name), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

func TestAGatewayThatCannotBe(t *testing.T) {
	r := newReplica(t)
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for address, want := range map[string]string{"127.0.0.1": "host:port", taken.Addr().String(): "in use"} {
		cfg := r.cfg
		cfg.GatewayListen = address
		if err := Run(r.within(), cfg); err == nil || !strings.Contains(err.Error(), "--gateway-listen") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestEventsOnTheGateway(t *testing.T) {
	r, operator, _, _ := gatewayUnderTest(t)
	status, e := r.ask(operator, "", http.MethodGet, "/v1/events?after=oldest&until_now=true&kinds=replica.joined&kinds=replica.removed&min_severity=EVENT_SEVERITY_INFO", "")
	if status != http.StatusOK || e["kind"] != "replica.joined" || e["cursor"] == "" {
		t.Errorf("%d %v", status, e)
	}
	if status, p := r.ask(operator, "", http.MethodGet, "/v1/events?kinds=replica.joind", ""); status != http.StatusBadRequest || p["code"] != "INVALID_FIELD" {
		t.Errorf("%d %v", status, p)
	}
	if status, p := r.ask(r.https(certs.Pair{}), "", http.MethodGet, "/v1/events?until_now=true", ""); status != http.StatusUnauthorized {
		t.Errorf("nobody in particular: %d %v", status, p)
	}
}
