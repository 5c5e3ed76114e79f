// Package run runs the components of a daemon as one group. Each is a
// Run(ctx) error; the first that returns stops the group, and components are
// stopped in the reverse order of their addition, one after another, so that
// what was started first is there for all that came after.
package run

import (
	"context"
	"errors"
	"fmt"
)

// Group is a set of components. Its zero value is ready.
type Group struct {
	members []member
}

type member struct {
	name string
	run  func(context.Context) error
}

// Add adds a component under a name that errors are told with. A component
// must return soon after its context ends.
func (g *Group) Add(name string, run func(context.Context) error) {
	g.members = append(g.members, member{name, run})
}

// Run starts all components and returns when all have returned: because ctx
// ended, which is no error, or because one returned before, in which case its
// error (or that it ended by itself) is returned with what stopping the others
// brought to light.
func (g *Group) Run(ctx context.Context) error {
	type end struct {
		index int
		err   error
	}
	ends := make(chan end, len(g.members))
	stops := make([]context.CancelFunc, len(g.members))
	base := context.WithoutCancel(ctx)
	for i, m := range g.members {
		memberCtx, cancel := context.WithCancel(base)
		stops[i] = cancel
		go func() { ends <- end{i, m.run(memberCtx)} }()
	}
	done := make([]bool, len(g.members))
	var errs []error
	note := func(e end, early bool) {
		done[e.index] = true
		name := g.members[e.index].name
		switch {
		case e.err != nil && !errors.Is(e.err, context.Canceled):
			errs = append(errs, fmt.Errorf("%s: %w", name, e.err))
		case early:
			errs = append(errs, fmt.Errorf("%s: ended by itself", name))
		}
	}
	if len(g.members) > 0 {
		select {
		case <-ctx.Done():
		case e := <-ends:
			note(e, ctx.Err() == nil)
		}
	}
	for i := len(g.members) - 1; i >= 0; i-- {
		stops[i]()
		for !done[i] {
			note(<-ends, false)
		}
	}
	return errors.Join(errs...)
}
