package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// tenMiB is what goes over in one stream.
const tenMiB = 10 << 10

// memory measures how much the agents grow while 10 GiB go from one to the other.
// The source has them as clones of one file of blocks that are alike and not
// compressed, and the target's pool compresses: all of it goes over the wire, and
// next to nothing is on either's disk.
func (p *pools) memory(ctx context.Context) error {
	if err := p.create(ctx, p.from, "-o compression=off -o recordsize=1M", "ten"); err != nil {
		return err
	}
	const write = `cd "$1"; head -c 256M <(yes 'what is sent as it is on disk') >0 || true; zpool sync
for ((i=1; i<$2; i++)); do cp --reflink=always 0 $i; done; zfs snapshot "${1#/}@all"`
	if _, err := script(ctx, p.from, write, "/"+path("ten"), fmt.Sprint(tenMiB/256)); err != nil {
		return err
	}
	machines := []*lab.Node{p.from, p.to}
	for _, n := range machines {
		if err := errors.Join(n.Agent.Process.Terminate(ctx), n.Agent.Start()); err != nil {
			return fmt.Errorf("starting the agent of %s anew: %w", n.Name, err)
		}
	}
	var job string
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := lab.Eventually(soon, "the agents answer", func() (err error) {
		job, err = p.job(ctx, "ten", "ten")
		return err
	})
	if err != nil {
		return err
	}
	begun := time.Now()
	before, most, err := p.growth(ctx, machines, func() error {
		stream, _, err := p.run(ctx, job)
		if err == nil {
			p.b.say("10 GiB in %.0f s, %.0f MiB/s", stream.Seconds(), tenMiB/stream.Seconds())
		}
		return err
	})
	if err != nil {
		return err
	}
	took := time.Since(begun)
	st, err := p.storage.GetReplicationStatus(ctx, &debvisorv1.JobRef{JobId: job})
	if err != nil {
		return err
	}
	if st.GetBytesTransferred() < tenMiB<<20 {
		return fmt.Errorf("%d bytes went over, not %d", st.GetBytesTransferred(), tenMiB<<20)
	}
	p.b.add(Figure{
		Name: "agent_stream_rss_growth_mb", Value: max(most[0]-before[0], most[1]-before[1]), Goal: 16, Better: "lower", Unit: "MiB",
		Detail: fmt.Sprintf("of the agent that grew more, while %.1f GiB went from one to the other within %.0f s: the source's from %.1f to %.1f MiB at most, the target's from %.1f to %.1f; "+
			"resident memory looked at four times a second, both agents started anew and asked for the plan before",
			float64(st.GetBytesTransferred())/(1<<30), took.Seconds(), before[0], most[0], before[1], most[1]),
	})
	return nil
}

// growth is the resident memory of the machines' agents before something, and the
// most that they had while it went on, MiB.
func (p *pools) growth(ctx context.Context, machines []*lab.Node, during func() error) (before, most []float64, err error) {
	before, most = make([]float64, len(machines)), make([]float64, len(machines))
	failed := make([]error, len(machines))
	for i, n := range machines {
		if before[i], err = residentIn(ctx, n); err != nil {
			return nil, nil, err
		}
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i, n := range machines {
		group.Go(func() {
			for tick := time.NewTicker(250 * time.Millisecond); ; {
				now, err := residentIn(ctx, n)
				if err != nil {
					failed[i] = err
					return
				}
				most[i] = max(most[i], now)
				select {
				case <-stop:
					tick.Stop()
					return
				case <-tick.C:
				}
			}
		})
	}
	err = during()
	close(stop)
	group.Wait()
	return before, most, errors.Join(append(failed, err)...)
}

// residentIn is the resident memory of a machine's agent, MiB.
func residentIn(ctx context.Context, n *lab.Node) (float64, error) {
	out, err := n.Run(ctx, "sed", "-n", `s/^VmRSS:[^0-9]*\([0-9]*\) kB$/\1/p`, fmt.Sprintf("/proc/%d/status", n.Agent.Process.Pid))
	if err != nil {
		return 0, err
	}
	kb, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	return kb / 1024, err
}
