package planner

// Facts is what is known beyond the snapshot.
type Facts interface {
	// CompareCPU tells whether a host can run a guest, by libvirt's own
	// comparison, with what is missing in libvirt's words; known is false where
	// nobody has asked yet.
	CompareCPU(q Question) (compatible bool, detail string, known bool)
}

// Question asks whether the CPU of a host can run a guest. Guest and Host alone
// decide the answer.
type Question struct {
	// Node is whom to ask: one of the nodes that have the host's CPU.
	Node string
	// Guest is the hash of what the guest needs, Host that of the host's CPU:
	// Domain.cpu_hash and NodeCapabilities.cpu_hash.
	Guest, Host string
}

// comparison is an answer of Facts, kept while it is planned with.
type comparison struct {
	compatible, known bool
	detail            string
}

// pair is what an answer depends on.
type pair struct{ guest, host string }

// advice is Facts with the answers that a world or a request had of it.
type advice struct {
	facts Facts
	had   map[pair]comparison
}

func newAdvice(facts Facts) advice { return advice{facts, map[pair]comparison{}} }

// compare asks once for each pair.
func (a advice) compare(m *mover, h *host) comparison {
	key := pair{m.domain.GetCpuHash(), h.caps.GetCpuHash()}
	c, ok := a.had[key]
	if !ok {
		c.compatible, c.detail, c.known = a.facts.CompareCPU(Question{Node: h.id, Guest: key.guest, Host: key.host})
		a.had[key] = c
	}
	return c
}

// processor refuses a node whose CPU cannot run the guest, or has not been
// compared. It is the last filter: only nodes that nothing else speaks against
// are worth a question.
func processor(_ *World, h *host, m *mover, o *objections) {
	if m.advice.facts == nil || m.domain.GetCpuHash() == "" {
		return
	}
	if h.caps.GetCpuHash() == "" {
		o.no(CPUNotCompared, "its CPU is not known yet, so whether it can run VM %s is not either", m.guest.name())
		return
	}
	switch c := m.advice.compare(m, h); {
	case !c.known:
		if o.count == 0 {
			m.ask(h)
		}
		o.no(CPUNotCompared, "whether its CPU can run VM %s has not been compared yet", m.guest.name())
	case !c.compatible:
		o.no(CPUIncompatible, "its CPU (%s) cannot run VM %s: %s", h.caps.GetCpuModel(), m.guest.name(), c.detail)
	}
}

// ask notes a question, once for each kind of host.
func (m *mover) ask(h *host) {
	for _, q := range m.questions {
		if q.Host == h.caps.GetCpuHash() {
			return
		}
	}
	m.questions = append(m.questions, Question{Node: h.id, Guest: m.domain.GetCpuHash(), Host: h.caps.GetCpuHash()})
}
