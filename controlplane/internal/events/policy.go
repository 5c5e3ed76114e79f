package events

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// policy is what the two kinds of storage policies have in common.
type policy interface {
	proto.Message
	GetChangedAt() *timestamppb.Timestamp
	GetChangedBy() string
	GetRun() *storev1.StoragePolicyRun
}

// policyOf decodes one; nil where there is none, or none can be read.
func policyOf(encoded []byte, into policy) policy {
	if len(encoded) == 0 || proto.Unmarshal(encoded, into) != nil {
		return nil
	}
	return into
}
