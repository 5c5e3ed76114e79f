package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// maxRedirects bounds how often in a row one replica's word for who leads is
// followed without a pause.
const maxRedirects = 2

// notLeaderError is a replica's answer that it does not lead.
type notLeaderError struct {
	leader   string // empty: it knows of none
	replicas []string
}

func (e *notLeaderError) Error() string {
	if e.leader == "" {
		return "the replica does not lead and knows of no leader"
	}
	return "the replica does not lead; the leader is at " + e.leader
}

// servers are the replicas' listeners for agents, the most promising first. It
// is safe for concurrent use; redirects and known are the session's own.
type servers struct {
	mu        sync.Mutex // of order
	path      string
	log       hclog.Logger
	order     []string
	known     []string // as last told, or from the file
	redirects int
}

// loadServers reads the list kept on disk; the given ones are tried after it.
// A file that cannot be read is no reason not to try the others.
func loadServers(path string, given []string, log hclog.Logger) *servers {
	s := &servers{path: path, log: log}
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &s.known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the kept list of replicas cannot be read", "file", path, "error", err)
	}
	s.add(s.known)
	s.add(given)
	return s
}

// add adds what is new, as the least promising.
func (s *servers) add(addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, address := range addresses {
		if !slices.Contains(s.order, address) {
			s.order = append(s.order, address)
		}
	}
}

func (s *servers) next() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		return ""
	}
	return s.order[0]
}

// failed makes the address the last to be tried again.
func (s *servers) failed(address string) {
	s.redirects = 0
	s.last(address)
}

// follow takes a replica's word for who leads; false where that leads nowhere.
func (s *servers) follow(e *notLeaderError, from string) bool {
	s.learn(e.replicas)
	if e.leader == "" || e.leader == from || s.redirects >= maxRedirects {
		return false
	}
	s.last(from)
	s.first(e.leader)
	s.redirects++
	return true
}

// welcomed notes that the address leads.
func (s *servers) welcomed(address string, replicas []string) {
	s.redirects = 0
	s.learn(replicas)
	s.first(address)
}

func (s *servers) last(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.order, address); i >= 0 {
		s.order = append(slices.Delete(s.order, i, i+1), address)
	}
}

// all are the addresses, the most promising first.
func (s *servers) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func (s *servers) first(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = slices.DeleteFunc(s.order, func(a string) bool { return a == address })
	s.order = slices.Insert(s.order, 0, address)
}

// learn adds new replicas and keeps the list on disk when it changed.
func (s *servers) learn(replicas []string) {
	list := slices.Sorted(slices.Values(replicas))
	if len(list) == 0 || slices.Equal(list, s.known) {
		return
	}
	s.add(list)
	s.known = list
	if err := s.save(); err != nil {
		s.log.Warn("the list of replicas cannot be kept", "error", err)
	}
}

func (s *servers) save() error {
	content, err := json.Marshal(s.known)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.path), ".servers-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // there only where the renaming failed
	_, err = tmp.Write(append(content, '\n'))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	return os.Rename(tmp.Name(), s.path)
}
