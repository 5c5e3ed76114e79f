package authn

import (
	"crypto/sha256"
	"sync"
	"time"
)

// generationTokens is how many verified tokens one generation of the cache
// holds; two are kept.
const generationTokens = 4096

// tokenCache holds tokens that were verified, by their SHA-256. It is bounded:
// when the younger generation is full, the older one goes. Only what an issuer
// has signed gets into it.
type tokenCache struct {
	mu             sync.RWMutex
	younger, older map[[sha256.Size]byte]tokenEntry
}

// tokenEntry is good until a moment, and with the keys it was verified with.
type tokenEntry struct {
	caller *Caller
	keys   *keySet
	until  time.Time
}

// get gives the caller of a token that was verified with these keys; nil for
// others.
func (c *tokenCache) get(digest [sha256.Size]byte, keys *keySet, now time.Time) *Caller {
	c.mu.RLock()
	e, ok := c.younger[digest]
	if !ok {
		e, ok = c.older[digest]
	}
	c.mu.RUnlock()
	if !ok || e.keys != keys || !now.Before(e.until) {
		return nil
	}
	return e.caller
}

func (c *tokenCache) put(digest [sha256.Size]byte, e tokenEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.younger == nil || len(c.younger) >= generationTokens {
		c.younger, c.older = make(map[[sha256.Size]byte]tokenEntry), c.younger
	}
	c.younger[digest] = e
}
