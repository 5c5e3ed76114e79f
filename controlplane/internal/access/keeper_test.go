package access_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	"github.com/debvisor/debvisor/shared/rpc"
	"github.com/debvisor/debvisor/shared/task"
)

// patience is how long what must happen may take.
const patience = 20 * time.Second

// plainText is the key of the tests. It must be found nowhere afterwards.
const plainText = "hunter2-of-the-ci-system"

// site is a real etcd with what a replica sees of it.
type site struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	view   *store.View
	log    bytes.Buffer
	mu     sync.Mutex
	events []*audit.Event
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, client: storetest.Client(t)}
	s.store, s.view = store.New(s.client), store.NewView(s.client, hclog.NewNullLogger())
	if err := s.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.background(s.view.Run)
	<-s.view.Ready()
	return s
}

// background runs something until the test ends or stop is called.
func (s *site) background(f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	s.t.Cleanup(func() { _ = stop() })
	return stop
}

// Add takes an audit event.
func (s *site) Add(e *audit.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return true
}

// elect begins a term.
func (s *site) elect() *store.Fence {
	s.t.Helper()
	key := store.ElectionPrefix() + "/one"
	resp, err := s.client.Put(s.t.Context(), key, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return &store.Fence{Key: key, Term: task.Term{Revision: resp.Header.Revision}}
}

// depose ends the term.
func (s *site) depose() {
	s.t.Helper()
	if _, err := s.client.Delete(s.t.Context(), store.ElectionPrefix()+"/one"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) keeper(fence *store.Fence) access.Keeper {
	return access.Keeper{
		View: s.view, Store: s.store, Fence: fence, Audit: s,
		Log: hclog.New(&hclog.LoggerOptions{Output: &s.log, Mutex: &s.mu}),
	}
}

// put writes records as etcdctl does, all at once and without conditions, and
// waits until the view has seen them.
func (s *site) put(records ...string) {
	s.t.Helper()
	var puts []clientv3.Op
	for i := 0; i < len(records); i += 2 {
		puts = append(puts, clientv3.OpPut(records[i], records[i+1]))
	}
	resp, err := s.client.Txn(s.t.Context()).Then(puts...).Commit()
	if err == nil {
		err = s.view.Await(s.t.Context(), resp.Header.Revision)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// dump is all that etcd holds now.
func (s *site) dump() map[string]string {
	s.t.Helper()
	resp, err := s.client.Get(s.t.Context(), "\x00", clientv3.WithFromKey())
	if err != nil {
		s.t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = string(kv.Value)
	}
	return all
}

// secret tells where a text stands.
func (s *site) secret(text string) (where []string) {
	s.t.Helper()
	for key, value := range s.dump() {
		if strings.Contains(key+value, text) {
			where = append(where, key)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(s.log.String(), text) {
		where = append(where, "the log")
	}
	for _, e := range s.events {
		if content, err := json.Marshal(e); err != nil || bytes.Contains(content, []byte(text)) {
			where = append(where, "the audit log")
		}
	}
	return where
}

// await waits for a snapshot of which something is true.
func (s *site) await(what string, holds func(*cluster.Snapshot) bool) {
	s.t.Helper()
	timeout := time.After(patience)
	for {
		changed := s.view.Changed()
		if holds(s.view.Current()) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			s.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// settled says that no plain key is left in a snapshot.
func settled(s *cluster.Snapshot) bool {
	for _, e := range s.APIKeys {
		if e.Value.GetPlain() {
			return false
		}
	}
	for _, e := range s.Principals {
		if e.Value.GetPlain() {
			return false
		}
	}
	return true
}

// login tells who bears the text, by a snapshot.
func login(a *authn.Authenticator, s *cluster.Snapshot, text string) string {
	ctx := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{Addr: &net.TCPAddr{}, AuthInfo: &rpc.Peer{}})
	c, _, err := a.Authenticate(metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+text)), s, time.Now())
	if err != nil {
		return ""
	}
	return c.Name
}

func newAuthn() *authn.Authenticator {
	return authn.New(authn.Config{Cluster: "testing", Bearers: authn.NewBearers(authn.BearersConfig{})})
}

var (
	keyOfCI       = store.APIKeyKey("ci-system")
	principalOfCI = store.PrincipalKey("ci-system")
)

// inContract is the principal as the contract has it, with a member that we do
// not know.
func inContract(text string) string {
	return `{"type": "service", "apikey_id": "` + text + `", "permissions": ["storage:snapshot:create", "storage:snapshot:list"], "x-owner": {"team": 7}}`
}

// Whichever of the two records comes first, the key works from the moment that
// both are there, and neither holds it a moment later.
func TestPlainKeysInEveryOrder(t *testing.T) {
	s := newSite(t)
	a := newAuthn()
	s.background(s.keeper(s.elect()).Run)
	orders := map[string][][]string{
		"key first":       {{keyOfCI, plainText}, {principalOfCI, inContract(plainText)}},
		"principal first": {{principalOfCI, inContract(plainText)}, {keyOfCI, plainText}},
		"both at once":    {{keyOfCI, plainText, principalOfCI, inContract(plainText)}},
		"line breaks":     {{keyOfCI, plainText + "\n"}, {principalOfCI, inContract(plainText)}},
		"once more":       {{keyOfCI, plainText, principalOfCI, inContract(plainText)}, {principalOfCI, inContract(plainText)}, {keyOfCI, plainText}},
		"in camel case":   {{keyOfCI, plainText}, {principalOfCI, `{"apikeyId":"` + plainText + `","permissions":["node:list"],"x-owner":{"team":7}}`}},
	}
	for name, steps := range orders {
		if _, err := s.client.Delete(t.Context(), keyOfCI); err != nil {
			t.Fatal(err)
		}
		if _, err := s.client.Delete(t.Context(), principalOfCI); err != nil {
			t.Fatal(err)
		}
		s.await("an empty start", func(c *cluster.Snapshot) bool { return len(c.APIKeys)+len(c.Principals) == 0 })
		for i, step := range steps {
			s.put(step...)
			wait := func(c *cluster.Snapshot) bool {
				_, key := c.APIKeys["ci-system"]
				_, principal := c.Principals["ci-system"]
				if key && principal && login(a, c, plainText) != "ci-system" {
					t.Errorf("%s: both records are there, and the key does not work", name)
				}
				return settled(c) && (i < len(steps)-1 || key && principal)
			}
			s.await(name, wait)
		}
		if where := s.secret(plainText); where != nil {
			t.Errorf("%s: the plain key stands in %v", name, where)
		}
		c := s.view.Current()
		if !c.APIKeys["ci-system"].Value.GetMustRotate() || c.APIKeys["ci-system"].Value.GetSource() != "etcd" {
			t.Errorf("%s: the key's record is %v", name, c.APIKeys["ci-system"].Value)
		}
		if content := s.dump()[principalOfCI]; !strings.Contains(content, `"x-owner":{"team":7}`) ||
			!strings.Contains(content, `"apikey_id":"`+store.HashKey(plainText)+`"`) || strings.Contains(content, "apikeyId") {
			t.Errorf("%s: the principal's record is now %s", name, content)
		}
		if got := c.Principals["ci-system"].Value; len(got.GetPermissions()) == 0 {
			t.Errorf("%s: permissions were lost: %v", name, got)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) == 0 || s.events[0].Principal != "system:access" || !strings.Contains(s.log.String(), "rotate it") {
		t.Errorf("audited %d times, logged %q", len(s.events), s.log.String())
	}
}

// One record alone is cleared, too; and what merely looks like a plain key is
// left as it is.
func TestPlainKeysAlone(t *testing.T) {
	s := newSite(t)
	s.background(s.keeper(s.elect()).Run)
	hexText := "0123456789abcdef" // looks like a key's id
	kept := map[string]string{
		store.PrincipalKey("by-id"):   `{"apikey_id":"fedcba9876543210"}`,
		store.PrincipalKey("by-hash"): `{"apikey_id":"` + store.HashKey("other") + `"}`,
		store.PrincipalKey("none"):    `{}`,
		store.PrincipalKey("broken"):  `{"apikey_id":7}`,
		store.APIKeyKey("hashed"):     `{"sha256":"` + strings.TrimPrefix(store.HashKey("other"), "sha256:") + `","plain":true}`,
	}
	for key, value := range kept {
		s.put(key, value)
	}
	s.put(store.PrincipalKey("alone"), inContract(plainText))
	s.put(store.APIKeyKey("alone-too"), plainText+"-2")
	s.put(store.PrincipalKey("hex"), inContract(hexText))
	s.put(store.APIKeyKey("hex-key"), hexText)
	// A key that we made, in plain text in a principal's record only.
	s.put(store.APIKeyKey("made"), `{"sha256":"`+strings.TrimPrefix(store.HashKey(plainText+"-3"), "sha256:")+`","principal":"ci","x-note":1}`,
		store.PrincipalKey("careless"), inContract(plainText+"-3"))
	s.await("all are cleared", func(c *cluster.Snapshot) bool {
		return settled(c) && len(c.APIKeys) == 4 && c.APIKeys["made"].Value.GetMustRotate() &&
			c.Principals["hex"].Value.GetApikeyId() == store.HashKey(hexText)
	})
	for _, text := range []string{plainText, hexText} {
		if where := s.secret(text); where != nil {
			t.Errorf("the plain key stands in %v", where)
		}
	}
	now := s.dump()
	for key, value := range kept {
		if now[key] != value {
			t.Errorf("%s is now %s", key, now[key])
		}
	}
	if content := now[store.APIKeyKey("made")]; !strings.Contains(content, `"x-note":1`) || !strings.Contains(content, `"must_rotate":true`) {
		t.Errorf("the key's record is now %s", content)
	}
	if got := login(newAuthn(), s.view.Current(), hexText); got != "hex" {
		t.Errorf("the key of hex digits is taken for %q's", got)
	}
}

// mortal is a store whose owner dies before or after a change is made.
type mortal struct {
	*store.Store
	before, after func()
}

func (m *mortal) Commit(ctx context.Context, c store.Change) (int64, error) {
	if m.before != nil {
		m.before()
	}
	revision, err := m.Store.Commit(ctx, c)
	if m.after != nil {
		m.after()
		return 0, errors.New("nobody is left to hear the answer")
	}
	return revision, err
}

// A leader that dies at any moment leaves both records as they were, or both
// with the hash; the next one finishes.
func TestLeaderDiesWhileReplacing(t *testing.T) {
	for name, before := range map[string]bool{"before the change": true, "after the change": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			a := newAuthn()
			died := make(chan struct{})
			die := sync.OnceFunc(func() {
				s.depose()
				close(died)
			})
			first := s.keeper(s.elect())
			m := &mortal{Store: s.store}
			if before {
				m.before = die
			} else {
				m.after = die
			}
			first.Store = m
			ended := make(chan error, 1)
			stop := s.background(func(ctx context.Context) error {
				err := first.Run(ctx)
				ended <- err
				return err
			})
			s.put(keyOfCI, plainText, principalOfCI, inContract(plainText))
			<-died
			if !before {
				_ = stop() // it heard no answer, and would go on asking
			} else if err := <-ended; !errors.Is(err, store.ErrFenced) {
				t.Errorf("the leader that is none any more ended with %v", err)
			}
			all := s.dump()
			inKey, inPrincipal := strings.Contains(all[keyOfCI], plainText), strings.Contains(all[principalOfCI], plainText)
			if inKey != before || inPrincipal != before {
				t.Errorf("after its death: in the key's record %v, in the principal's %v", inKey, inPrincipal)
			}
			s.background(s.keeper(s.elect()).Run)
			s.await("the next leader finishes", func(c *cluster.Snapshot) bool {
				return settled(c) && len(c.APIKeys) == 1 && login(a, c, plainText) == "ci-system"
			})
			if where := s.secret(plainText); where != nil {
				t.Errorf("the plain key stands in %v", where)
			}
		})
	}
}

// A principal that is written anew while its key is replaced is not overwritten
// with what it was.
func TestReplacingDoesNotOverwrite(t *testing.T) {
	s := newSite(t)
	var once sync.Once
	k := s.keeper(s.elect())
	k.Store = &mortal{Store: s.store, before: func() {
		once.Do(func() { s.put(principalOfCI, inContract("another-"+plainText)) })
	}}
	s.background(k.Run)
	s.put(keyOfCI, plainText, principalOfCI, inContract(plainText))
	s.await("both texts are replaced", func(c *cluster.Snapshot) bool {
		return settled(c) && c.Principals["ci-system"].Value.GetApikeyId() == store.HashKey("another-"+plainText) &&
			c.APIKeys["ci-system"].Value.GetMustRotate()
	})
	if where := s.secret(plainText); where != nil {
		t.Errorf("the plain key stands in %v", where)
	}
}
