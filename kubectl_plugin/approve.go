// `approve NAME`: approves the very plan that it shows, by its digest.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newApprove(at *access) *cobra.Command {
	var digest string
	var isSure, isWaiting bool
	var timeout time.Duration
	command := oneTask(at, &cobra.Command{
		Use:   "approve NAME",
		Short: "Approve the plan of a task that waits for it",
		Long: `Shows what waits for approval, asks, and approves that very plan: the API refuses any other digest.
Read the plan itself with "kubectl terrahalt plan NAME". With --wait the exit codes are those of "run --wait".`,
		Example: "  kubectl terrahalt plan network\n  kubectl terrahalt approve network",
	})
	flags := command.Flags()
	flags.StringVar(&digest, "digest", "", "The digest of the plan that you have read; anything else is not approved")
	flags.BoolVarP(&isSure, "yes", "y", false, "Ask nothing")
	flags.BoolVar(&isWaiting, "wait", false, "Show what becomes of it, until the task has ended")
	flags.DurationVar(&timeout, "timeout", 0, "With --wait: how long, like 5m; 0 is until the end")
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := at.connect(); err != nil {
			return err
		}
		ctx, name := command.Context(), arguments[0]
		task, _, err := at.task(ctx, name)
		if err != nil {
			return err
		}
		if err := isApprovable(task); err != nil {
			return err
		}
		showPlan(screenOn(os.Stdout), task)
		plan := task.Status.Plan
		switch {
		case digest != "" && digest != plan.Digest:
			return fmt.Errorf("the plan that waits has another digest than %s: read it, and approve that one", digest)
		case digest == "" && !isSure:
			if !isTerminal(os.Stdin) {
				return fmt.Errorf("nobody can be asked here: add --digest %s", plan.Digest)
			}
			if !confirms("Approve it? [y/N] ") {
				return fmt.Errorf("not approved")
			}
		}
		object, err := at.change(ctx, name, map[string]any{"approvedPlanDigest": plan.Digest})
		if err != nil {
			return err
		}
		if task, err = taskOf(object); err != nil {
			return err
		}
		if isWaiting {
			waiting := waiting{at: at, asked: succeeded, timeout: timeout}
			return waiting.until(ctx, task)
		}
		fmt.Printf("plan of task %s approved\n", name)
		return nil
	}
	return command
}

func isApprovable(task *Task) error {
	waits := task.Status.Phase == awaitingApproval && task.Status.Plan != nil && task.Status.Plan.Digest != ""
	switch {
	case task.Spec.ApprovedPlanDigest != "":
		return fmt.Errorf("the plan of task %s was approved already (%s); it is %s", task.Name, task.Spec.ApprovedPlanDigest, task.phase())
	case task.Spec.Cancel:
		return fmt.Errorf("task %s is cancelled", task.Name)
	case waits:
		return nil
	case task.Spec.Approval != "Manual":
		return fmt.Errorf("task %s needs no approval: it is %s, with approval: Automatic", task.Name, task.phase())
	}
	return fmt.Errorf("task %s has no plan that waits: it is %s", task.Name, task.phase())
}

func showPlan(s screen, task *Task) {
	plan := task.Status.Plan
	until := plan.ReadyAt.time().Add(time.Duration(task.Spec.ApprovalTimeoutSeconds) * time.Second)
	s.line("%s %s of workspace %s, pool %s", s.paint(bold, task.Namespace+"/"+task.Name), task.Spec.Action, task.Spec.Workspace, task.pool())
	s.line("  plan    %s", plan)
	s.line("  digest  %s", plan.Digest)
	s.line("  run     %s, waits since %s until %s", plan.RunID, plan.ReadyAt, until.UTC().Format(time.RFC3339))
	if task.Status.Source.Commit != "" {
		s.line("  commit  %s", task.Status.Source.Commit)
	}
	s.line("  to read it: kubectl terrahalt plan %s -n %s", task.Name, task.Namespace)
}

func confirms(question string) bool {
	fmt.Fprint(os.Stderr, question)
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
