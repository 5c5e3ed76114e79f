package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// asProgram says to a child that it is the program, and no test.
const asProgram = "DEBVISOR_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// serving is a replica in a process of its own, which a service manager of the
// test's listens to.
type serving struct {
	t       *testing.T
	cmd     *exec.Cmd
	manager *net.UnixConn
	ended   chan struct{}
}

// serve starts the replica of a data directory.
func serve(t *testing.T, dir string, args ...string) *serving {
	t.Helper()
	path := filepath.Join(dir, "notify")
	_ = os.Remove(path) // of the one before
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s := &serving{t: t, manager: manager, ended: make(chan struct{})}
	s.cmd = exec.Command(os.Args[0], append([]string{"serve"}, args...)...) //nolint:gosec // this very test; it ends with it
	s.cmd.Env = []string{asProgram + "=1", "NOTIFY_SOCKET=" + path}
	s.cmd.Stderr = t.Output()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // its state tells
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		_ = manager.Close()
	})
	return s
}

// expect waits until the service manager is told something.
func (s *serving) expect(what string) {
	s.t.Helper()
	if err := s.manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	for b := make([]byte, 4096); ; {
		n, err := s.manager.Read(b)
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", what, err)
		}
		if strings.HasPrefix(string(b[:n]), what) {
			return
		}
	}
}

// terminate sends SIGTERM.
func (s *serving) terminate() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Log(err) // it has ended
	}
}

// Who asks a second time does not wait for the call that holds up the end.
func TestASecondSIGTERMEndsItAtOnce(t *testing.T) {
	dir := storetest.Dir(t)
	home := members.Home{Dir: filepath.Join(dir, "d")}
	if _, err := members.Init(home, members.Options{Name: "r1", Cluster: "testing", PeerListen: storetest.FreeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	listen := storetest.FreeAddress(t)
	args := []string{
		"--data-dir", home.Dir, "--listen", listen, "--agents-listen", storetest.FreeAddress(t), "--metrics-listen", "none",
		"--audit-log", filepath.Join(dir, "audit.log"), "--audit-syslog", "none", "--log-file", filepath.Join(dir, "rpcd.log"),
	}
	r := serve(t, dir, args...)
	r.expect("READY=1")
	operator, err := certs.NewReloader(certs.Files{CA: home.Authority().Cert, Cert: home.Operator().Cert, Key: home.Operator().Key}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(listen, operator.ReplicaClient("127.0.0.1"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// Its message never comes: it is at work until the listener's patience ends.
	if _, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, debvisorv1.NodeService_ListNodes_FullMethodName); err != nil {
		t.Fatal(err)
	}
	if _, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil {
		t.Fatal(err) // answered on the same connection: the call before it has come
	}
	r.terminate()
	r.expect("STOPPING=1")
	again := time.NewTicker(50 * time.Millisecond) // it has just begun: the very next one may be taken for the first
	defer again.Stop()
	late := time.After(time.Minute)
	for alive := true; alive; {
		select {
		case <-again.C:
			r.terminate()
		case <-r.ended:
			alive = false
		case <-late:
			t.Fatal("it goes on")
		}
	}
	if status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("it has waited for the call, and ended with %s", r.cmd.ProcessState)
	}

	// What it leaves behind is good to start with, and one SIGTERM ends it well.
	r = serve(t, dir, args...)
	r.expect("READY=1")
	r.terminate()
	<-r.ended
	if !r.cmd.ProcessState.Success() {
		t.Errorf("asked once, it has ended with %s", r.cmd.ProcessState)
	}
}
