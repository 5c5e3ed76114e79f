package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Host is what a session tells of the agent's host. Its methods answer from
// memory: they wait for nothing.
type Host interface {
	// Health is the host's health now; rtt is the round trip to the leader,
	// 0 while it is not known.
	Health(rtt time.Duration) *debvisorv1.Health
	// Inventory is everything, or what changed since it was last asked: nil
	// when nothing did. The session numbers it.
	Inventory(complete bool) *agentv1.Inventory
	// Changed is sent to when Inventory(false) has something to tell.
	Changed() <-chan struct{}
}

// Trust is what the agent trusts and shows. Its methods wait for the disk at
// most.
type Trust interface {
	// Take takes over what the leader says.
	Take(b *agentv1.TrustBundle)
	// Tell is what the agent trusts and shows now.
	Tell() *agentv1.Trust
	// Changed is sent to when Tell has something else to say.
	Changed() <-chan struct{}
}

// Config is what a session is made of.
type Config struct {
	Node        string
	Version     string
	BootID      string
	PeerAddress string // host:port
	// Servers are the agents' listeners known from enrolment, host:port.
	Servers []string
	// ServersFile keeps the list that replicas tell; it may be missing.
	ServersFile string
	// TLS makes the configuration for dialling a host.
	TLS func(host string) *tls.Config
	// Leaf gives the agent's certificate at present. Once it is another, the
	// session moves to a connection that shows it: no replica serves a session
	// for longer than the certificate lives that it began with. nil: it never
	// changes.
	Leaf func() *x509.Certificate
	Work *worker.Worker
	Host Host
	// Trust may be nil: nothing is taken over.
	Trust Trust
	// Answers answers the leader's questions.
	Answers Answerer
	// Up, when set, is called each time a leader has answered Welcome, and Down
	// each time that the session has ended.
	Up   func(leader string)
	Down func()
	Log  hclog.Logger

	rounds *rounds
}

const (
	// ackTimeout is how long a leader may leave heartbeats unanswered.
	ackTimeout = 8 * time.Second
	// welcomeTimeout is how long a replica may take to answer Hello.
	welcomeTimeout = 5 * time.Second
	minRetry       = 200 * time.Millisecond
	maxRetry       = time.Second
	refusedRetry   = 5 * time.Second
)

// Session is one agent's way to the leader.
type Session struct {
	cfg     Config
	servers *servers
	conns   *conns
}

// New makes a session; nothing is dialled before Run.
func New(cfg Config) *Session {
	if cfg.Leaf == nil {
		cfg.Leaf = func() *x509.Certificate { return nil }
	}
	cfg.rounds = newRounds()
	return &Session{
		cfg:     cfg,
		servers: loadServers(cfg.ServersFile, cfg.Servers, cfg.Log),
		conns:   newConns(cfg.TLS, cfg.Leaf),
	}
}

// Servers are the replicas' listeners for agents, host:port, the likeliest to
// lead first. It is safe for concurrent use.
func (s *Session) Servers() []string { return s.servers.all() }

// Run keeps a session until ctx ends; it then returns nil. Nothing that a
// replica does ends it.
func (s *Session) Run(ctx context.Context) error {
	defer s.conns.closeExcept("")
	wait := minRetry
	var reasons quiet
	for ctx.Err() == nil {
		s.cfg.rounds.mark()
		address := s.servers.next()
		welcomed, err := s.attempt(ctx, address)
		if ctx.Err() != nil {
			return nil
		}
		if welcomed {
			wait = minRetry
		}
		var elsewhere *notLeaderError
		switch {
		case errors.As(err, &elsewhere) && s.servers.follow(elsewhere, address):
			continue // the leader is known: at once
		case errors.Is(err, errRenewed):
			s.cfg.Log.Info("the session moves to a connection with the new certificate", "replica", address)
			continue
		case errors.Is(err, errLeaving):
			s.cfg.Log.Info("the leader resigns: the next one is looked for", "replica", address)
		case errdefs.Is(err, errdefs.AlreadyExists), errdefs.Is(err, errdefs.PermissionDenied):
			s.cfg.Log.Error("session refused", "replica", address, "error", err)
			wait = refusedRetry
		default:
			reasons.say(s.cfg.Log, address, err)
		}
		s.servers.failed(address)
		pause(ctx, jittered(wait, 0.5))
		wait = min(wait*8/5, maxRetry)
	}
	return nil
}

// errRenewed ends a session whose connection shows a certificate that has been
// renewed.
var errRenewed = errors.New("the agent's certificate has been renewed")

// errLeaving ends a session whose leader has said that it resigns.
var errLeaving = errors.New("the leader resigns")

// quietFor is how long a reason that was told is not told again.
const quietFor = 30 * time.Second

// quiet tells each reason for having no session once in a while: replicas are
// asked every second.
type quiet struct {
	reason string
	until  time.Time
}

func (q *quiet) say(log hclog.Logger, replica string, err error) {
	level := hclog.Warn
	if now := time.Now(); err.Error() == q.reason && now.Before(q.until) {
		level = hclog.Debug
	} else {
		q.reason, q.until = err.Error(), now.Add(quietFor)
	}
	log.Log(level, "no session", "replica", replica, "error", err)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// jittered is d, up to that part longer or shorter.
func jittered(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 + part*(2*rand.Float64()-1)))
}
