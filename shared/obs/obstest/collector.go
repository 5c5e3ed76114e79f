// Package obstest takes the traces of tests, by OTLP/gRPC as any collector does.
package obstest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Collector keeps what it is sent.
type Collector struct {
	coltracepb.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans []*Span
	raw   []byte
}

// Serve takes traces from a listener until stop is called, which waits for the
// end of what is being sent.
func (c *Collector) Serve(listener net.Listener, options ...grpc.ServerOption) (stop func()) {
	server := grpc.NewServer(options...)
	coltracepb.RegisterTraceServiceServer(server, c)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with Stop
	}()
	return func() {
		server.Stop()
		<-served
	}
}

// Span is one span and who sent it: "service" or "service of instance".
type Span struct {
	*tracepb.Span
	From string
}

// ID is the span's id in hex.
func (s *Span) ID() string { return hex.EncodeToString(s.GetSpanId()) }

// Parent is the id of the span above; "" for none.
func (s *Span) Parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

// Trace is the trace's id.
func (s *Span) Trace() string { return hex.EncodeToString(s.GetTraceId()) }

// String is the span's name and who sent it.
func (s *Span) String() string { return fmt.Sprintf("%q of %s", s.GetName(), s.From) }

// Attribute is the text of one of the span's attributes.
func (s *Span) Attribute(key string) string { return attribute(s.GetAttributes(), key) }

func attribute(all []*commonpb.KeyValue, key string) string {
	for _, kv := range all {
		if kv.GetKey() == key {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// Export takes spans.
func (c *Collector) Export(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, raw...)
	for _, r := range req.GetResourceSpans() {
		from := attribute(r.GetResource().GetAttributes(), "service.name")
		if instance := attribute(r.GetResource().GetAttributes(), "service.instance.id"); instance != "" {
			from += " of " + instance
		}
		for _, s := range r.GetScopeSpans() {
			for _, one := range s.GetSpans() {
				c.spans = append(c.spans, &Span{one, from})
			}
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

// All is all that came, as it came.
func (c *Collector) All() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.raw)
}

// Tree is a trace: its spans by their ids.
type Tree map[string]*Span

// Tree gives what came of a trace. That a span came twice is an error unless it was the same twice.
func (c *Collector) Tree(trace string) (Tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := Tree{}
	for _, s := range c.spans {
		if s.Trace() != trace {
			continue
		}
		if other := t[s.ID()]; other != nil {
			if other.GetName() != s.GetName() || other.Parent() != s.Parent() ||
				other.GetStartTimeUnixNano() != s.GetStartTimeUnixNano() || other.GetEndTimeUnixNano() != s.GetEndTimeUnixNano() {
				return t, fmt.Errorf("one id, two spans: %v and %v", other, s)
			}
			continue
		}
		t[s.ID()] = s
	}
	return t, nil
}

// Root is the one span that all others are below; an error: there is another, or one whose parent never came.
func (t Tree) Root() (*Span, error) {
	var root *Span
	for _, s := range t {
		switch {
		case s.Parent() == "" && root == nil:
			root = s
		case s.Parent() == "":
			return nil, fmt.Errorf("two roots: %v and %v", root, s)
		case t[s.Parent()] == nil:
			return nil, fmt.Errorf("%v has a parent that never came\n%s", s, t)
		}
	}
	if root == nil {
		return nil, fmt.Errorf("no root among %d spans", len(t))
	}
	return root, nil
}

// Named gives the only span of a name from somebody.
func (t Tree) Named(name, from string) (*Span, error) {
	var found []*Span
	for _, s := range t {
		if s.GetName() == name && s.From == from {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d spans %q of %s among\n%s", len(found), name, from, t)
	}
	return found[0], nil
}

// Above tells the names of the spans above one, from the root on.
func (t Tree) Above(s *Span) (names []string) {
	for s = t[s.Parent()]; s != nil && len(names) < 20; s = t[s.Parent()] {
		names = append(names, s.GetName())
	}
	slices.Reverse(names)
	return names
}

// String is the tree as people read it.
func (t Tree) String() string {
	var b strings.Builder
	var show func(parent string, depth int)
	show = func(parent string, depth int) {
		var below []*Span
		for _, s := range t {
			if s.Parent() == parent || depth == 0 && t[s.Parent()] == nil {
				below = append(below, s)
			}
		}
		slices.SortFunc(below, func(a, b *Span) int { return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano())) })
		for _, s := range below {
			took := time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano())
			fmt.Fprintf(&b, "%s%v %v %s\n", strings.Repeat("  ", depth), s, took.Round(time.Millisecond), s.GetStatus().GetMessage())
			show(s.ID(), depth+1)
		}
	}
	show("", 0)
	return b.String()
}
