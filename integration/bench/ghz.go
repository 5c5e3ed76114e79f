package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	ghzCallers = 100
	ghzCalls   = 10_000
)

// ghz lets a load generator that is not ours call a replica with an API key.
func (b *bench) ghz(ctx context.Context) (err error) {
	build := exec.CommandContext(ctx, ".ci/ghz-build", "build/tools")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building ghz: %w: %s", err, out)
	}
	dir, err := os.MkdirTemp("", "debvisor-ghz-*")
	if err != nil {
		return fmt.Errorf("a directory for the replica: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r, err := b.startReplica(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	report, err := r.load(ctx)
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "ghz_apikey_ok", Value: float64(report.Statuses["OK"]), Goal: ghzCalls, Better: "higher", Unit: "calls",
		Detail: fmt.Sprintf("ghz -c %d -n %d over TLS on %d connections with an API key against a replica with its etcd: %.0f/s, mean %.1f ms, statuses %v, errors %v",
			ghzCallers, ghzCalls, connections, report.Rate, float64(report.Average)/1e6, report.Statuses, report.Errors),
	})
	return nil
}

// lone is a cluster of one replica on this host.
type lone struct {
	dir, bin, callers string
	cmd               *exec.Cmd
}

// startReplica makes a cluster and waits until it answers.
func (b *bench) startReplica(ctx context.Context, dir string) (*lone, error) {
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	r := &lone{dir: dir, bin: b.bin, callers: ports[0]}
	data := filepath.Join(dir, "data")
	rpcd := filepath.Join(b.bin, "debvisor-rpcd")
	initialise := exec.CommandContext(ctx, rpcd, "init", "--data-dir", data, "--cluster", "bench", "--name", "r1", "--etcd-peer-listen", ports[2])
	if out, err := initialise.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making a cluster: %w: %s", err, out)
	}
	r.cmd = exec.CommandContext(ctx, rpcd, "serve", "--data-dir", data, "--listen", ports[0], "--agents-listen", ports[1],
		"--audit-log", filepath.Join(dir, "audit.log"))
	r.cmd.Env = append(os.Environ(), "RPC_LOG_FILE="+filepath.Join(dir, "rpc.log"), "RPC_LOG_LEVEL=warn")
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a replica: %w", err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err = r.hvctl(ctx, "cluster", "show"); err == nil {
			return r, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("the replica does not answer: %w", err), r.stop())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// freePorts gives addresses that nothing listens on.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	for range n {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer func() { _ = lis.Close() }()
		addresses = append(addresses, lis.Addr().String())
	}
	return addresses, nil
}

// stop ends the replica and waits for its end.
func (r *lone) stop() error {
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("ending the replica: %w", err)
	}
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("the replica's end: %w", err)
	}
	return nil
}

// hvctl runs it as the operator and gives what it prints.
func (r *lone) hvctl(ctx context.Context, args ...string) (string, error) {
	pki := filepath.Join(r.dir, "data", "pki")
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "hvctl"), append([]string{
		"--server", r.callers, "--ca", filepath.Join(pki, "ca.pem"),
		"--cert", filepath.Join(pki, "operator.pem"), "--key", filepath.Join(pki, "operator-key.pem"),
	}, args...)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("hvctl %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// report is what we read of ghz's.
type report struct {
	Average  int64          `json:"average"` // nanoseconds
	Rate     float64        `json:"rps"`
	Errors   map[string]int `json:"errorDistribution"`
	Statuses map[string]int `json:"statusCodeDistribution"`
}

// load makes a service account without a limit and a key for it, and lets ghz
// call with it.
func (r *lone) load(ctx context.Context) (report, error) {
	var key string
	for _, args := range [][]string{
		{"principal", "set", "load", "--type", "service", "--role", "viewer"},
		{"principal", "limit", "load", "--rate", "0"},
		{"key", "create", "load", "--ttl", "1h"},
	} {
		var err error
		if key, err = r.hvctl(ctx, args...); err != nil {
			return report{}, err
		}
	}
	metadata, err := json.Marshal(map[string]string{"authorization": "Bearer " + key})
	if err != nil {
		return report{}, fmt.Errorf("encoding the key: %w", err)
	}
	headers, protoset := filepath.Join(r.dir, "headers.json"), filepath.Join(r.dir, "api.pb")
	if err := os.WriteFile(headers, metadata, 0o600); err != nil {
		return report{}, fmt.Errorf("writing the key: %w", err)
	}
	api, err := descriptors(debvisorv1.File_debvisor_v1_node_proto)
	if err != nil {
		return report{}, err
	}
	if err := os.WriteFile(protoset, api, 0o600); err != nil {
		return report{}, fmt.Errorf("writing the API's description: %w", err)
	}
	cmd := exec.CommandContext(ctx, "build/tools/ghz", "--cacert", filepath.Join(r.dir, "data", "pki", "ca.pem"), "--protoset", protoset,
		"--call", "debvisor.v1.NodeService.ListNodes", "--metadata-file", headers, "--data", "{}", "--connections", fmt.Sprint(connections),
		"-c", fmt.Sprint(ghzCallers), "-n", fmt.Sprint(ghzCalls), "-O", "json", r.callers)
	out, err := cmd.Output()
	if err != nil {
		return report{}, fmt.Errorf("ghz: %w: %s", err, out)
	}
	var result report
	if err := json.Unmarshal(out, &result); err != nil {
		return report{}, fmt.Errorf("reading what ghz reports: %w", err)
	}
	return result, nil
}

// descriptors is a file of the API with all that it imports, as protoc would
// write it.
func descriptors(file protoreflect.FileDescriptor) ([]byte, error) {
	set, seen := &descriptorpb.FileDescriptorSet{}, map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(file)
	data, err := proto.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encoding the API's description: %w", err)
	}
	return data, nil
}
