package machine

import (
	"context"
	"fmt"
	"net"
)

// DialContext opens a connection from inside the machine, for instance to "unix", "/run/libvirt/libvirt-sock", or to a server that
// listens there. It goes over the serial line, so it works without a network and while the machine's is cut, at a few MB/s. It fits
// http.Transport and grpc.WithContextDialer.
func (m *Machine) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	q := newQueue()
	p := &Process{started: make(chan struct{}), done: make(chan struct{}), out: q.put}
	p.machine, p.command = m, Command{Args: []string{network + " " + addr}}
	w, err := m.enlist(p)
	if err == nil {
		err = w.sendJSON(kindDial, p.number, [2]string{network, addr})
	}
	if err == nil {
		select {
		case <-p.started:
		case <-p.done:
			err = p.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s %s in %s: %w", network, addr, m.spec.Name, err)
	}
	go func() {
		<-p.done
		q.put(nil)
	}()
	go func() {
		q.drain(theirs)
		_ = theirs.Close()
	}()
	go func() {
		p.feed(theirs)
		_ = p.signal(0) // closed here: a connection needs no more
	}()
	return ours, nil
}
