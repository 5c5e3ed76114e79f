package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// ReadyHandler answers whether the replica is ready: 200 or 503, with the
// reasons as lines of text, or as a Report in JSON for who accepts that.
func (s *Source) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		report := s.Ready()
		status := http.StatusOK
		if !report.Ready {
			status = http.StatusServiceUnavailable
		}
		if strings.Contains(r.Header.Get("Accept"), "application/json") {
			body, err := json.Marshal(report)
			if err != nil { // it holds texts only
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			answer(w, status, "application/json", string(body))
			return
		}
		var text strings.Builder
		text.WriteString("ready")
		if !report.Ready {
			text.Reset()
			text.WriteString("not ready")
		}
		for _, reason := range report.Reasons {
			fmt.Fprintf(&text, "\n%s: %s", reason.Check, reason.Message)
		}
		answer(w, status, "text/plain; charset=utf-8", text.String())
	})
}

// AliveHandler answers whether the process does its work, by the same look that
// feeds the service manager's watchdog.
func AliveHandler(alive func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := alive(); err != nil {
			answer(w, http.StatusServiceUnavailable, "text/plain; charset=utf-8", err.Error())
			return
		}
		answer(w, http.StatusOK, "text/plain; charset=utf-8", "ok")
	})
}

func answer(w http.ResponseWriter, status int, kind, body string) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body + "\n")) // a client that is gone needs no answer
}
