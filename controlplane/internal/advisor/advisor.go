// Package advisor keeps what only libvirt can say and the planner needs to know:
// whether a guest's CPU can run on a host. It asks the host's own agent, through
// the leader's sessions, and remembers the verdict by the hashes of both
// descriptions, which stand for all that it depends on.
//
// It promises that asking is bounded in number, at once and in time; that two
// who ask the same share one question; and that a node which cannot answer is
// not asked the same again for some seconds. It never guesses: what it was not
// told it does not know.
package advisor

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// maxVerdicts bounds what is remembered: 100 kinds of guest on 100 kinds of
	// host.
	maxVerdicts = 10_000
	// maxQuestions bounds what one Learn asks, atOnce how many at a time.
	maxQuestions = 256
	atOnce       = 16
	// learnFor is how long one Learn may take.
	learnFor = 3 * time.Second
	// failedFor is how long a question that got no answer is not asked again.
	failedFor = 2 * time.Second
	// maxDetail bounds what is kept of libvirt's words, bytes.
	maxDetail = 512
)

// Asker puts a question to a node's agent (dispatch.Dispatch).
type Asker interface {
	Ask(ctx context.Context, node string, q *agentv1.Ask) (*agentv1.Answer, error)
}

// Descriptions gives CPU descriptions by their hash (inventory.Inventory).
type Descriptions interface {
	CPU(hash string) (description *agentv1.CPUDescription, ok bool)
}

// Advisor implements planner.Facts. It is safe for concurrent use.
type Advisor struct {
	asker        Asker
	descriptions Descriptions
	log          hclog.Logger

	mu       sync.Mutex
	verdicts map[pair]verdict
	asking   map[pair]chan struct{} // closed when the question has ended
	failed   map[pair]time.Time
}

// pair names a guest's CPU and a host's by their hashes.
type pair struct{ guest, host string }

// verdict is what a host's libvirt said.
type verdict struct {
	compatible bool
	detail     string
}

// New makes an advisor that knows nothing yet.
func New(asker Asker, descriptions Descriptions, log hclog.Logger) *Advisor {
	return &Advisor{
		asker: asker, descriptions: descriptions, log: log,
		verdicts: map[pair]verdict{}, asking: map[pair]chan struct{}{}, failed: map[pair]time.Time{},
	}
}

// CompareCPU tells what is known of a guest's CPU on a host: known is false
// where the host's libvirt was not asked yet. Detail is libvirt's reason against.
func (a *Advisor) CompareCPU(q planner.Question) (compatible bool, detail string, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, known := a.verdicts[pair{q.Guest, q.Host}]
	return v.compatible, v.detail, known
}

// Learn asks what the planner did not know, for 3 s at most, and tells whether
// anything was learned: then it is worth planning again. That some node cannot
// answer is logged and no error.
func (a *Advisor) Learn(ctx context.Context, questions []planner.Question) (learned bool) {
	ctx, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	answers := make(chan bool, maxQuestions)
	asked := map[pair]bool{}
	for _, q := range questions {
		p := pair{q.Guest, q.Host}
		if asked[p] || len(asked) == maxQuestions {
			continue
		}
		asked[p] = true
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				answers <- a.learn(ctx, q)
				<-slots
			case <-ctx.Done():
			}
		})
	}
	wg.Wait()
	close(answers)
	for answer := range answers {
		learned = learned || answer
	}
	return learned
}

// learn gets one answer: it is there already, somebody else asks for it just
// now, or it is asked for.
func (a *Advisor) learn(ctx context.Context, q planner.Question) bool {
	p := pair{q.Guest, q.Host}
	a.mu.Lock()
	_, known := a.verdicts[p]
	other := a.asking[p]
	switch {
	case known:
		a.mu.Unlock()
		return true
	case other != nil:
		a.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
		}
		_, _, known = a.CompareCPU(q)
		return known
	case time.Since(a.failed[p]) < failedFor && !a.failed[p].IsZero():
		a.mu.Unlock()
		return false
	}
	done := make(chan struct{})
	a.asking[p] = done
	a.mu.Unlock()
	v, err := a.ask(ctx, q)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.asking, p)
	close(done)
	if err != nil {
		a.log.Warn("a node does not say whether a CPU suits it", "node", q.Node, "guest", q.Guest, "host", q.Host, "error", err)
		a.fail(p)
		return false
	}
	delete(a.failed, p)
	a.remember(p, v)
	return true
}

// fail notes when a question got no answer, and forgets such notes that are
// without meaning by now. Callers hold mu.
func (a *Advisor) fail(p pair) {
	now := time.Now()
	for other, at := range a.failed {
		if now.Sub(at) >= failedFor {
			delete(a.failed, other)
		}
	}
	a.failed[p] = now
}

// remember keeps a verdict, in the place of any other where there are too many.
// Callers hold mu.
func (a *Advisor) remember(p pair, v verdict) {
	if len(a.verdicts) >= maxVerdicts {
		for other := range a.verdicts {
			delete(a.verdicts, other)
			break
		}
	}
	a.verdicts[p] = v
}
