package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// FuzzQuery holds that a query is read whole or marked, never dropped in part,
// and that what comes of it can be sent.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"last=5&follow=true", "since.seconds=1&events=a&events=b", "last=x", "nothing=1", "since=1", "since.seconds.x=1", "a[b]=c", "principal=%ff", "=", "."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		values, err := parameters(&http.Request{URL: &url.URL{RawQuery: raw}})
		if err != nil {
			return
		}
		given := len(values)
		m := &debvisorv1.AuditQuery{}
		if err := (&query{}).Parse(m, values, utilities.NewDoubleArray(nil)); err != nil {
			t.Fatal(err)
		}
		leftover(m, values)
		if (rpc.Decoded(m) == nil) != (len(values) == 0) && rpc.Decoded(m) == nil {
			t.Errorf("%q: %d of %d parameters are dropped", raw, len(values), given)
		}
		if _, err := proto.Marshal(m); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	})
}

// FuzzBody holds that any body becomes a message that can be sent: what it
// says, or marked as malformed and empty.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{`{}`, ``, ` `, `{"target":{"node_id":{"id":"b"}}}`, `{"options":{"bandwidth_mib":"18446744073709551615"}}`, `{"x":1}`, `[`, `{"vm":null}`, "\xff", `{"allow_downtime":true}{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m := &debvisorv1.VMMigrateSpec{}
		if err := (wire{}).Unmarshal(body, m); err != nil {
			t.Fatal(err)
		}
		if _, err := proto.Marshal(m); err != nil {
			t.Error(err)
		}
		if rpc.Decoded(m) == nil {
			return
		}
		m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			t.Errorf("%q: marked, and %s is set", body, fd.Name())
			return true
		})
	})
}

// FuzzHeaders holds that what is passed on of headers is what gRPC takes.
func FuzzHeaders(f *testing.F) {
	f.Add("Authorization", "Bearer x", "Debvisor-Request-Id", "1")
	f.Add("Debvisor-Wait", "none", "Cookie", "a=b")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Add(name1, value1)
		r.Header.Add(name2, value2)
		md, err := headers(r, rpc.PickTrace(r.Header.Values))
		if err != nil {
			return
		}
		size := 0
		for name, values := range md {
			for _, value := range values {
				size += len(name) + len(value) + headerCost
				for _, c := range []byte(value) {
					if c < ' ' || c > '~' {
						t.Errorf("%s: %q is passed on", name, value)
					}
				}
			}
			switch name {
			case "authorization", "debvisor-request-id", "debvisor-wait", "debvisor-trace-id":
			default:
				t.Errorf("%s is passed on", name)
			}
		}
		if size > rpc.MaxHeaderBytes {
			t.Errorf("%d bytes are passed on", size)
		}
	})
}
