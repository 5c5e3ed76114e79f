package gateway

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"sigs.k8s.io/yaml"

	_ "github.com/debvisor/debvisor/proto/debvisor/agent/v1" // has services that must have no path
)

// rule is a rule of http.yaml.
type rule struct {
	Selector, Body         string
	Get, Put, Post, Delete string
}

func (r rule) path() (method, path string) {
	for method, path := range map[string]string{"get": r.Get, "put": r.Put, "post": r.Post, "delete": r.Delete} {
		if path != "" {
			return method, path
		}
	}
	return "", ""
}

func rules(t *testing.T) map[string]rule {
	t.Helper()
	raw, err := os.ReadFile("../../../proto/debvisor/v1/http.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		HTTP struct{ Rules []rule } `json:"http"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	all := map[string]rule{}
	for _, r := range file.HTTP.Rules {
		if _, twice := all[r.Selector]; twice {
			t.Errorf("%s has two rules", r.Selector)
		}
		all[r.Selector] = r
	}
	return all
}

// TestEveryRPCHasAPath asks the descriptors: a new RPC of a public service needs
// a rule in http.yaml, and an agent's must have none.
func TestEveryRPCHasAPath(t *testing.T) {
	all, seen := rules(t), map[string]string{}
	var doc struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	checked := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				r, ok := all[string(m.FullName())]
				delete(all, string(m.FullName()))
				if public := file.Package() == "debvisor.v1"; ok != public {
					t.Errorf("%s: has a path: %t, is public: %t", m.FullName(), ok, public)
					continue
				} else if !public {
					continue
				}
				checked++
				method, path := r.path()
				if other, taken := seen[method+path]; taken {
					t.Errorf("%s and %s share a path", m.FullName(), other)
				}
				seen[method+path] = string(m.FullName())
				checkRule(t, m, r)
				if got := doc.Paths[path][method].OperationID; got != string(service.Name())+"_"+string(m.Name()) {
					t.Errorf("the OpenAPI document has %q for %s %s of %s", got, method, path, m.FullName())
				}
			}
		}
		return true
	})
	for selector := range all {
		t.Errorf("%s has a path and is no RPC", selector)
	}
	if checked < 60 {
		t.Errorf("%d RPCs only", checked)
	}
}

// checkRule holds the rules that all paths follow.
func checkRule(t *testing.T, m protoreflect.MethodDescriptor, r rule) {
	t.Helper()
	method, path := r.path()
	if !regexp.MustCompile(`^/v1(/[a-z-]+|/\{[a-z_.]+\})+(:[a-z-]+)?$`).MatchString(path) {
		t.Errorf("%s: path %q", m.FullName(), path)
	}
	reads := strings.HasPrefix(string(m.Name()), "List") || strings.HasPrefix(string(m.Name()), "Get") ||
		slices.Contains([]string{"Watch", "WatchOperation", "WhoAmI", "CheckAccess", "SearchAudit", "VerifyAudit"}, string(m.Name()))
	if reads != (method == "get") {
		t.Errorf("%s is a %s", m.FullName(), method)
	}
	if wantsBody := method == "post" || method == "put"; wantsBody != (r.Body == "*") || r.Body != "*" && r.Body != "" {
		t.Errorf("%s is a %s with the body %q", m.FullName(), method, r.Body)
	}
	for _, match := range regexp.MustCompile(`\{([^}]*)\}`).FindAllStringSubmatch(path, -1) {
		if !isField(m.Input(), strings.Split(match[1], ".")) {
			t.Errorf("%s: %s is no field of %s", m.FullName(), match[1], m.Input().FullName())
		}
	}
	if m.IsStreamingClient() {
		t.Errorf("%s: a client's stream has no path", m.FullName())
	}
}
