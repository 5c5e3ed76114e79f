package main

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/shared/obs"
)

func enrollCommand() *cobra.Command {
	req := enroll.Request{Version: obs.Version}
	var dataDir, tokenFile string
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "Make this host a node, with a token from hvctl node token",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tokenFile != "" {
				content, err := os.ReadFile(tokenFile)
				if err != nil {
					return fmt.Errorf("reading the token: %w", err)
				}
				req.Token = strings.TrimSpace(string(content))
			}
			hostname, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("asking for the host's name: %w", err)
			}
			req.Hostname, req.Node = hostname, cmp.Or(req.Node, hostname)
			if req.IP == "" {
				req.IP = towards(cmd, req.Server)
			}
			record, err := enroll.Enroll(cmd.Context(), enroll.Home{Dir: dataDir}, req)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "node %s of cluster %s: enrolled. Now: debvisor-agent run --data-dir %s\n", record.Node, record.Cluster, dataDir)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Server, "server", "", "a replica's listener for callers, host:port (required)")
	f.StringVar(&req.Token, "token", "", "the join token; see also --token-file")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the token, which then is not seen in the process list")
	f.StringVar(&req.Node, "node", "", "the node's id; empty: the host's name")
	f.StringVar(&req.IP, "ip", "", "the node's address in its record; empty: the one from which the server is reached")
	f.StringVar(&dataDir, "data-dir", defaultDataDir, "directory to make")
	cmd.MarkFlagsOneRequired("token", "token-file")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file")
	_ = cmd.MarkFlagRequired("server") // fails for an unknown flag only
	return cmd
}

// towards is the address from which the server is reached, as far as the
// routes tell; empty where they do not.
func towards(cmd *cobra.Command, server string) string {
	conn, err := (&net.Dialer{}).DialContext(cmd.Context(), "udp", server) // sends nothing
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return ""
	}
	return host
}
