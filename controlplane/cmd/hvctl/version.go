package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/shared/obs"
)

// versionCommand is "hvctl version".
func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print hvctl's version", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			switch a.flags.output {
			case formatJSON, formatYAML:
				return a.printValue(map[string]string{
					"version": obs.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			default:
				_, err := fmt.Fprintf(a.out, "hvctl %s (%s %s/%s)\n", obs.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
				return err
			}
		},
	}
}
