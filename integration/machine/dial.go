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
	conn, err := m.dial(network, addr, ctx.Done())
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return conn, err
}

// Dial is DialContext for who has no context: it gives up after half a minute.
func (m *Machine) Dial(network, addr string) (net.Conn, error) {
	stop, timer := stopAfter(startLimit)
	defer timer.Stop()
	return m.dial(network, addr, stop)
}

func (m *Machine) dial(network, addr string, stop <-chan struct{}) (net.Conn, error) {
	q := newQueue()
	p := m.newProcess(Command{Args: []string{network + " " + addr}}, q.put)
	if err := p.begin(kindDial, [2]string{network, addr}, stop); err != nil {
		return nil, fmt.Errorf("dial %s %s in %s: %w", network, addr, m.spec.Name, err)
	}
	ours, theirs := net.Pipe()
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
