// The commands and the flags that all of them have.
package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const completionWithin = 5 * time.Second

func newRoot() *cobra.Command {
	at := &access{}
	root := &cobra.Command{
		Use:           "kubectl-terrahalt",
		Short:         "Run Terraform in Kubernetes, and really halt it",
		Long:          "Runs, halts, approves and shows TerraformTasks. docs/kubectl.md has examples and all exit codes.",
		Version:       version,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl terrahalt"},
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(command *cobra.Command, err error) error {
		return fmt.Errorf("%w: see `%s --help`", err, command.CommandPath())
	})
	at.bind(root.PersistentFlags())
	hideAllBut(root, "namespace", "context", "kubeconfig")
	root.AddCommand(
		newRun(at), newCancel(at), newPlan(at), newApprove(at), newLogs(at), newList(at), newStatus(at), newQueue(at), newTop(at),
		newUnlock(at),
		newCompletion(root),
	)
	return root
}

// hideAllBut: kubectl has the others too, and nobody reads through twenty of them in each help.
func hideAllBut(root *cobra.Command, shown ...string) {
	root.PersistentFlags().VisitAll(func(flag *pflag.Flag) {
		flag.Hidden = !slices.Contains(shown, flag.Name)
	})
}

// oneTask takes the name of a task, and completes it.
func oneTask(at *access, command *cobra.Command) *cobra.Command {
	command.Args = func(command *cobra.Command, arguments []string) error {
		if len(arguments) != 1 {
			return fmt.Errorf("give the name of one task: %s NAME; `kubectl terrahalt list` shows them", command.CommandPath())
		}
		return nil
	}
	command.ValidArgsFunction = func(
		_ *cobra.Command, given []string, _ string,
	) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return at.names(), cobra.ShellCompDirectiveNoFileComp
	}
	return command
}

func (a *access) names() []string {
	ctx, cancel := context.WithTimeout(context.Background(), completionWithin)
	defer cancel()
	if a.connect() != nil {
		return nil
	}
	list, err := a.list(ctx, tasks, a.namespace, "")
	if err != nil {
		return nil
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].GetName())
	}
	return names
}

func complete(command *cobra.Command, flag string, words ...string) {
	_ = command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}
