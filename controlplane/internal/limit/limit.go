// Package limit bounds how often each principal calls this replica: a token
// bucket a name, sharded, with full ones forgotten. Every replica counts for
// itself.
package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// PerMinute is how many calls a minute a principal may make, where nothing else
// is said; as many may come at once.
const PerMinute = 100

// shards is how many locks the buckets are spread over.
const shards = 16

// sweepEvery is how often a shard forgets its full buckets.
const sweepEvery = time.Minute

// Config says how many calls a minute are allowed.
type Config struct {
	// PerMinute is everybody's; 0: PerMinute.
	PerMinute int
	// Principals has those who have another.
	Principals map[string]int
}

// Limiter counts. It is safe for use by many goroutines.
type Limiter struct {
	config Config
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu      sync.Mutex
	buckets map[string]*rate.Limiter
	swept   time.Time
}

// New makes a limiter whose buckets are all full.
func New(cfg Config) *Limiter {
	if cfg.PerMinute <= 0 {
		cfg.PerMinute = PerMinute
	}
	l := &Limiter{config: cfg, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].buckets = map[string]*rate.Limiter{}
	}
	return l
}

// Take counts one call of a name at that moment, or refuses it with
// ResourceExhausted, which says when the next one will be allowed.
func (l *Limiter) Take(name string, now time.Time) error {
	bucket := l.bucket(name, now)
	if bucket.AllowN(now, 1) {
		return nil
	}
	return l.refusal(name, bucket, now)
}

// Peek tells what Take would, and counts nothing.
func (l *Limiter) Peek(name string, now time.Time) error {
	bucket := l.bucket(name, now)
	if bucket.TokensAt(now) >= 1 {
		return nil
	}
	return l.refusal(name, bucket, now)
}

func (l *Limiter) refusal(name string, bucket *rate.Limiter, now time.Time) error {
	perMinute := l.perMinute(name)
	missing := 1 - bucket.TokensAt(now)
	wait := time.Duration(missing * float64(time.Minute) / float64(perMinute)).Round(time.Millisecond)
	return errdefs.New(errdefs.ResourceExhausted, "RATE_LIMIT_EXCEEDED",
		"%s has made more than %d calls a minute; the next one is allowed in %s", name, perMinute, wait).
		With("principal", name).WithRetry(max(wait, time.Millisecond))
}

func (l *Limiter) perMinute(name string) int {
	if n, ok := l.config.Principals[name]; ok && n > 0 {
		return n
	}
	return l.config.PerMinute
}

func (l *Limiter) bucket(name string, now time.Time) *rate.Limiter {
	s := &l.shards[maphash.String(l.seed, name)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.swept) >= sweepEvery {
		s.sweep(now)
	}
	b, ok := s.buckets[name]
	if !ok {
		n := l.perMinute(name)
		b = rate.NewLimiter(rate.Limit(float64(n)/60), n)
		s.buckets[name] = b
	}
	return b
}

// sweep forgets the buckets that are full: a new one would be the same.
func (s *shard) sweep(now time.Time) {
	s.swept = now
	for name, b := range s.buckets {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(s.buckets, name)
		}
	}
}
