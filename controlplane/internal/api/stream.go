package api

import "google.golang.org/grpc"

// checkedStream validates what the caller sends.
type checkedStream struct {
	grpc.ServerStream
	check *Validator
}

// RecvMsg receives a message and refuses a malformed one.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.check.Check(m)
}
