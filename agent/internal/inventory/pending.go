package inventory

import "sync"

// maxPending bounds what waits for a look; more is the same as everything.
const maxPending = 256

// pending are the domains to look at. It is safe for concurrent use.
type pending struct {
	mu    *sync.Mutex
	uuids map[string]struct{}
	bell  chan struct{}
}

func newPending() pending {
	return pending{mu: &sync.Mutex{}, uuids: map[string]struct{}{}, bell: make(chan struct{}, 1)}
}

// add has the domain ("": everything) looked at. It never waits.
func (p pending) add(uuid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.uuids) >= maxPending {
		clear(p.uuids)
		uuid = ""
	}
	p.uuids[uuid] = struct{}{}
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

func (p pending) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	uuids := make([]string, 0, len(p.uuids))
	for uuid := range p.uuids {
		uuids = append(uuids, uuid)
	}
	clear(p.uuids)
	return uuids
}
