package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
)

const (
	// tunnelBytes go through in one measurement.
	tunnelBytes = 1 << 30
	// tunnelPiece is how much is written at once.
	tunnelPiece = 1 << 20
	tunnelPorts = 27450
	rightOfRun  = "bench"
)

// way is something that carries a byte stream from a unix socket to another, by
// TLS over loopback.
type way struct {
	in, out string // where to write to, and where to listen for what comes out
	ends    []*exec.Cmd
}

// close ends the way's processes.
func (w *way) close() error {
	var errs []error
	for _, c := range w.ends {
		if err := c.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		_ = c.Wait() // how it ends is of no interest
	}
	return errors.Join(errs...)
}

// tunnelVsSocat measures how fast our tunnel is, end to end through both of its
// processes, beside socat between the same two sockets, with the same protocol,
// cipher and certificates. It needs no lab.
func (b *bench) tunnelVsSocat(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "dvb")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	files, err := twoAgents(dir)
	if err != nil {
		return err
	}
	ours, err := tunnelWay(ctx, filepath.Join(b.bin, "debvisor-agent"), dir, files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	rate := map[bool][]float64{}
	var ratios []float64
	for round := range b.rounds {
		var of [2]float64
		for _, socat := range []bool{false, true, true, false} { // A B B A
			took := time.Duration(0)
			if socat {
				took, err = throughSocat(ctx, dir, files)
			} else {
				took, err = ours.carry(ctx, tunnelBytes)
			}
			if err != nil {
				return fmt.Errorf("round %d: %w", round+1, err)
			}
			mib := tunnelBytes / float64(1<<20) / took.Seconds()
			rate[socat] = append(rate[socat], mib)
			if socat {
				of[1] += mib
			} else {
				of[0] += mib
			}
		}
		ratios = append(ratios, of[0]/of[1])
		b.say("tunnel: round %d: %.3f of socat", round+1, of[0]/of[1])
	}
	b.add(Figure{
		Name: "tunnel_vs_socat_throughput", Value: median(ratios), Goal: 0.9, Better: "higher", Unit: "ratio",
		Detail: fmt.Sprintf("1 GiB from a unix socket to another through both ends of a tunnel, %.0f MiB/s; through two socats with TLS 1.3, the same cipher, "+
			"mutual certificates and 128 KiB buffers, %.0f MiB/s; medians of %d rounds of A B B A", median(rate[false]), median(rate[true]), b.rounds),
	})
	return nil
}

// twoAgents makes certificates of two agents of one cluster, named a and b.
func twoAgents(dir string) (map[string]certs.Files, error) {
	ca, err := certs.NewAuthority(lab.ClusterName, time.Now())
	if err != nil {
		return nil, err
	}
	out := map[string]certs.Files{}
	for _, node := range []string{"a", "b"} {
		certPEM, keyPEM, err := lab.Issue(ca, certs.AgentLeaf(lab.ClusterName, node, 0), time.Now())
		if err != nil {
			return nil, err
		}
		f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, node+".pem"), Key: filepath.Join(dir, node+"-key.pem")}
		for path, data := range map[string][]byte{f.CA: ca.PEM(), f.Cert: certPEM, f.Key: keyPEM} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				return nil, fmt.Errorf("writing a certificate: %w", err)
			}
		}
		out[node] = f
	}
	return out, nil
}

// tunnelWay starts both ends of a tunnel as the agents do: their processes, told
// by a file what they are.
func tunnelWay(ctx context.Context, program, dir string, files map[string]certs.Files) (*way, error) {
	w := &way{in: filepath.Join(dir, "source", "io", "mig.sock"), out: filepath.Join(dir, "target", "io", "mig.sock")}
	config := map[string]any{
		"Role": "target", "TaskID": "bench", "RightID": rightOfRun, "ExpiresAt": time.Now().Add(time.Hour),
		"VMUUID": "0", "VMName": "bench", "Cluster": lab.ClusterName, "Peer": "a", "Certificates": files["b"],
		"Host": "127.0.0.1", "FirstPort": tunnelPorts, "LastPort": tunnelPorts + 49,
	}
	if err := w.end(program, filepath.Join(dir, "target"), config); err != nil {
		return nil, errors.Join(err, w.close())
	}
	address, err := os.ReadFile(filepath.Join(dir, "target", "address"))
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	config["Role"], config["Peer"], config["Certificates"], config["Address"] = "source", "b", files["a"], string(address)
	if err := w.end(program, filepath.Join(dir, "source"), config); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, ctx.Err()
}

// end starts one end of a tunnel and waits until it is ready.
func (w *way) end(program, dir string, config map[string]any) error {
	if err := os.MkdirAll(filepath.Join(dir, "io"), 0o700); err != nil {
		return fmt.Errorf("making a tunnel's directory: %w", err)
	}
	data, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing a tunnel's configuration: %w", err)
	}
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	cmd := exec.Command(program, "tunnel", "--dir", dir) //nolint:noctx // it is ended by close
	cmd.ExtraFiles, cmd.Stderr = []*os.File{told}, os.Stderr
	err = cmd.Start()
	_ = told.Close()
	if err != nil {
		return fmt.Errorf("starting a tunnel's end: %w", err)
	}
	w.ends = append(w.ends, cmd)
	if line, err := bufio.NewReader(ready).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("a tunnel's end did not start: %w", err)
	}
	return nil
}

// carry sends so many bytes through, and tells how long it took from connecting
// to the last byte's arrival.
func (w *way) carry(ctx context.Context, n int64) (time.Duration, error) {
	_ = os.Remove(w.out)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", w.out)
	if err != nil {
		return 0, fmt.Errorf("listening where it comes out: %w", err)
	}
	defer func() { _ = l.Close() }()
	came := make(chan error, 1)
	go func() { came <- swallow(l, n) }()
	begun := time.Now()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", w.in)
	if err != nil {
		return 0, fmt.Errorf("connecting where it goes in: %w", err)
	}
	defer func() { _ = c.Close() }()
	piece := make([]byte, tunnelPiece)
	for sent := int64(0); sent < n; sent += tunnelPiece {
		if _, err := c.Write(piece); err != nil {
			return 0, fmt.Errorf("sending: %w", err)
		}
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return 0, fmt.Errorf("ending: %w", err)
	}
	if err := <-came; err != nil {
		return 0, fmt.Errorf("what came out: %w", err)
	}
	return time.Since(begun), nil
}

// swallow takes all that comes over one connection, which must be so much.
func swallow(l net.Listener, want int64) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	buf, got := make([]byte, tunnelPiece), int64(0)
	for {
		n, err := c.Read(buf)
		got += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if got != want {
		return fmt.Errorf("%d bytes of %d", got, want)
	}
	return nil
}

// socatConfig has OpenSSL take the cipher that Go's TLS takes on this machine.
const socatConfig = `openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
`

// throughSocat carries the same through two socats, which take one connection
// each.
func throughSocat(ctx context.Context, dir string, files map[string]certs.Files) (took time.Duration, err error) {
	w := &way{in: filepath.Join(dir, "socat-in"), out: filepath.Join(dir, "socat-out")}
	defer func() {
		if err = errors.Join(err, w.close()); err != nil {
			said, _ := os.ReadFile(filepath.Join(dir, "socat.log"))
			err = fmt.Errorf("%w; socat: %s", err, said)
		}
	}()
	config := filepath.Join(dir, "openssl.cnf")
	if err := os.WriteFile(config, []byte(socatConfig), 0o600); err != nil {
		return 0, fmt.Errorf("writing OpenSSL's configuration: %w", err)
	}
	of := func(node string) string {
		f := files[node]
		return fmt.Sprintf("cert=%s,key=%s,cafile=%s,verify=1", f.Cert, f.Key, f.CA)
	}
	port := fmt.Sprint(tunnelPorts + 60)
	for _, args := range [][]string{
		{"OPENSSL-LISTEN:" + port + ",bind=127.0.0.1,reuseaddr," + of("b"), "UNIX-CONNECT:" + w.out},
		{"UNIX-LISTEN:" + w.in + ",unlink-early", "OPENSSL:127.0.0.1:" + port + ",retry=20,interval=0.05,nodelay,verify=0," + strings.TrimSuffix(of("a"), ",verify=1")},
	} {
		cmd := exec.Command("socat", append([]string{"-u", "-b", "131072"}, args...)...) //nolint:noctx // it is ended by close
		cmd.Env = append(os.Environ(), "OPENSSL_CONF="+config)
		log, err := os.OpenFile(filepath.Join(dir, "socat.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return 0, fmt.Errorf("socat's log: %w", err)
		}
		defer func() { _ = log.Close() }()
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			return 0, fmt.Errorf("starting socat: %w", err)
		}
		w.ends = append(w.ends, cmd)
	}
	ready := func() error {
		for _, path := range []string{"/proc/net/tcp", w.in} {
			if _, err := os.Stat(path); err != nil {
				return err
			}
		}
		return listens(tunnelPorts + 60)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := lab.Eventually(ctx, "both socats listen", ready); err != nil {
		return 0, err
	}
	return w.carry(ctx, tunnelBytes)
}

// listens tells whether something listens on that port of the loopback, without
// connecting to it.
func listens(port int) error {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	if !strings.Contains(string(table), fmt.Sprintf(" 0100007F:%04X 00000000:0000 0A ", port)) {
		return fmt.Errorf("nothing listens on port %d", port)
	}
	return nil
}
