package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// eventsOf are what a replica tells of what followed a cursor until now, and the place after that.
func (c *cluster) eventsOf(r *lab.Replica, filter *debvisorv1.EventFilter) (all []*debvisorv1.Event, cursor string) {
	c.t.Helper()
	conn, err := c.Dial(r)
	c.must(err)
	defer func() { _ = conn.Close() }()
	filter.UntilNow, filter.Bookmarks = true, true
	stream, err := debvisorv1.NewEventServiceClient(conn).Watch(c.within(30*time.Second), filter)
	c.must(err)
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, cursor
		}
		c.must(err)
		if cursor = e.GetCursor(); e.GetKind() != "cursor" {
			all = append(all, e)
		}
	}
}

// printedEvents are the lines of JSON that hvctl has printed.
func printedEvents(path string) (cursors []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		var e struct{ Cursor, Kind string }
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "\n") {
			continue // what it says to people, or has not said whole yet
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		cursors = append(cursors, e.Cursor+" "+e.Kind)
	}
	return cursors, nil
}

// TestEvents has hvctl follow what happens at a replica that is killed while a node's cordon changes all the time: it goes on at
// another, nothing is lost and nothing comes twice. What has happened is asked of etcd.
func TestEvents(t *testing.T) {
	c := plain.use(t)
	victim, rest := c.Replicas[1], c.others(c.Replicas[1])
	_, begin := c.eventsOf(rest[0], &debvisorv1.EventFilter{})
	log := filepath.Join(t.TempDir(), "events")
	env := append(c.HvctlEnv(victim), "HVCTL_SERVER="+strings.Join([]string{victim.Callers(), rest[0].Callers(), rest[1].Callers()}, ","))
	follower, err := c.Operator.Start(lab.Command{
		Name: "hvctl events", Args: []string{c.Program("hvctl"), "events", "--follow", "--after", begin, "-o", "json"}, Env: env, Log: log,
	})
	c.must(err)
	t.Cleanup(func() { _ = follower.Kill() })

	node := c.Nodes[0].Name
	version := func() int64 {
		got, err := c.etcd(rest[0]).Get(c.within(10*time.Second), keyPrefix+"nodes/"+node)
		c.must(err)
		return got.Kvs[0].Version
	}
	before := version()
	flips := 0
	flip := func(many int) {
		for range many {
			c.eventually(30*time.Second, "node "+node+" changes", func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				a := c.api(rest[flips%2])
				if flips%2 == 0 {
					_, err := a.nodes.CordonNode(ctx, &debvisorv1.CordonRequest{Node: nodeNamed(c.Nodes[0])})
					return err
				}
				_, err := a.nodes.UncordonNode(ctx, nodeNamed(c.Nodes[0]))
				return err
			})
			flips++
		}
	}
	flip(6)
	c.eventually(20*time.Second, "hvctl tells something", func() error {
		if cursors, err := printedEvents(log); err != nil || len(cursors) < 6 {
			return fmt.Errorf("%d events, %w", len(cursors), err)
		}
		return nil
	})
	c.must(victim.Kill())
	killed := time.Now()
	flip(10)
	c.must(victim.Start())
	c.must(victim.Serving(c.within(time.Minute)))
	flip(6)

	want, _ := c.eventsOf(rest[1], &debvisorv1.EventFilter{After: begin})
	var cursors []string
	cordons := 0
	for _, e := range want {
		cursors = append(cursors, e.GetCursor()+" "+e.GetKind())
		if (e.GetKind() == "node.cordoned" || e.GetKind() == "node.uncordoned") && e.GetResources()[0] == "node/"+node && e.GetOperationId() != "" {
			cordons++
		}
	}
	if changes := int(version() - before); cordons != changes || changes != flips {
		t.Errorf("%d events of %d changes, of which %d were asked for", cordons, changes, flips)
	}
	c.eventually(30*time.Second, "hvctl has told all of it", func() error {
		got, err := printedEvents(log)
		if err != nil || len(got) < len(cursors) {
			return fmt.Errorf("%d of %d events, %w", len(got), len(cursors), err)
		}
		if got = got[:len(cursors)]; !slices.Equal(got, cursors) {
			t.Fatalf("hvctl tells\n%v\nwhat happened is\n%v", got, cursors)
		}
		return nil
	})
	t.Logf("%d events, %v after its replica was killed hvctl had told all", len(cursors), time.Since(killed).Round(time.Millisecond))
	for _, r := range c.Replicas {
		again, _ := c.eventsOf(r, &debvisorv1.EventFilter{After: begin})
		for i, e := range again[:min(len(again), len(cursors))] {
			if got := e.GetCursor() + " " + e.GetKind(); got != cursors[i] {
				t.Errorf("replica %s tells %s in the place of %s", r.Name, got, cursors[i])
			}
		}
	}
	c.eventsEndWithTheirReplica(rest[0])
}

// eventsEndWithTheirReplica sees that a replica that is told to stop says so to who watches, with where to go on.
func (c *cluster) eventsEndWithTheirReplica(r *lab.Replica) {
	c.t.Helper()
	conn, err := c.Dial(r)
	c.must(err)
	defer func() { _ = conn.Close() }()
	stream, err := debvisorv1.NewEventServiceClient(conn).Watch(c.within(time.Minute), &debvisorv1.EventFilter{Bookmarks: true})
	c.must(err)
	_, err = stream.Header()
	c.must(err)
	c.must(r.Process.Terminate(c.within(time.Minute)))
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "goes on at another") {
		c.t.Errorf("the watch ended with %v", err)
	}
	c.must(r.Start())
	c.must(r.Serving(c.within(time.Minute)))
}
