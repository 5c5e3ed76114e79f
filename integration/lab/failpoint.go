package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Failpoints are those of one running process that was built with them, reached over gofail's HTTP.
type Failpoints struct {
	client *http.Client
	base   string
}

// failpointEnv adds what makes a daemon offer its failpoints. Every place has one daemon, so one port is enough.
func (l *Lab) failpointEnv(p *Place, env []string) []string {
	if !l.opts.Failpoints {
		return env
	}
	return append(slices.Clone(env), fmt.Sprintf("GOFAIL_HTTP=%s:%d", p.Addr, failpointPort))
}

// Failpoints returns the failpoints of the daemon in the place. The lab must have been made with Options.Failpoints.
func (p *Place) Failpoints() *Failpoints {
	transport := &http.Transport{DialContext: p.DialContext, DisableKeepAlives: true}
	return &Failpoints{
		client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
		base:   fmt.Sprintf("http://%s:%d/", p.Addr, failpointPort),
	}
}

// Arm makes the process execute the gofail terms, for instance "sleep(120000)" (ms), whenever it comes to the failpoint. The
// name is the failpoint's own, without its package.
func (f *Failpoints) Arm(ctx context.Context, name, terms string) error {
	path, err := f.find(ctx, name)
	if err != nil {
		return err
	}
	_, err = f.do(ctx, http.MethodPut, path, terms)
	return err
}

// Disarm makes the process pass the failpoint again. A sleep that has begun goes on.
func (f *Failpoints) Disarm(ctx context.Context, name string) error {
	path, err := f.find(ctx, name)
	if err != nil {
		return err
	}
	_, err = f.do(ctx, http.MethodDelete, path, "")
	return err
}

// Hits returns how often the process came to the armed failpoint.
func (f *Failpoints) Hits(ctx context.Context, name string) (int, error) {
	path, err := f.find(ctx, name)
	if err != nil {
		return 0, err
	}
	said, err := f.do(ctx, http.MethodGet, path+"/count", "")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(said))
}

// AwaitHit waits until the process is at the failpoint.
func (f *Failpoints) AwaitHit(ctx context.Context, name string) error {
	return Eventually(ctx, "failpoint "+name+" is hit", func() error {
		hits, err := f.Hits(ctx, name)
		if err == nil && hits == 0 {
			err = fmt.Errorf("it is not")
		}
		return err
	})
}

// find returns the full name of a failpoint: its package's path and its name.
func (f *Failpoints) find(ctx context.Context, name string) (string, error) {
	said, err := f.do(ctx, http.MethodGet, "", "")
	if err != nil {
		return "", err
	}
	var found []string
	for line := range strings.Lines(said) {
		full, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if full == name || strings.HasSuffix(full, "/"+name) {
			found = append(found, full)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the process should have one failpoint %s and has %q", name, found)
	}
	return found[0], nil
}

func (f *Failpoints) do(ctx context.Context, method, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.base+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("failpoint %s %q: %s: %s", method, path, resp.Status, said)
	}
	return string(said), err
}
