package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/machine"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// The streams are large enough that what is beside them, such as the start of zfs's
// commands, is not what is measured.
const fullMiB, incrementMiB = 512, 128

// took is what one way took to bring a snapshot over: its stream, from zfs send's
// start to zfs receive's end, and all of it.
type took struct{ stream, whole []float64 }

// ways are ours and those that it is compared with, in the order of a turn.
var ways = []string{"ours", "pipe", "syncoid"}

// replications measures a full replication and increments, ours and others in turn.
func (p *pools) replications(ctx context.Context) (err error) {
	s, err := p.syncoid(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.daemon.Kill()) }()
	if err := p.create(ctx, p.from, "", "full", "incr"); err != nil {
		return err
	}
	full, err := p.fulls(ctx, s)
	if err != nil {
		return fmt.Errorf("in full: %w", err)
	}
	incr, err := p.increments(ctx, s)
	if err != nil {
		return fmt.Errorf("increments: %w", err)
	}
	for _, f := range []struct {
		name, what string
		mib        float64
		of         map[string]*took
	}{
		{"replicate_full_vs_pipe", fmt.Sprintf("a file system of %d MiB that does not compress, in full", fullMiB), fullMiB, full},
		{"replicate_incr_vs_pipe", fmt.Sprintf("an increment of %d MiB", incrementMiB), incrementMiB, incr},
	} {
		ours, pipe := f.of["ours"], f.of["pipe"]
		p.b.add(Figure{
			Name: f.name, Value: median(pipe.stream) / median(ours.stream), Goal: 0.9, Better: "higher", Unit: "ratio",
			Detail: fmt.Sprintf("throughput of the stream, from zfs send's start until zfs receive has ended: %s, over TLS %.0f MiB/s ÷ zfs send -L -c -e | socat | TCP | socat | zfs receive -s -u %.0f MiB/s, "+
				"medians of %d each; our whole operation, from the request to its end, %.2f s, of which the stream %.2f s",
				f.what, f.mib/median(ours.stream), f.mib/median(pipe.stream), len(ours.stream), median(ours.whole), median(ours.stream)),
		})
	}
	p.vsSyncoid("replicate_vs_syncoid", 1.5, fmt.Sprintf("%d MiB in full", fullMiB), full)
	p.vsSyncoid("replicate_incr_vs_syncoid", 0, fmt.Sprintf("an increment of %d MiB", incrementMiB), incr)
	return nil
}

func (p *pools) vsSyncoid(name string, goal float64, what string, of map[string]*took) {
	ours, theirs := of["ours"], of["syncoid"]
	p.b.add(Figure{
		Name: name, Value: median(theirs.whole) / median(ours.whole), Goal: goal, Better: "higher", Unit: "ratio",
		Detail: fmt.Sprintf("throughput of the whole, %s: our operation, from the request to its end, %.2f s; syncoid 2.1.0 --no-sync-snap --sendoptions='L c e' --recvoptions=u --compress=none over Debian's ssh, "+
			"from its start to its end, %.2f s; medians of %d and %d", what, median(ours.whole), median(theirs.whole), len(ours.whole), len(theirs.whole)),
	})
}

// inFull is the turns' name where the same snapshot is brought over each time.
const inFull = "full"

// turns brings a snapshot over by each way, there and back again, for the bench's
// rounds after one of warming up.
func (p *pools) turns(ctx context.Context, what string, bring func(ctx context.Context, way string) (stream, whole time.Duration, err error), between func(context.Context) error) (map[string]*took, error) {
	all := map[string]*took{}
	for _, way := range ways {
		all[way] = &took{}
	}
	order := slices.Clone(ways)
	for round := range p.b.rounds + 1 {
		for range min(round+1, 2) { // there and back again
			slices.Reverse(order)
			if err := between(ctx); err != nil {
				return nil, err
			}
			for _, way := range order {
				if way == "syncoid" && what == inFull && round > 0 && len(all[way].whole) == round {
					continue // it takes long: once a round
				}
				stream, took, err := bring(ctx, way)
				if err != nil {
					return nil, fmt.Errorf("round %d, %s: %w", round, way, err)
				}
				p.b.say("%s, round %d, %s: stream %.3f s, whole %.3f s", what, round, way, stream.Seconds(), took.Seconds())
				if round > 0 {
					all[way].stream, all[way].whole = append(all[way].stream, stream.Seconds()), append(all[way].whole, took.Seconds())
				}
			}
		}
	}
	return all, nil
}

// fulls brings the same snapshot over again and again, into nothing.
func (p *pools) fulls(ctx context.Context, s *syncoid) (map[string]*took, error) {
	if err := fill(ctx, p.from, "full", fullMiB); err != nil {
		return nil, err
	}
	if _, err := script(ctx, p.from, "zfs snapshot "+path("full")+"@one"); err != nil {
		return nil, err
	}
	n := 0
	return p.turns(ctx, inFull, func(ctx context.Context, way string) (stream, whole time.Duration, err error) {
		n++
		copied := fmt.Sprintf("full-%s-%d", way, n)
		switch way {
		case "ours":
			var job string
			if job, err = p.job(ctx, "full", copied); err != nil {
				return 0, 0, err
			}
			if stream, whole, err = p.run(ctx, job); err == nil {
				_, err = p.storage.DeleteReplication(ctx, &debvisorv1.JobRef{JobId: job})
			}
		case "pipe":
			stream, err = p.pipe(ctx, "", path("full")+"@one", copied)
			whole = stream
		default:
			whole, err = s.run(ctx, "full", copied)
			stream = whole
		}
		if err == nil {
			_, err = script(ctx, p.to, "zfs destroy -r "+path(copied)+"; zpool sync")
		}
		return stream, whole, err
	}, func(context.Context) error { return nil })
}

// increments brings each of many snapshots over, by each way to a copy of its own.
func (p *pools) increments(ctx context.Context, s *syncoid) (map[string]*took, error) {
	job, err := p.job(ctx, "incr", "incr-ours")
	if err != nil {
		return nil, err
	}
	snapshot := 0
	next := func(ctx context.Context) error {
		snapshot++
		if err := fill(ctx, p.from, "incr", incrementMiB); err != nil {
			return err
		}
		_, err := script(ctx, p.from, fmt.Sprintf("zfs snapshot %s@s%d", path("incr"), snapshot))
		return err
	}
	bring := func(ctx context.Context, way string) (stream, whole time.Duration, err error) {
		switch way {
		case "ours":
			return p.run(ctx, job)
		case "pipe":
			from, to := "", fmt.Sprintf("%s@s%d", path("incr"), snapshot)
			if snapshot > 1 {
				from = fmt.Sprintf("-i @s%d", snapshot-1)
			}
			stream, err = p.pipe(ctx, from, to, "incr-pipe")
			return stream, stream, err
		}
		whole, err = s.run(ctx, "incr", "incr-syncoid")
		return whole, whole, err
	}
	return p.turns(ctx, "increment", bring, next)
}

// job makes a job that sends what snapshots there are.
func (p *pools) job(ctx context.Context, name, copied string) (string, error) {
	job, err := p.storage.PlanZfsReplication(ctx, &debvisorv1.ZfsReplicationPlan{
		Dataset: p.ref(p.from, name), Target: nodeRef(p.to), TargetDataset: p.ref(p.to, copied), Options: &debvisorv1.ReplicationOptions{NoSnapshot: true},
	})
	return job.GetJobId(), err
}

// run runs a job to its end.
func (p *pools) run(ctx context.Context, job string) (stream, whole time.Duration, err error) {
	before, err := os.Stat(p.from.Agent.LogFile())
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	st, err := p.storage.RunZfsReplication(ctx, &debvisorv1.JobRef{JobId: job})
	whole = time.Since(begun)
	if err != nil {
		return 0, 0, err
	}
	if st.GetState() != debvisorv1.ReplicationState_REPL_STATE_SUCCESS {
		return 0, 0, fmt.Errorf("the run ended so: %v", st)
	}
	soon, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = lab.Eventually(soon, "the source's agent has logged its stream", func() (err error) {
		stream, err = streamed(p.from.Agent.LogFile(), before.Size())
		return err
	})
	return stream, whole, err
}

var streamEnd = regexp.MustCompile(`: the target has taken a stream: .* bytes=(\d+) ms=(\d+)`)

// streamed is how long the streams took that the source's agent has logged since
// its log had that size.
func streamed(log string, since int64) (sum time.Duration, err error) {
	raw, err := os.ReadFile(log)
	if err != nil {
		return 0, err
	}
	for _, found := range streamEnd.FindAllSubmatch(raw[since:], -1) {
		ms, err := strconv.Atoi(string(found[2]))
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ms) * time.Millisecond
	}
	if sum == 0 {
		return 0, errors.New("it has not")
	}
	return sum, nil
}

// pipe brings a snapshot over with nothing but zfs and a TCP connection, for which
// the target waits already. It gives the time from zfs send's start to zfs receive's
// end.
func (p *pools) pipe(ctx context.Context, from, snapshot, copied string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	const receive = `set -o pipefail; socat -u -b 131072 TCP-LISTEN:7001,reuseaddr STDOUT | zfs receive -s -u -o readonly=on -o canmount=noauto "$1"`
	var complaint bytes.Buffer
	taking, err := p.to.Machine.Start(ctx, machine.Command{Args: []string{"bash", "-c", receive, "pipe", path(copied)}, Stderr: &complaint})
	if err != nil {
		return 0, err
	}
	defer func() {
		if taking.Alive() {
			_ = taking.Kill(syscall.SIGKILL)
		}
	}()
	err = lab.Eventually(ctx, "the target listens", func() error {
		_, err := script(ctx, p.to, `grep -q ':1B59 00000000:0000 0A ' /proc/net/tcp`)
		return err
	})
	if err != nil {
		return 0, err
	}
	send := "set -o pipefail; echo ready; read -r _; zfs send -L -c -e " + from + ` "$1" | socat -u -b 131072 STDIN TCP:` + p.to.Addr + ":7001,nodelay"
	begun, err := atGo(ctx, p.from, "bash", "-c", send, "pipe", snapshot)
	if err != nil {
		return 0, err
	}
	select {
	case <-taking.Done():
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	took := time.Since(begun)
	if err := taking.Err(); err != nil {
		return 0, fmt.Errorf("the target: %w: %s", err, &complaint)
	}
	return took, nil
}

// atGo runs a command that says something when it is ready, and then waits for a
// line of input. It gives the time of that line.
func atGo(ctx context.Context, n *lab.Node, args ...string) (begun time.Time, err error) {
	input, line := io.Pipe()
	var complaint bytes.Buffer
	ready := starter(func() {
		begun = time.Now()
		go func() { _ = line.CloseWithError(second(line.Write([]byte("\n")))) }()
	})
	err = n.Machine.RunCommand(ctx, machine.Command{Args: args, Stdin: input, Stdout: ready, Stderr: &complaint})
	if err != nil {
		return begun, fmt.Errorf("%w: %s", err, &complaint)
	}
	return begun, nil
}

// starter is a writer that calls itself with what is written first.
type starter func()

// Write takes whatever comes.
func (s starter) Write(p []byte) (int, error) {
	s()
	return len(p), nil
}

func second(_ int, err error) error { return err }
