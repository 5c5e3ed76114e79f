package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestReload gives a replica and an agent a configuration file, and changes it under them with SIGHUP while calls go through
// the replica and its agents' sessions stand: a broken file changes nothing, a good one what it can, and no call fails.
func TestReload(t *testing.T) {
	c := plain.use(t)
	a, _ := c.follower()
	r, agent := a.replica, c.Nodes[0].Agent
	write := func(path, content string) {
		t.Helper()
		c.must(os.WriteFile(path, []byte(content), 0o644))
	}
	rpcd, agentd := filepath.Join(c.Dir, "reload-rpcd.yaml"), filepath.Join(c.Dir, "reload-agent.yaml")
	write(rpcd, "rate_limit: 0\nlog_level: debug\n")
	write(agentd, "log_level: info\n")
	c.restartWith(r, agent, rpcd, agentd)
	log, audit, agentLog := c.mark(r.LogFile()), c.mark(r.Audit()), c.mark(agent.LogFile())
	pids := []int{r.Process.Pid, agent.Process.Pid}
	hangUp := func() { t.Helper(); c.must(errors.Join(r.Process.HangUp(), agent.Process.HangUp())) }

	calls := c.callAllTheTime(c.api(r))
	t.Log("a broken file")
	write(rpcd, "rate_limit: 1\nlog_levl: error\nlisten: nowhere\n")
	write(agentd, "log_level: chatty\n")
	hangUp()
	log.says("the configuration is refused", rpcd+":2", "log_levl", "did you mean log_level?")
	audit.says(`"config_refused"`, rpcd+":2")
	agentLog.says("the configuration is refused", agentd+":1: log_level: ", "chatty", "is not accepted")
	calls.pass(c, 200)

	t.Log("a good one")
	write(rpcd, "rate_limit: 0\nlog_level: info\nlog_format: json\ngateway_listen: 127.0.0.1:9\n")
	write(agentd, "log_level: debug\nlog_format: json\nceph_user: other\n")
	c.must(os.Rename(r.LogFile(), r.LogFile()+".1"))
	rotated := c.log(r.LogFile() + ".1")
	hangUp()
	audit.says(`"config_changed"`, `key=log_level old=\"debug\" new=\"info\"`, `"reason":"applied"`)
	log = c.log(r.LogFile())
	log.says(`"@message":"the configuration has changed"`, `"key":"log_format"`)
	log.says("reload ended: all was taken over")
	agentLog.says(`"@message":"the configuration has changed, which needs a restart"`, `"key":"ceph_user"`, `"old":"debvisor"`, `"new":"other"`)
	agentLog.says(`"@level":"debug"`)
	calls.pass(c, 200)
	if lines := log.lines(`"@level":"debug"`); len(lines) > 0 {
		t.Errorf("at the level info the log has %q", lines[0])
	}
	if lines := rotated.lines("the configuration has changed"); len(lines) > 0 {
		t.Errorf("after the rotation the old file got %q", lines[0])
	}
	// --gateway-listen of the lab comes before the file's.
	if lines := audit.lines("key=gateway_listen"); len(lines) > 0 {
		t.Errorf("what a flag says has been changed by the file: %s", lines[0])
	}
	calls.end(c)

	t.Log("a limit")
	write(rpcd, "rate_limit: 1\n")
	c.must(r.Process.HangUp())
	c.eventually(10*time.Second, "calls are limited", func() error {
		if _, err := a.nodes.ListNodes(c.within(time.Second), &debvisorv1.Empty{}); status.Code(err) != codes.ResourceExhausted {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	write(rpcd, "rate_limit: 0\n")
	c.must(r.Process.HangUp())
	c.eventually(10*time.Second, "calls are not limited any more", func() error {
		_, err := a.nodes.ListNodes(c.within(time.Second), &debvisorv1.Empty{})
		return err
	})
	if now := []int{r.Process.Pid, agent.Process.Pid}; !slices.Equal(now, pids) || !r.Process.Alive() || !agent.Process.Alive() {
		t.Errorf("processes %v are %v", pids, now)
	}
	audit.says(`"config_changed"`, `key=log_format old=\"json\" new=\"text\"`)
	c.hvctl(r, "audit", "verify")
}

// restartWith has a replica and an agent run with configuration files until the test ends; what these are to say is taken from
// the command line and the environment.
func (c *cluster) restartWith(r *lab.Replica, agent *lab.Agent, rpcd, agentd string) {
	c.t.Helper()
	restart := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own may have ended
		defer cancel()
		return errors.Join(r.Process.Terminate(ctx), agent.Process.Terminate(ctx), r.Start(), agent.Start(), r.Serving(ctx), c.whole(ctx))
	}
	args, env, agentEnv := r.Args, r.Env, agent.Env
	i := slices.Index(args, "--rate-limit")
	if i < 0 {
		c.t.Fatalf("the lab's replicas are told no limit: %v", args)
	}
	c.t.Cleanup(func() {
		r.Args, r.Env, agent.Env = args, env, agentEnv
		if err := restart(); err != nil {
			c.t.Error(err)
		}
	})
	r.Args = slices.Concat(args[:i], args[i+2:], []string{"--config", rpcd})
	r.Env = append(slices.Clone(env), "RPC_LOG_LEVEL=")
	agent.Env = append(slices.Clone(agentEnv), "DEBVISOR_AGENT_CONFIG="+agentd)
	c.must(restart())
}

// caller calls a replica all the time.
type caller struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	made   int
	failed []error
}

func (c *cluster) callAllTheTime(a *api) *caller {
	ctx, cancel := context.WithCancel(c.t.Context())
	l := &caller{stop: cancel}
	c.t.Cleanup(cancel)
	for range 4 {
		l.done.Go(func() {
			for ctx.Err() == nil {
				_, err := a.nodes.ListNodes(ctx, &debvisorv1.Empty{})
				if ctx.Err() != nil {
					return
				}
				l.mu.Lock()
				if l.made++; err != nil {
					l.failed = append(l.failed, err)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// pass waits for so many calls from now on.
func (l *caller) pass(c *cluster, n int) {
	c.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.made
	}
	from := count()
	c.eventually(20*time.Second, fmt.Sprintf("%d more calls", n), func() error {
		if made := count() - from; made < n {
			return fmt.Errorf("%d were made", made)
		}
		return nil
	})
}

// end stops calling and tells of calls that failed.
func (l *caller) end(c *cluster) {
	c.t.Helper()
	l.stop()
	l.done.Wait()
	c.t.Logf("%d calls while the configuration changed, %d failed", l.made, len(l.failed))
	if len(l.failed) > 0 {
		c.t.Errorf("%d of %d calls failed, first with %v", len(l.failed), l.made, l.failed[0])
	}
}
