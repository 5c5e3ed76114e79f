package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// auditEvery is how soon what a child has refused is in the agent's log.
	auditEvery = time.Second
	// maxAudit bounds what a child writes down of refusals: who keeps knocking
	// does not fill the host's memory.
	maxAudit = 1 << 20
)

// Refusal is something that the target's end of a tunnel did not let in.
type Refusal struct {
	At time.Time `json:"at"`
	// VM is the right's VM, Peer the node that the right lets in. Remote is who
	// it was: its address, and its certificate's name once that was verified.
	VM, Peer, Remote string
	// Program and Procedure are libvirt's numbers; 0 where the connection itself
	// was refused.
	Program, Procedure uint32
	Reason             string
}

// refuse writes a refusal down for the agent, whose log outlives the tunnel.
func (e *end) refuse(remote string, err error) {
	r := Refusal{At: time.Now(), VM: e.cfg.VMUUID, Peer: e.cfg.Peer, Remote: remote, Reason: err.Error()}
	var call *refusal
	if errors.As(err, &call) {
		r.Program, r.Procedure = call.program, call.procedure
	}
	if len(r.Reason) > 1<<10 {
		r.Reason = r.Reason[:1<<10]
	}
	if err := appendRefusal(e.layout.refused(), r); err != nil {
		e.log.Error("a refusal could not be written down", "error", err)
	}
}

func appendRefusal(path string, r Refusal) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if at, err := f.Stat(); err != nil || at.Size() > maxAudit {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return err
}

// Refusals are what the target's end has not let in, oldest first.
func (t *Tunnel) Refusals() []Refusal {
	data, err := os.ReadFile(t.layout.refused())
	if err != nil {
		return nil
	}
	var out []Refusal
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var r Refusal
		if json.Unmarshal(lines.Bytes(), &r) == nil {
			out = append(out, r)
		}
	}
	return out
}

// audit logs the refusals that have not been logged yet, whichever process of
// the agent it is; the lock keeps two from logging the same.
func (t *Tunnel) audit() {
	f, err := os.Open(t.layout.refused())
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return
	}
	all := t.Refusals()
	told, _ := strconv.Atoi(readFile(t.layout.audited()))
	if told >= len(all) {
		return
	}
	for _, r := range all[told:] {
		logRefusal(t.log, r)
	}
	if err := writeFile(t.layout.audited(), strconv.Itoa(len(all))); err != nil {
		t.log.Warn("refusals will be logged again", "error", err)
	}
}

func logRefusal(log hclog.Logger, r Refusal) {
	log.Error("a tunnel refused its peer", "event", "tunnel_refused", "vm", r.VM, "peer", r.Peer, "remote", r.Remote,
		"program", fmt.Sprintf("%#x", r.Program), "procedure", r.Procedure, "reason", r.Reason, "at", r.At.Format(time.RFC3339Nano))
}

// Watch logs what the ends on this host refuse, until ctx ends.
func (t *Tunnels) Watch(ctx context.Context) error {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		root := filepath.Dir(t.Find("").layout.dir)
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Log.Warn("tunnels cannot be watched", "error", err)
		}
		for _, entry := range entries {
			(&Tunnel{layout: layout{filepath.Join(root, entry.Name())}, log: t.Log}).audit()
		}
	}
}
