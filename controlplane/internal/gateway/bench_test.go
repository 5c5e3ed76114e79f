package gateway

import (
	"net/http"
	"runtime"
	"testing"
)

// BenchmarkCall is a call over a connection that stands, and BenchmarkConnection
// one on a connection of its own; the latter also tells what a connection that
// stands holds in this process, the client's side included.
func BenchmarkCall(b *testing.B) {
	for name, http2 := range map[string]bool{"http1": false, "http2": true} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			c := r.client("ada", http2)
			r.do(c, r.request(http.MethodGet, "/v1/vms/web", ""))
			b.ReportAllocs()
			for b.Loop() {
				r.do(c, r.request(http.MethodGet, "/v1/vms/web", ""))
			}
		})
	}
}

func BenchmarkConnection(b *testing.B) {
	for name, http2 := range map[string]bool{"http1": false, "http2": true} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, func(g *Gateway) { doorOf(g).perAddress = 512 })
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			const stand = 100
			for range stand {
				r.do(r.client("ada", http2), r.request(http.MethodGet, "/v1/vms/web", ""))
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
				c := r.client("ada", http2)
				r.do(c, r.request(http.MethodGet, "/v1/vms/web", ""))
				c.CloseIdleConnections()
			}
			b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/stand/1024, "KiB/conn")
		})
	}
}
