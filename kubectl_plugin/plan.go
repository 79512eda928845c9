// `plan NAME`: the plan that waits for a person, to be read.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func newPlan(at *access) *cobra.Command {
	command := oneTask(at, &cobra.Command{
		Use:   "plan NAME",
		Short: "Show the kept plan of a task, to be read before it is approved",
		Long: `Writes the plan of a task with "approval: Manual" as terraform shows it, without sensitive values, checked against its
digest; then the command that approves this very plan. It is kept in a Secret, so this needs "get" on "secrets".`,
		Example: "  kubectl terrahalt plan network\n  kubectl terrahalt plan network | less",
	})
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := at.connect(); err != nil {
			return err
		}
		task, _, err := at.task(command.Context(), arguments[0])
		if err != nil {
			return err
		}
		plan := task.Status.Plan
		if plan == nil || plan.Digest == "" {
			return noPlan(task)
		}
		text, err := at.keptPlan(command.Context(), plan)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the plan of task %s is gone: somebody has deleted its Secret, and nothing can be applied; plan anew, "+
				"by a new task", task.Name)
		}
		if err != nil {
			return err
		}
		s := screenOn(os.Stdout)
		for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
			s.line("%s", s.paint(colourOf(line), printable(line)))
		}
		s.line("\ndigest   %s", plan.Digest)
		if err := isApprovable(task); err != nil {
			s.line("state    %v", err)
			return nil
		}
		s.line("approve  kubectl terrahalt approve %s -n %s --digest %s", task.Name, task.Namespace, plan.Digest)
		return nil
	}
	return command
}

func noPlan(task *Task) error {
	switch {
	case task.Spec.Approval != "Manual":
		return fmt.Errorf("task %s keeps no plan, as it has approval: Automatic: `kubectl terrahalt logs %s` shows what was planned",
			task.Name, task.Name)
	case task.hasEnded():
		return fmt.Errorf("task %s has ended without a plan: %s, %s", task.Name, task.phase(), task.Status.Message)
	}
	return fmt.Errorf("task %s has no plan yet: it is %s", task.Name, task.phase())
}

// colourOf follows terraform's own marks at the beginning of a line. What is replaced is removed, too.
func colourOf(line string) string {
	mark, _, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
	switch mark {
	case "+":
		return green
	case "-", "-/+", "+/-":
		return red
	case "~":
		return yellow
	case "#", "Plan:":
		return bold
	}
	return ""
}

// printable: what a plan quotes may hold codes that a terminal would obey.
func printable(line string) string {
	return strings.Map(func(char rune) rune {
		if char < ' ' && char != '\t' || char >= 0x7f && char < 0xa0 {
			return '\uFFFD'
		}
		return char
	}, line)
}
