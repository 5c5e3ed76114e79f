package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// libvirt's own driver for tests has one running domain, in each process that
// connects to it.
const (
	testURI = "test:///default"
	testVM  = "6695eb01-f6a4-8304-79aa-97f2502e193f"
)

// TestMain is the child process too, and an agent that is about to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "freeze" {
		if err := Main(os.Args[2:]); err != nil {
			hclog.Default().Error("child", "error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv("FREEZE_TEST_AGENT"); dir != "" {
		f := New(Config{Dir: dir, LibvirtURI: testURI, Command: []string{os.Args[0], "freeze"}, Log: hclog.NewNullLogger()})
		_, _ = f.Frozen(context.Background(), order(time.Minute, true), func(ctx context.Context) error {
			_, _ = os.Stdout.WriteString("frozen\n")
			<-ctx.Done()
			return ctx.Err()
		})
		os.Exit(3) // it was to be killed before
	}
	os.Exit(m.Run())
}

func order(budget time.Duration, required bool) *agentv1.Freeze {
	return &agentv1.Freeze{VmUuid: testVM, VmName: "test", BudgetMs: uint32(budget.Milliseconds()), Required: required}
}

func freezer(t *testing.T, uri string) (*Freezer, *hypervisor.Hypervisor) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	hv := hypervisor.New(hypervisor.Config{URI: testURI, Log: hclog.NewNullLogger()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = hv.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := hv.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return New(Config{Dir: t.TempDir(), LibvirtURI: uri, Command: []string{exe, "freeze"}, Thaw: hv, Log: hclog.NewNullLogger()}), hv
}

func TestAFreezeLastsAsLongAsTheSnapshots(t *testing.T) {
	f, _ := freezer(t, testURI)
	taken := 0
	got, err := f.Frozen(t.Context(), order(20*time.Second, true), func(context.Context) error {
		if left, err := f.marks.all(); err != nil || len(left) != 1 || left[0].VM != testVM || left[0].Name != "test" {
			t.Errorf("while it is frozen the marks are %v, %v", left, err)
		}
		taken++
		return nil
	})
	if err != nil || !got.GetFrozen() || got.GetFilesystems() == 0 || got.GetReason() != "" || taken != 1 {
		t.Fatalf("outcome %v, %v; taken %d times", got, err, taken)
	}
	noMarks(t, f)
}

func TestAFreezeThatIsUsedUp(t *testing.T) {
	for _, required := range []bool{true, false} {
		f, _ := freezer(t, testURI)
		var cause error
		got, err := f.Frozen(t.Context(), order(200*time.Millisecond, required), func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil // it had just been done
		})
		if got.GetFrozen() || !strings.Contains(got.GetReason(), "budget") || !strings.Contains(cause.Error(), "budget") {
			t.Errorf("required %v: outcome %v, cause %v", required, got, cause)
		}
		if required != (err != nil) || required && errdefs.Of(err).Code != CodeExpired {
			t.Errorf("required %v: %v", required, err)
		}
		noMarks(t, f)
	}
}

func TestWhatTheSnapshotsSayIsTold(t *testing.T) {
	f, _ := freezer(t, testURI)
	full := errors.New("the pool is full")
	if _, err := f.Frozen(t.Context(), order(20*time.Second, true), func(context.Context) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	noMarks(t, f)
	if got, err := f.Frozen(t.Context(), nil, func(context.Context) error { return full }); got != nil || !errors.Is(err, full) {
		t.Errorf("without a freeze: %v, %v", got, err)
	}
}

func TestAGuestThatCannotBeFrozen(t *testing.T) {
	for name, c := range map[string]struct {
		uri, vm, code string
	}{
		"no libvirt": {"test:///nowhere", testVM, "LIBVIRT_UNAVAILABLE"},
		"no such VM": {testURI, "00000000-0000-4000-8000-000000000001", "VM_NOT_FOUND"},
	} {
		for _, required := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, required %v", name, required), func(t *testing.T) {
				t.Parallel()
				f, _ := freezer(t, c.uri)
				o, taken := order(2*time.Second, required), 0
				o.VmUuid = c.vm
				got, err := f.Frozen(t.Context(), o, func(context.Context) error { taken++; return nil })
				if got.GetFrozen() || got.GetReason() == "" {
					t.Errorf("outcome %v", got)
				}
				if required && (taken != 0 || errdefs.Of(err).Code != c.code) || !required && (taken != 1 || err != nil) {
					t.Errorf("%v, taken %d times", err, taken)
				}
				noMarks(t, f)
			})
		}
	}
}

// TestWhoeverHoldsAFreezeIsKilled: the agent thaws, and does not call the
// snapshots what they are not.
func TestWhoeverHoldsAFreezeIsKilled(t *testing.T) {
	f, hv := freezer(t, testURI)
	// A budget of its own, by which its child is known: those of earlier tests may still be ending.
	got, err := f.Frozen(t.Context(), order(21*time.Second, true), func(context.Context) error {
		kids := children(t, os.Getpid(), f.cfg.Command[0], "21s")
		if len(kids) != 1 {
			t.Fatalf("children %v", kids)
		}
		return syscall.Kill(kids[0], syscall.SIGKILL)
	})
	if got.GetFrozen() || errdefs.Of(err).Code != CodeExpired {
		t.Fatalf("outcome %v, %v", got, err)
	}
	if left, err := f.marks.all(); err != nil || len(left) != 1 {
		t.Fatalf("marks %v, %v", left, err)
	}
	// As it would be in one libvirtd: the driver's domain here is another one.
	if err := hv.FreezeGuest(t.Context(), testVM); err != nil {
		t.Fatal(err)
	}
	again := New(f.cfg) // the agent's next start
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- again.Run(ctx) }()
	eventually(t, "the mark goes with the thaw", func() bool { left, _ := f.marks.all(); return len(left) == 0 })
	// The driver refuses a second freeze of a frozen guest.
	if err := hv.FreezeGuest(t.Context(), testVM); err != nil {
		t.Errorf("the guest was not thawed: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTheAgentIsKilled: the child thaws and is gone, long before the budget.
func TestTheAgentIsKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FREEZE_TEST_AGENT="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 7)
	if _, err := out.Read(line); err != nil || string(line) != "frozen\n" {
		t.Fatalf("%q, %v", line, err)
	}
	kids := children(t, cmd.Process.Pid, os.Args[0], "1m0s")
	if len(kids) != 1 {
		t.Fatalf("children %v", kids)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the child is gone", func() bool { return !alive(kids[0]) })
	if left, err := (marks{filepath.Join(dir, "freeze")}).all(); err != nil || len(left) != 1 {
		t.Errorf("marks %v, %v: the next start is to look for itself", left, err)
	}
}

func TestAMarkThatWasCutShort(t *testing.T) {
	m := marks{t.TempDir()}
	if err := os.WriteFile(m.path(testVM), []byte(`{"vm":"66`), 0o600); err != nil {
		t.Fatal(err)
	}
	if left, err := m.all(); err != nil || len(left) != 1 || left[0].VM != testVM {
		t.Errorf("marks %v, %v", left, err)
	}
}

func noMarks(t *testing.T, f *Freezer) {
	t.Helper()
	if left, err := f.marks.all(); err != nil || len(left) != 0 {
		t.Errorf("marks stay: %v, %v", left, err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// children are the processes of that program and budget that the process has started.
func children(t *testing.T, parent int, program, budget string) (found []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if fields[1] == strconv.Itoa(parent) && strings.HasPrefix(string(line), program+"\x00freeze\x00") && strings.HasSuffix(string(line), "\x00"+budget+"\x00") {
			found = append(found, pid)
		}
	}
	return found
}

// alive tells whether a process runs; one that nobody has waited for does not.
func alive(pid int) bool {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && len(line) > 0
}
