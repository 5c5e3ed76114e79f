//go:build !ceph_preview

package rbd

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// cluster is never there in a binary that was built without the tags that go-ceph
// needs (see the Makefile): such a build is good for looking at code.
type cluster struct{}

func connect(string, string) (*cluster, hello, error) {
	return nil, hello{}, errdefs.New(errdefs.Unimplemented, CodeNoCeph, "this debvisor-agent was built without Ceph: make build has it")
}

func (*cluster) serve(context.Context, *request) (proto.Message, error) { panic("never connected") }
