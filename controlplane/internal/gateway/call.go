package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// call is what a request becomes on its way into the gRPC server.
type call struct {
	from *connection
	tls  *tls.ConnectionState
	// metadata is all that is passed on of the request's headers.
	metadata metadata.MD
	// form has the query's parameters that no field has taken yet.
	form url.Values
}

// request is what the runtime sees of a request: of its headers what tells of
// the body, so that none has a meaning to the runtime that it has not to us.
func (k *call) request(r *http.Request) *http.Request {
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, k))
	r.Form = k.form
	url := *r.URL
	url.RawPath = url.EscapedPath() // else the runtime unescapes what is unescaped
	r.URL = &url
	h := http.Header{}
	for _, name := range []string{"Content-Type", "Content-Encoding"} {
		if values := r.Header.Values(name); len(values) > 0 {
			h[name] = values
		}
	}
	r.Header = h
	return r
}

type callKey struct{}

// into is the connection that the generated handlers call: for each request
// that of its own caller. It passes on what the call says and nothing that the
// runtime would add.
type into struct{}

func (into) of(ctx context.Context) (*call, *grpc.ClientConn, context.Context, error) {
	k, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return nil, nil, nil, errdefs.New(errdefs.Internal, "INTERNAL", "the request has no connection of its own")
	}
	client, err := k.from.open(k.tls)
	if err != nil {
		return nil, nil, nil, errdefs.New(errdefs.Unavailable, "STOPPING", "the connection is closing").WithCause(err)
	}
	return k, client, metadata.NewOutgoingContext(ctx, k.metadata), nil
}

// Invoke makes a unary call.
func (i into) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	k, client, ctx, err := i.of(ctx)
	if err != nil {
		return err
	}
	leftover(args, k.form)
	return client.Invoke(ctx, method, args, reply, opts...)
}

// NewStream begins a server's stream.
func (i into) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	k, client, ctx, err := i.of(ctx)
	if err != nil {
		return nil, err
	}
	output, err := outputOf(method)
	if err != nil {
		return nil, err
	}
	s, err := client.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &stream{ClientStream: s, call: k, output: output}, nil
}

// outputOf gives the type of a method's answers.
func outputOf(method string) (protoreflect.MessageType, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "INTERNAL", "%s is no method", method).WithCause(err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, errdefs.New(errdefs.Internal, "INTERNAL", "%s is no method", method)
	}
	return protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
}

// stream waits for its first message before it gives the header: so an error
// before it becomes an answer with that error's status, and not a line of one
// that began with 200.
type stream struct {
	grpc.ClientStream
	call   *call
	output protoreflect.MessageType
	first  proto.Message
	ended  bool
}

// SendMsg sends the request.
func (s *stream) SendMsg(m any) error {
	leftover(m, s.call.form)
	return s.ClientStream.SendMsg(m)
}

// Header waits for the first message and gives the header.
func (s *stream) Header() (metadata.MD, error) {
	first := s.output.New().Interface()
	err := s.ClientStream.RecvMsg(first)
	switch {
	case errors.Is(err, io.EOF):
		s.ended = true
	case err != nil:
		return nil, err
	default:
		s.first = first
	}
	return s.ClientStream.Header()
}

// RecvMsg gives the next message.
func (s *stream) RecvMsg(m any) error {
	if s.ended {
		return io.EOF
	}
	if s.first == nil {
		return s.ClientStream.RecvMsg(m)
	}
	into, ok := m.(proto.Message)
	if !ok {
		return errdefs.New(errdefs.Internal, "INTERNAL", "no message is a %T", m)
	}
	proto.Merge(into, s.first)
	s.first = nil
	return nil
}
