package zfs

import (
	"context"
	"maps"
	"strconv"
	"testing"
	"time"
)

// TestTakeAbandoned: a set that nobody waits for any more, as the agent ends, is
// taken whole and with its properties, or not at all: the kernel ends a program
// whose command is killed between any two of its steps, and what has no properties
// would be somebody else's for ever.
func TestTakeAbandoned(t *testing.T) {
	z, dataset := room(t)
	all := []string{PropertyOperation, PropertyLabel, PropertySet, PropertyJob}
	began := time.Now()
	take := func(ctx context.Context, name string, properties map[string]string) {
		_, _ = z.Take(ctx, SnapshotSpec{Datasets: []string{dataset}, Name: name, Properties: properties})
	}
	take(t.Context(), "first", nil)
	takes := time.Since(began)
	for i := range 40 {
		properties := map[string]string{}
		for _, p := range all[:1+i%len(all)] { // they decide in which step it is ended
			properties[p] = "value"
		}
		// When the command is started, in the middle, or when it is nearly done.
		ctx, cancel := context.WithTimeout(t.Context(), takes*time.Duration(20+2*i)/100)
		name := "s" + strconv.Itoa(i)
		take(ctx, name, properties)
		cancel()
		nobodyAbout(t, dataset)
		if !exists(t, dataset+"@"+name) {
			continue
		}
		found, err := z.Get(t.Context(), dataset+"@"+name, all...)
		fine(t, err)
		maps.DeleteFunc(found, func(_ string, p Property) bool { return p.Value == "-" })
		if len(found) != len(properties) {
			t.Errorf("%s has %v, not all of %v", name, found, properties)
		}
	}
}

// TestTakeGivenUp: what its caller has given up while it waited is not taken.
func TestTakeGivenUp(t *testing.T) {
	w := takers{}
	ctx, cancel := context.WithCancel(t.Context())
	begun, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan []*taking, 8)
	take := func(_ string, some []*taking) {
		if begun != nil {
			close(begun)
			begun = nil
			<-goOn
		}
		ended <- some
	}
	first, given, last := &taking{ctx: ctx}, &taking{ctx: ctx}, &taking{ctx: t.Context()}
	started := begun
	w.add("tank", first, take)
	<-started
	w.add("tank", given, take)
	w.add("tank", last, take)
	cancel()
	close(goOn)
	if some := <-ended; len(some) != 1 || some[0] != first {
		t.Errorf("first %v were taken", some)
	}
	if some := <-ended; len(some) != 1 || some[0] != last {
		t.Errorf("then %v were taken", some)
	}
}
