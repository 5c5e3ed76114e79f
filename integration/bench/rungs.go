package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// rungs is the process that serves one answer bare and behind each stage of the
// chain: controlplane/internal/api/rungs, which says what it prints.
type rungs struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	offer offer
	// conns are kept by address and credential, so that bursts shake no hands.
	conns map[string][]*grpc.ClientConn
}

type offer struct {
	Rungs []struct {
		Name, Address string
		Plaintext     bool
	}
	Dir         string
	APIKey      string `json:"api_key"`
	JWT         string `json:"jwt"`
	AnswerBytes int    `json:"answer_bytes"`
}

// startRungs builds and starts the process.
func startRungs(ctx context.Context, dir string) (*rungs, error) {
	program := filepath.Join(dir, "rungs")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./controlplane/internal/api/rungs")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the ladder's server: %w: %s", err, out)
	}
	r := &rungs{cmd: exec.CommandContext(ctx, program, "-dir", dir), conns: map[string][]*grpc.ClientConn{}}
	r.cmd.Stderr = os.Stderr
	in, err := r.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("preparing the ladder's server: %w", err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("preparing the ladder's server: %w", err)
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the ladder's server: %w", err)
	}
	r.in, r.out = in, bufio.NewScanner(out)
	if err := r.read(&r.offer); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// read reads one line of the process.
func (r *rungs) read(into any) error {
	if !r.out.Scan() {
		return fmt.Errorf("the ladder's server has ended: %w", r.out.Err())
	}
	if err := json.Unmarshal(r.out.Bytes(), into); err != nil {
		return fmt.Errorf("reading %q of the ladder's server: %w", r.out.Text(), err)
	}
	return nil
}

// stop ends the process and waits for its end.
func (r *rungs) stop() {
	for _, conns := range r.conns {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	_ = r.in.Close() // which ends it
	_ = r.cmd.Wait()
}

// used is what the process has used since its start.
type used struct {
	Mallocs uint64 `json:"mallocs"`
	CPU     int64  `json:"cpu_ns"`
}

func (r *rungs) used() (used, error) { return r.ask("") }

func (r *rungs) ask(line string) (u used, err error) {
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		return u, fmt.Errorf("asking the ladder's server what it has used: %w", err)
	}
	return u, r.read(&u)
}

// target is one server of the ladder, as one caller reaches it.
type target struct {
	rung string
	// certificate names the client's certificate; empty: none.
	certificate string
	// bearer is sent along; empty: nothing.
	bearer string
}

// bearer sends a token with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return true }

// dial gives so many connections to a target.
func (r *rungs) dial(t target, n int) ([]*grpc.ClientConn, error) {
	key := fmt.Sprint(t)
	for len(r.conns[key]) < n {
		c, err := r.connect(t)
		if err != nil {
			return nil, err
		}
		r.conns[key] = append(r.conns[key], c)
	}
	return r.conns[key][:n], nil
}

func (r *rungs) connect(t target) (*grpc.ClientConn, error) {
	i := slices.IndexFunc(r.offer.Rungs, func(s struct {
		Name, Address string
		Plaintext     bool
	},
	) bool {
		return s.Name == t.rung
	})
	if i < 0 {
		return nil, fmt.Errorf("the ladder has no rung %q", t.rung)
	}
	if r.offer.Rungs[i].Plaintext {
		return grpc.NewClient(r.offer.Rungs[i].Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	ca, err := os.ReadFile(filepath.Join(r.offer.Dir, "ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("reading the ladder's CA: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AppendCertsFromPEM(ca)
	if t.certificate != "" {
		path := filepath.Join(r.offer.Dir, t.certificate)
		pair, err := tls.LoadX509KeyPair(path+".pem", path+"-key.pem")
		if err != nil {
			return nil, fmt.Errorf("loading the certificate of %s: %w", t.certificate, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(cfg))}
	if t.bearer != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(t.bearer)))
	}
	return grpc.NewClient(r.offer.Rungs[i].Address, options...)
}

// shot is what a burst of calls came to.
type shot struct {
	perSecond float64
	cpu       float64 // the server's, microseconds a call
	allocs    float64 // the server's, a call
	p50, p99  time.Duration
}

// burst makes calls to a target by so many callers for d. want tells whether a
// call ended as it should; any other fails the run.
func (r *rungs) burst(ctx context.Context, t target, callers int, d time.Duration, want func(error) bool) (shot, error) {
	conns, err := r.dial(t, min(callers, connections))
	if err != nil {
		return shot{}, err
	}
	before, err := r.used()
	if err != nil {
		return shot{}, err
	}
	begin := time.Now()
	times, err := volley(ctx, conns, callers, begin.Add(d), want)
	elapsed := time.Since(begin)
	if err != nil {
		return shot{}, fmt.Errorf("%s: %w", t.rung, err)
	}
	after, err := r.used()
	if err != nil {
		return shot{}, err
	}
	n := float64(len(times))
	slices.Sort(times)
	return shot{
		perSecond: n / elapsed.Seconds(), cpu: float64(after.CPU-before.CPU) / 1e3 / n, allocs: float64(after.Mallocs-before.Mallocs) / n,
		p50: times[len(times)/2], p99: times[len(times)*99/100],
	}, nil
}

// filter is the request: one with rules to be checked against.
var filter = &debvisorv1.VMFilter{Name: "web", Node: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: "node-001"}}}

// volley calls until the end and gives how long each call took.
func volley(ctx context.Context, conns []*grpc.ClientConn, callers int, end time.Time, want func(error) bool) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for i := range callers {
		client := debvisorv1.NewVMServiceClient(conns[i%len(conns)])
		wg.Go(func() {
			var times []time.Duration
			for began := time.Now(); began.Before(end) && ctx.Err() == nil; {
				_, err := client.ListVMs(ctx, filter)
				now := time.Now()
				times = append(times, now.Sub(began))
				began = now
				if !want(err) {
					cancel(fmt.Errorf("a call ended unexpectedly: %w", err))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return all, nil
}

// accepted wants calls to succeed, refused wants them to exceed the rate.
func accepted(err error) bool { return err == nil }
