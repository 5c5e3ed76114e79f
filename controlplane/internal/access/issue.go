package access

import "github.com/debvisor/debvisor/controlplane/internal/store"

// IssueFor is what must hold, and is changed, for a certificate to be issued to a
// principal: NotFound for one that nothing is said of.
func (w World) IssueFor(principal string) (store.Change, error) {
	if _, err := w.findPrincipal(principal); err != nil {
		return store.Change{}, err
	}
	return *w.begin(), nil
}

// Turn is a change that takes the turn of access changes, and changes nothing
// else.
func (w World) Turn() store.Change { return *w.begin() }
