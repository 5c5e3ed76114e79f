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
