// `completion`: scripts for shells, and the program by which kubectl completes `kubectl terrahalt`.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// kubectl asks a program of this name on PATH.
const forKubectl = `#!/bin/sh
exec kubectl-terrahalt __complete "$@"
`

func newCompletion(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "completion kubectl|bash|zsh|fish|powershell",
		Short: "Completion of commands, flags and names of tasks",
		Long: `kubectl: a program for your PATH by which kubectl's own completion goes on behind "kubectl terrahalt".
The others: a script for the command kubectl-terrahalt.`,
		Example: "  kubectl terrahalt completion kubectl > ~/.local/bin/kubectl_complete-terrahalt\n" +
			"  chmod +x ~/.local/bin/kubectl_complete-terrahalt",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"kubectl", "bash", "zsh", "fish", "powershell"},
		RunE: func(_ *cobra.Command, arguments []string) error {
			// The scripts are for the program's own name.
			root.Annotations = nil
			switch arguments[0] {
			case "bash":
				return root.GenBashCompletionV2(os.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(os.Stdout)
			case "fish":
				return root.GenFishCompletion(os.Stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(os.Stdout)
			}
			_, err := fmt.Print(forKubectl)
			return err
		},
	}
}
