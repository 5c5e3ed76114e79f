package rpc

import "time"

// The limits of every connection. grpc-go's own defaults are endless streams,
// 16 MiB of headers, endless age and a ping after two hours.
const (
	// MaxStreams is how many calls one connection may have open.
	MaxStreams = 128
	// MaxHeaderBytes is the most that one call's metadata may hold.
	MaxHeaderBytes = 8 << 10
	// MaxRequestBytes is the most that one message to a server may hold.
	MaxRequestBytes = 1 << 20
	// MaxResponseBytes is the most that one message from a server may hold.
	MaxResponseBytes = 10 << 20
	// MaxConnectionAge is when a caller is asked to connect anew.
	MaxConnectionAge = 30 * time.Minute
	// MaxConnectionAgeGrace is how long calls may still run after that.
	MaxConnectionAgeGrace = 10 * time.Minute
	// PingAfter is the silence after which the other side is pinged.
	PingAfter = 10 * time.Second
	// PingTimeout is how long it may take to answer a ping.
	PingTimeout = 5 * time.Second
	// MinPing is the shortest time between pings that a server bears.
	MinPing = 5 * time.Second
	// HandshakeTimeout is how long TLS and HTTP/2 may take to be set up.
	HandshakeTimeout = 5 * time.Second
)
