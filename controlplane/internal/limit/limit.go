// Package limit bounds how often each principal calls this replica: a token
// bucket a name, sharded. Who has not called for a while costs no memory, and
// no number of names costs more than a bounded amount of it. Every replica
// counts for itself.
package limit

import (
	"hash/maphash"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// PerMinute is how many calls a minute a principal may make, where nothing else
// is said; as many may come at once.
const PerMinute = 100

const (
	// shards is how many locks the buckets are spread over.
	shards = 64
	// sweepEvery is how often a shard forgets its full buckets.
	sweepEvery = time.Minute
	// maxNames is how many names a limiter counts at once: those beyond it take
	// the places of those that have used the least.
	maxNames = 1 << 16
	// sample is how many names are looked at to find one that has used little.
	sample = 8
)

// Rate is how often a name may call.
type Rate struct {
	// PerMinute is how many calls a minute are allowed; 0: PerMinute.
	PerMinute int
	// Burst is how many may come at once; 0: as many as in a minute.
	Burst int
	// Unlimited lets every call pass, and counts none.
	Unlimited bool
}

func (r Rate) complete() Rate {
	if r.PerMinute <= 0 {
		r.PerMinute = PerMinute
	}
	if r.Burst <= 0 {
		r.Burst = r.PerMinute
	}
	return r
}

// Limiter counts. It is safe for use by many goroutines.
type Limiter struct {
	seed   maphash.Seed
	born   time.Time
	shards [shards]shard
}

type shard struct {
	mu      sync.Mutex
	buckets map[string]bucket
	// swept is when it was looked for full buckets, as a bucket's at.
	swept int64
}

// bucket is how much of its rate a name has used. It holds what was taken and
// not what is left, so that another rate or burst acts at once.
type bucket struct {
	// used is in calls, as of at: nanoseconds since the limiter was made, by the
	// monotonic clock, so that nobody's rate is another where the hour is set.
	used float64
	at   int64
	// perMinute is the rate that used shrinks by until the next call.
	perMinute int
}

// settle lets used shrink until now. A moment before the last changes nothing.
func (b *bucket) settle(now int64) {
	if passed := now - b.at; passed > 0 {
		b.used = max(0, b.used-float64(passed)*float64(b.perMinute)/float64(time.Minute))
	}
	b.at = now
}

// New makes a limiter that has counted nothing.
func New() *Limiter {
	l := &Limiter{seed: maphash.MakeSeed(), born: time.Now()}
	for i := range l.shards {
		l.shards[i].buckets, l.shards[i].swept = map[string]bucket{}, math.MinInt64/2
	}
	return l
}

// Names is how many names are counted at the moment.
func (l *Limiter) Names() int {
	n := 0
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += len(s.buckets)
		s.mu.Unlock()
	}
	return n
}

// Take counts one call of a name at that moment, or refuses it with
// ResourceExhausted, which says when the next one will be allowed. A name's rate
// may differ from call to call: it is the last one that counts.
func (l *Limiter) Take(name string, r Rate, now time.Time) error {
	return l.ask(name, r, now, 1)
}

// Peek tells what Take would, and counts nothing.
func (l *Limiter) Peek(name string, r Rate, now time.Time) error {
	return l.ask(name, r, now, 0)
}

func (l *Limiter) ask(name string, r Rate, now time.Time, take float64) error {
	if r.Unlimited {
		return nil
	}
	r = r.complete()
	s := &l.shards[maphash.String(l.seed, name)%shards]
	if over := s.ask(name, r, now.Sub(l.born), take); over > 0 {
		return refusal(name, r, over)
	}
	return nil
}

// ask gives how many calls too many one more would be; 0: it is allowed.
func (s *shard) ask(name string, r Rate, now time.Duration, take float64) (over float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := int64(now)
	if at-s.swept >= int64(sweepEvery) {
		s.sweep(at)
	}
	b, known := s.buckets[name]
	if known {
		b.settle(at)
	} else {
		b.at = at
	}
	b.perMinute = r.PerMinute
	if over = max(0, b.used+1-float64(r.Burst)); over == 0 {
		b.used += take
	}
	if !known && b.used == 0 {
		return over
	}
	if !known && len(s.buckets) >= maxNames/shards {
		s.makeRoom(at)
	}
	s.buckets[name] = b
	return over
}

// sweep forgets the buckets that are full: a new one would be the same.
func (s *shard) sweep(at int64) {
	s.swept = at
	for name, b := range s.buckets {
		if b.settle(at); b.used == 0 {
			delete(s.buckets, name)
		}
	}
}

// makeRoom forgets the one of some names that has used the least: whoever is at
// its limit stays there, however many names others make up.
func (s *shard) makeRoom(at int64) {
	least, name, seen := math.Inf(1), "", 0
	for n, b := range s.buckets {
		if b.settle(at); b.used < least {
			least, name = b.used, n
		}
		if seen++; seen == sample {
			break
		}
	}
	delete(s.buckets, name)
}

// refusal says when the next call is allowed. It is made for each call of a
// flood, hence without formatting.
func refusal(name string, r Rate, over float64) error {
	wait := time.Duration(math.Ceil(over*60e3/float64(r.PerMinute))) * time.Millisecond
	return (&errdefs.Error{
		Kind: errdefs.ResourceExhausted, Code: "RATE_LIMIT_EXCEEDED",
		Message: name + " has made more than " + strconv.Itoa(r.PerMinute) + " calls a minute (" + strconv.Itoa(r.Burst) +
			" at once); the next one is allowed in " + wait.String(),
	}).With("principal", name).WithRetry(wait)
}
