package rpc

import "crypto/tls"

// WithHTTP1 is a server's TLS configuration whose connections may also speak
// HTTP/1.1.
func WithHTTP1(cfg *tls.Config) *tls.Config {
	protocols := []string{"h2", "http/1.1"}
	cfg = cfg.Clone()
	cfg.NextProtos = protocols
	if each := cfg.GetConfigForClient; each != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			own, err := each(hello)
			if err != nil || own == nil {
				return own, err
			}
			own = own.Clone()
			own.NextProtos = protocols
			return own, nil
		}
	}
	return cfg
}
