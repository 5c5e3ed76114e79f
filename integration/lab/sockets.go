package lab

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Socket is one that waits for peers: a listening TCP or unix socket, or a UDP one.
type Socket struct {
	Proto   string         // "tcp", "udp" or "unix"
	Addr    netip.AddrPort // of tcp and udp
	Path    string         // of unix; an abstract name begins with @
	Program string         // whose it is, by the name of its executable; empty when it ended meanwhile
}

// String is like "tcp 10.77.0.11:7443 debvisor-rpcd".
func (s Socket) String() string {
	if s.Proto == "unix" {
		return strings.Join([]string{s.Proto, s.Path, s.Program}, " ")
	}
	return strings.Join([]string{s.Proto, s.Addr.String(), s.Program}, " ")
}

// Sockets returns everything that listens in the place's network namespace.
func (p *Place) Sockets() ([]Socket, error) {
	found := map[string]Socket{} // by inode
	err := p.InNetns(func() error {
		return errors.Join(
			readInet("tcp", "0A", found), readInet("tcp6", "0A", found),
			readInet("udp", "07", found), readInet("udp6", "07", found), readUnix(found))
	})
	if err != nil {
		return nil, fmt.Errorf("sockets of %s: %w", p.Name, err)
	}
	if err := nameOwners(found); err != nil {
		return nil, err
	}
	var all []Socket
	for _, s := range found {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Socket) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// lines returns the fields of the lines of a table of this thread's network namespace, its heading left out.
func lines(table string) ([][]string, error) {
	f, err := os.Open("/proc/thread-self/net/" + table)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no such protocol here
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var all [][]string
	in := bufio.NewScanner(f)
	for in.Scan() {
		all = append(all, strings.Fields(in.Text()))
	}
	return all[min(1, len(all)):], in.Err()
}

// readInet reads the sockets of a table that are in a state, as /proc spells it.
func readInet(table, state string, found map[string]Socket) error {
	all, err := lines(table)
	if err != nil {
		return err
	}
	for _, f := range all {
		if len(f) < 10 || f[3] != state {
			continue
		}
		addr, err := parseAddr(f[1])
		if err != nil {
			return err
		}
		found[f[9]] = Socket{Proto: strings.TrimSuffix(table, "6"), Addr: addr}
	}
	return nil
}

// parseAddr reads "0B004D0A:1D13": the address as 32-bit words in the machine's order, x86's, and the port.
func parseAddr(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("socket address %q", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// readUnix reads the unix sockets that accept connections.
func readUnix(found map[string]Socket) error {
	const accepting = 0x10000
	all, err := lines("unix")
	if err != nil {
		return err
	}
	for _, f := range all {
		if len(f) < 8 {
			continue
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&accepting != 0 {
			found[f[6]] = Socket{Proto: "unix", Path: f[7]}
		}
	}
	return nil
}

// nameOwners fills in which program holds each socket.
func nameOwners(found map[string]Socket) error {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		inode, isSocket := strings.CutPrefix(to, "socket:[")
		if err != nil || !isSocket {
			continue
		}
		inode = strings.TrimSuffix(inode, "]")
		if s, ok := found[inode]; ok && s.Program == "" {
			exe, _ := os.Readlink(filepath.Join(filepath.Dir(filepath.Dir(fd)), "exe"))
			s.Program = filepath.Base(exe)
			found[inode] = s
		}
	}
	return nil
}
