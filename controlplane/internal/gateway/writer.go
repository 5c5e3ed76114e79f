package gateway

import (
	"net/http"
	"time"
)

// writer answers a request and bounds how long the client may take to take each
// part of the answer. There is no bound between parts: a watch may be silent.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
}

func newWriter(w http.ResponseWriter) *writer {
	out := &writer{w, http.NewResponseController(w)}
	out.by(time.Time{}) // of the request before
	return out
}

// by sets the deadline for writing. It fails where there is no connection any
// more, which writing tells.
func (w *writer) by(deadline time.Time) { _ = w.control.SetWriteDeadline(deadline) }

// Write writes a part of the answer.
func (w *writer) Write(p []byte) (int, error) {
	w.by(time.Now().Add(writeTimeout))
	defer w.by(time.Time{})
	return w.ResponseWriter.Write(p)
}

// FlushError sends what has been written.
func (w *writer) FlushError() error {
	w.by(time.Now().Add(writeTimeout))
	defer w.by(time.Time{})
	return w.control.Flush()
}

// Unwrap gives the server's own, to http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// end bounds what the server still writes when the handler has returned.
func (w *writer) end() { w.by(time.Now().Add(writeTimeout)) }
