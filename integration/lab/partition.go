package lab

import (
	"context"
	"errors"
	"fmt"
)

// LinkDown pulls the place's network cable: nothing comes in or goes out, and nobody is told.
func (p *Place) LinkDown(ctx context.Context) error { return p.setLink(ctx, "down") }

// LinkUp plugs it in again.
func (p *Place) LinkUp(ctx context.Context) error { return p.setLink(ctx, "up") }

// setLink changes the bridge's end of the link, so that the place keeps its address and its routes.
func (p *Place) setLink(ctx context.Context, state string) error {
	_, err := p.bridge.Run(ctx, "ip", "link", "set", "to-"+p.Name, state)
	return err
}

// Drop makes two places lose every packet to and from each other, silently: each sends on and hears nothing. Heal ends it.
func Drop(ctx context.Context, a, b *Place) error {
	if a.machine != nil && b.machine != nil {
		return isolate(ctx, "on", a, b)
	}
	return errors.Join(a.rules(ctx, "-I", b), b.rules(ctx, "-I", a))
}

// Heal lets two places hear each other again.
func Heal(ctx context.Context, a, b *Place) error {
	if a.machine != nil && b.machine != nil {
		return isolate(ctx, "off", a, b)
	}
	return errors.Join(a.rules(ctx, "-D", b), b.rules(ctx, "-D", a))
}

// isolate has the bridge pass nothing between machines, whose kernel drops nothing by itself. All that are isolated hear each other
// no more.
func isolate(ctx context.Context, state string, places ...*Place) error {
	var failed []error
	for _, p := range places {
		_, err := p.bridge.Run(ctx, "bridge", "link", "set", "dev", "to-"+p.Name, "isolated", state)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// rules inserts or deletes what drops the packets of another place. The other place's rules are enough where this is a machine.
func (p *Place) rules(ctx context.Context, do string, other *Place) error {
	if p.machine != nil {
		return nil
	}
	for _, rule := range [][]string{{"INPUT", "-s"}, {"OUTPUT", "-d"}} {
		if _, err := p.Run(ctx, "iptables", "-w", do, rule[0], rule[1], other.Addr, "-j", "DROP"); err != nil {
			return fmt.Errorf("between %s and %s: %w", p.Name, other.Name, err)
		}
	}
	return nil
}
