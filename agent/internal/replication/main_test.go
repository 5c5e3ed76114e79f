package replication

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/machine"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// agentEnv makes this test's binary an agent: a worker with a journal and the real
// kinds, in a process of its own that can be killed at any line.
const agentEnv = "DEBVISOR_TEST_REPLICATION_AGENT"

const cluster = "testing"

func TestMain(m *testing.M) {
	if text := os.Getenv(agentEnv); text != "" {
		if err := runAgent(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	machine.Spread(m, machine.Spec{Name: "replication", MemoryMiB: 1536, Disks: []machine.Disk{{MiB: 4096}, {MiB: 4096}, {MiB: 128}}},
		machine.Wide{Machines: 2, AtOnce: 2, Prepare: pools})
}

// pools makes src, dst, and tiny, which is soon full.
func pools(ctx context.Context, m *machine.Machine) error {
	// Nobody cuts this machine's power: its disks need not be flushed at every step.
	_, err := m.Run(ctx, "sh", "-c", "echo 1 > /sys/module/zfs/parameters/zfs_nocacheflush")
	for disk, pool := range map[string]string{"ubda": "src", "ubdb": "dst", "ubdc": "tiny"} {
		_, made := m.Run(ctx, "zpool", "create", "-f", "-O", "mountpoint=/mnt/"+pool, "-O", "compression=lz4", "-O", "snapdev=visible", pool, "/dev/"+disk)
		err = errors.Join(err, made)
	}
	return err
}

// agentConfig is what an agent's process is told.
type agentConfig struct {
	Node, Dir   string
	Files       certs.Files
	First, Last int
	// DieAt is the failpoint at which it is killed; DieAfter how often it is passed
	// before that.
	DieAt    string
	DieAfter int
	Patience time.Duration
}

// runAgent is an agent's process. Tasks come on its standard input, reports go to
// its standard output.
func runAgent(text string) error {
	var cfg agentConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	log := hclog.New(&hclog.LoggerOptions{Name: cfg.Node, Output: os.Stderr, Level: hclog.Debug})
	reloader, err := certs.NewReloader(cfg.Files, log)
	if err != nil {
		return err
	}
	r := New(Config{
		Freezer: unfrozen{},
		Node:    cfg.Node, Cluster: cluster, ZFS: zfs.New(zfs.Config{Log: log.Named("zfs")}), Certificates: reloader,
		Host: "127.0.0.1", FirstPort: cfg.First, LastPort: cfg.Last, Log: log,
	})
	if cfg.Patience > 0 {
		r.patience = cfg.Patience
	}
	passed := 0
	r.passing = func(point string) {
		if point != cfg.DieAt {
			return
		}
		if passed++; passed > cfg.DieAfter {
			fmt.Fprintln(os.Stderr, "dies at", point)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	w, err := worker.Open(worker.Config{Path: filepath.Join(cfg.Dir, "journal.db"), Kinds: r.Kinds(), Log: log.Named("worker")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		in := bufio.NewScanner(os.Stdin)
		in.Buffer(nil, 16<<20)
		for in.Scan() {
			command(w, in.Text())
		}
	}()
	go tellReports(ctx, w)
	return w.Run(ctx)
}

func command(w *worker.Worker, line string) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "cancel":
		w.Cancel(rest)
	case "accept":
		data, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			panic(err)
		}
		t := &agentv1.Task{}
		if err := proto.Unmarshal(data, t); err != nil {
			panic(err)
		}
		if err := w.Accept(t); err != nil {
			panic(err)
		}
	}
}

func tellReports(ctx context.Context, w *worker.Worker) {
	for {
		reports, next := w.Due()
		for _, r := range reports {
			line, err := protojson.MarshalOptions{}.Marshal(r)
			if err != nil {
				panic(err)
			}
			fmt.Println(string(line))
		}
		wait := time.Second
		if !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			return
		case <-w.Wake():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// unfrozen is for tests that freeze no guest: those are the lab's.
type unfrozen struct{}

func (unfrozen) Frozen(ctx context.Context, order *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	if order != nil {
		return nil, errors.New("nothing freezes here")
	}
	return nil, take(ctx)
}
