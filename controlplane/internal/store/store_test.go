package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func value(ctx context.Context, t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	resp, err := c.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestConditions(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	a, b := store.InUseKey("vm/a"), store.InUseKey("vm/b")

	first, err := s.Commit(ctx, store.Change{
		Require: []store.Condition{store.Absent(a)},
		Puts:    []store.Put{store.PutString(a, "op-1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name    string
		require []store.Condition
		broken  string
	}{
		{"present", []store.Condition{store.Absent(b), store.Absent(a)}, a},
		{"changed", []store.Condition{store.Unchanged(a, first-1), store.Absent(b)}, a},
		{"gone", []store.Condition{store.Unchanged(a, first), store.Unchanged(b, first)}, b},
		{"all hold", []store.Condition{store.Unchanged(a, first), store.Absent(b)}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Commit(ctx, store.Change{Require: c.require, Puts: []store.Put{store.PutString(store.VMKey("x"), c.name)}})
			var conflict *store.ConflictError
			switch {
			case c.broken == "" && err != nil:
				t.Fatal(err)
			case c.broken == "":
				return
			case !errors.As(err, &conflict) || conflict.Key != c.broken || !errdefs.Is(err, errdefs.Aborted):
				t.Fatalf("got %v, want a conflict on %s", err, c.broken)
			}
			if got := value(ctx, t, client, store.VMKey("x")); got != "" {
				t.Errorf("a refused change wrote %q", got)
			}
		})
	}
	if _, err := s.Commit(ctx, store.Change{Deletes: []string{a, b}}); err != nil {
		t.Fatal(err)
	}
	if got := value(ctx, t, client, a); got != "" {
		t.Errorf("deleted, yet it holds %q", got)
	}
}

func TestFence(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	key := store.ElectionPrefix() + "/1"
	fence := elect(ctx, t, client, key)
	change := store.Change{
		Fence:   fence,
		Require: []store.Condition{store.Absent(store.VMKey("none"))},
		Puts:    []store.Put{store.PutString(store.VMKey("x"), "by the leader")},
	}
	if _, err := s.Commit(ctx, change); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Change{Fence: fence}); err != nil {
		t.Fatalf("asking whether the fence holds: %v", err)
	}

	refused := func(what string) {
		t.Helper()
		change.Puts = []store.Put{store.PutString(store.VMKey("x"), what)}
		for _, c := range []store.Change{change, {Fence: fence}} {
			if _, err := s.Commit(ctx, c); !errors.Is(err, store.ErrFenced) || !errdefs.Is(err, errdefs.Aborted) {
				t.Errorf("%s: got %v, want ErrFenced", what, err)
			}
		}
		if got := value(ctx, t, client, store.VMKey("x")); got != "by the leader" {
			t.Errorf("%s: the record is %q", what, got)
		}
	}
	put(ctx, t, client, store.EpochKey(), "1")
	refused("another epoch")
	put(ctx, t, client, store.EpochKey(), "0")
	if _, err := client.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	refused("the key is gone")
	elect(ctx, t, client, key)
	refused("the same key of a later leader")
	change.Require = []store.Condition{store.Absent(store.VMKey("x"))}
	refused("a condition fails as well")
}

func elect(ctx context.Context, t *testing.T, c *clientv3.Client, key string) *store.Fence {
	t.Helper()
	resp, err := c.Put(ctx, key, "")
	if err != nil {
		t.Fatal(err)
	}
	return &store.Fence{Key: key, Term: task.Term{Revision: resp.Header.Revision}}
}

func put(ctx context.Context, t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

func TestLimits(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	puts := func(n int) []store.Put {
		list := make([]store.Put, n)
		for i := range list {
			list[i] = store.PutString(store.VMKey(strings.Repeat("v", i+1)), "")
		}
		return list
	}
	record := func(n int) store.Put {
		return store.PutProto(store.OperationKey(strings.Repeat("o", n%1000+1)), &storev1.Operation{Progress: make([]byte, n)})
	}
	conditions := func(n int) (list []store.Condition) {
		for i := range n {
			list = append(list, store.Absent(store.TaskKey(strings.Repeat("t", i+1))))
		}
		return list
	}
	cases := []struct {
		name   string
		change store.Change
		says   string // empty: it is applied
	}{
		{"as many operations and conditions as may be", store.Change{Puts: puts(store.MaxChangeOps)[:700], Require: conditions(600)}, ""},
		{"a thousand deletes", store.Change{Deletes: make1000()}, ""},
		{"one operation more", store.Change{Puts: puts(store.MaxChangeOps), Deletes: []string{"x"}}, "1001"},
		{"one condition more", store.Change{Require: conditions(store.MaxChangeOps + 1)}, "1001"},
		{"a large record", store.Change{Puts: []store.Put{record(store.MaxRecordBytes - 100)}}, ""},
		{"a record too large", store.Change{Puts: []store.Put{record(store.MaxRecordBytes + 1)}}, store.OperationKey("")},
		{"records too large together", store.Change{Puts: []store.Put{record(900_001), record(900_002)}}, "1400000"},
		{"a key twice", store.Change{Puts: puts(1), Deletes: []string{store.VMKey("v")}}, "twice"},
		{"a fence of nobody", store.Change{Fence: &store.Fence{Key: "x"}}, "fence"},
		{"no JSON", store.Change{Puts: []store.Put{store.PutJSON(store.RoleKey("r"), func() {})}}, store.RoleKey("r")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Commit(ctx, c.change)
			if c.says == "" && err != nil {
				t.Fatal(err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("got %v, want an error that says %q", err, c.says)
			}
			if errdefs.Is(err, errdefs.Unavailable) {
				t.Fatalf("%v: a change that can never be applied is Unavailable", err)
			}
		})
	}
}

func make1000() []string {
	keys := make([]string, store.MaxChangeOps)
	for i := range keys {
		keys[i] = store.NodeKey(strings.Repeat("n", i+1))
	}
	return keys
}

func TestUnavailable(t *testing.T) {
	ctx := deadline(t)
	member := storetest.Start(t, storetest.Configs(t, 1)[0])
	s := store.New(member.Client())
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Commit(gone, store.Change{Puts: []store.Put{store.PutString("x", "")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the caller's cancellation", err)
	}
	member.Close()
	_, err := s.Commit(ctx, store.Change{Puts: []store.Put{store.PutString("x", "")}})
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != errdefs.Unavailable || e.RetryAfter == 0 {
		t.Errorf("got %v, want Unavailable with a retry hint", err)
	}
}

func TestPrepareRefusesAnUnknownSchema(t *testing.T) {
	ctx, client := deadline(t), storetest.Client(t)
	s := store.New(client)
	for range 2 {
		if err := s.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := value(ctx, t, client, store.EpochKey()); got != "0" {
		t.Errorf("the epoch is %q", got)
	}
	put(ctx, t, client, store.SchemaKey(), "99")
	if err := s.Prepare(ctx); !errdefs.Is(err, errdefs.FailedPrecondition) || !strings.Contains(err.Error(), "99") {
		t.Errorf("got %v, want FailedPrecondition naming the version", err)
	}
}
