// `cancel NAME`: sets spec.cancel, and with --wait shows each rung as it happens.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func newCancel(at *access) *cobra.Command {
	var out output
	var isWaiting, isForced, isAbandoned bool
	var timeout time.Duration
	var graceSeconds int64
	command := oneTask(at, &cobra.Command{
		Use:   "cancel NAME",
		Short: "Halt a task; its end is shown with --wait",
		Long: `Halts a task, whatever it does. The phase becomes Cancelled only once no process of its run is alive.

Exit codes: 0 Cancelled (without --wait: asked for), 3 it had succeeded before, 4 it has failed, 6 its state or lock
needs a look, 2 not ended when --timeout was over or you detached, 7 deleted, 1 the command failed.`,
		Example: "  kubectl terrahalt cancel network --wait\n  kubectl terrahalt cancel network --grace 5 --wait",
	})
	flags := command.Flags()
	flags.BoolVar(&isWaiting, "wait", false, "Show each stage, until the task has ended")
	flags.DurationVar(&timeout, "timeout", 0, "With --wait: how long, like 5m; 0 is until the end")
	flags.Int64Var(&graceSeconds, "grace", 0, "Give terraform only so many seconds to end by itself (cancelGraceSeconds)")
	flags.BoolVar(&isForced, "force", false, "Wait for no grace: kill the providers at once (cancelMode Force)")
	flags.BoolVar(&isAbandoned, "abandon", false,
		"Give the run up, though it may be at work still (cancelMode Abandon): only for a node that is off for good")
	command.MarkFlagsMutuallyExclusive("force", "abandon")
	out.bind(command)
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := out.check(); err != nil {
			return err
		}
		if err := at.connect(); err != nil {
			return err
		}
		ctx, name := command.Context(), arguments[0]
		before, object, err := at.task(ctx, name)
		if err != nil {
			return err
		}
		if before.hasEnded() {
			if out != "" {
				if err := out.printObject(os.Stdout, object); err != nil {
					return err
				}
			}
			fmt.Fprintf(os.Stderr, "task %s has ended already\n", name)
			writeEnd(screenOn(os.Stderr), before)
			return exitOf(before, cancelled)
		}
		spec := map[string]any{"cancel": true}
		switch {
		case isAbandoned:
			spec["cancelMode"] = "Abandon"
		case isForced:
			spec["cancelMode"] = "Force"
		}
		if graceSeconds != 0 {
			spec["cancelGraceSeconds"] = graceSeconds
		}
		if object, err = at.change(ctx, name, spec); err != nil {
			return err
		}
		task, err := taskOf(object)
		if err != nil {
			return err
		}
		if isWaiting {
			waiting := waiting{at: at, output: out, asked: cancelled, timeout: timeout}
			return waiting.until(ctx, task)
		}
		if out != "" {
			return out.printObject(os.Stdout, object)
		}
		fmt.Printf("cancel of task %s asked for; to see it end: kubectl terrahalt cancel %s -n %s --wait\n", name, name, at.namespace)
		return nil
	}
	return command
}
