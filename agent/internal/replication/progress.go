package replication

import (
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// rateOver is what the rate is measured over.
const rateOver = 5 * time.Second

// progress is how far a run is. It is safe for concurrent use.
type progress struct {
	mu      sync.Mutex
	steps   []*agentv1.ReplicationStep
	at      int    // the step that is being sent, from 0
	before  uint64 // bytes of the steps before it
	done    uint64 // bytes of it
	total   uint64 // bytes that went over in this process
	resumes uint32
	doing   string
	samples []sample
}

type sample struct {
	at    time.Time
	total uint64
}

func (p *progress) start(steps []*agentv1.ReplicationStep) { p.steps = steps }

// phase says what is being done.
func (p *progress) phase(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doing = text
}

// begin begins a step's stream; arrived is what the target has of it already.
func (p *progress) begin(step int, s *agentv1.ReplicationStep, arrived uint64, resumed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.done, p.doing = step, arrived, "sending @"+s.GetTo()
	if resumed {
		p.resumes++
	}
}

// whole says that the target has so many steps.
func (p *progress) whole(steps int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done > 0 {
		p.before += p.done
	} else if steps > 0 {
		p.before += p.steps[steps-1].GetEstimatedBytes() // a former process sent it
	}
	p.at, p.done = steps, 0
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += uint64(n)
	p.total += uint64(n)
}

// sent is how much went over in this process.
func (p *progress) sent() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// now is the progress as it is told.
func (p *progress) now() *agentv1.ReplicateSendProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &agentv1.ReplicateSendProgress{
		Steps: uint32(len(p.steps)), Step: uint32(min(p.at+1, len(p.steps))), BytesDone: p.before + p.done,
		BytesPerSecond: p.rate(time.Now()), Resumes: p.resumes, Phase: p.doing,
	}
	out.BytesTotal = p.before
	for i := p.at; i < len(p.steps); i++ {
		estimate := p.steps[i].GetEstimatedBytes()
		if i == p.at {
			estimate = max(estimate, p.done)
		}
		out.BytesTotal += estimate
	}
	if n := len(p.steps); n > 0 {
		out.Snapshot = p.steps[min(p.at, n-1)].GetTo()
	}
	return out
}

// rate is that of the last seconds, bytes a second.
func (p *progress) rate(now time.Time) uint64 {
	p.samples = append(p.samples, sample{now, p.total})
	for len(p.samples) > 2 && now.Sub(p.samples[0].at) > rateOver {
		p.samples = p.samples[1:]
	}
	first := p.samples[0]
	if past := now.Sub(first.at); past > 0 {
		return uint64(float64(p.total-first.total) / past.Seconds())
	}
	return 0
}
