package run

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestStopsInReverseOrderOnceEachHasReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var stopped []string
		var g Group
		for _, name := range []string{"store", "election", "api"} {
			g.Add(name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // virtual: a component that takes its time
				mu.Lock()
				defer mu.Unlock()
				stopped = append(stopped, name)
				return ctx.Err()
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := g.Run(ctx); err != nil {
			t.Errorf("an ordinary stop is an error: %v", err)
		}
		if want := []string{"api", "election", "store"}; !slices.Equal(stopped, want) {
			t.Errorf("stopped %v, want %v", stopped, want)
		}
	})
}

func TestFirstFailureStopsAll(t *testing.T) {
	var g Group
	boom := errors.New("boom")
	ended := false
	g.Add("store", func(ctx context.Context) error { <-ctx.Done(); ended = true; return nil })
	g.Add("api", func(context.Context) error { return boom })
	err := g.Run(t.Context())
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "api: ") {
		t.Errorf("got %v, want the failure under its component's name", err)
	}
	if !ended {
		t.Error("Run returned before the others had")
	}
}

func TestEndingByItselfIsAFailure(t *testing.T) {
	var g Group
	g.Add("store", func(ctx context.Context) error { <-ctx.Done(); return nil })
	g.Add("api", func(context.Context) error { return nil })
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "api: ended by itself") {
		t.Errorf("got %v", err)
	}
}
