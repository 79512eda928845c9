// `status NAME`: what a task is, and its life as a timeline.
package main

import (
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func newStatus(at *access) *cobra.Command {
	var out output
	command := oneTask(at, &cobra.Command{
		Use:   "status NAME",
		Short: "One task, with the times of its life and who asked for its cancel",
	})
	out.bind(command)
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := out.check(); err != nil {
			return err
		}
		if err := at.connect(); err != nil {
			return err
		}
		task, object, err := at.task(command.Context(), arguments[0])
		if err != nil {
			return err
		}
		if out != "" {
			return out.printObject(os.Stdout, object)
		}
		writeStatus(screenOn(os.Stdout), task)
		return nil
	}
	return command
}

func writeStatus(s screen, task *Task) {
	status := &task.Status
	s.line("%s  %s of workspace %s, pool %s", s.paint(bold, task.Namespace+"/"+task.Name), task.Spec.Action, task.Spec.Workspace, task.pool())
	field := func(name, text string) {
		if text != "" {
			s.line("%-10s %s", name, text)
		}
	}
	field("phase", s.phase(task.phase(), task.phase()))
	field("message", status.Message)
	if status.Queue != nil {
		field("waits for", status.Queue.WaitingFor)
	}
	field("agent", status.Agent.PodName)
	field("commit", status.Source.Commit)
	if status.Plan != nil {
		field("plan", status.Plan.String())
	}
	field("progress", status.Progress.Summary)
	if status.Outputs != nil {
		field("outputs", status.Outputs.String())
	}
	if status.Log.SecretName != "" {
		field("log", "Secret "+status.Log.SecretName)
	}
	if by := task.canceller(); by != "" {
		field("cancel", "asked for by "+by)
	}
	s.line("")
	writeTimeline(s, task)
	if status.Result != nil {
		s.line("")
		writeEnd(s, task)
	}
}

type event struct {
	at         time.Time
	word, text string
}

func eventsOf(task *Task) []event {
	status := &task.Status
	events := []event{{task.CreationTimestamp.Time, "created", ""}}
	add := func(at moment, word, text string) {
		if at != "" {
			events = append(events, event{at.time(), word, text})
		}
	}
	for _, condition := range status.Conditions {
		isOfTheEnd := condition.Type == "Ready" || condition.Type == "Stalled" // Finished says it
		if condition.Status == "True" && condition.Type != "Reconciling" && !isOfTheEnd {
			text := condition.Reason
			if condition.Message != "" && condition.Type != "Finished" {
				text += ": " + condition.Message
			}
			add(condition.LastTransitionTime, condition.Type, text)
		}
	}
	if status.Plan != nil {
		add(status.Plan.ReadyAt, awaitingApproval, "")
	}
	add(status.StartedAt, "started", "")
	if cancel := status.Cancel; cancel != nil {
		add(cancel.RequestedAt, "requested", "cancel, by "+task.canceller())
		add(cancel.SentAt, "sent", "to agent "+status.Agent.PodName)
		add(cancel.SignalledAt, "signalled", "terraform, for the first time; highest rung "+cancel.Rung)
		add(cancel.ExitedAt, "exited", "terraform is gone")
		add(cancel.SweptAt, "swept", "no process of the run is alive")
	}
	add(status.FinishedAt, "ended", task.Status.Phase)
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	return events
}

func writeTimeline(s screen, task *Task) {
	events := eventsOf(task)
	var rows [][]string
	for i, each := range events {
		lasted := ""
		if i > 0 {
			lasted = "+" + seconds(each.at.Sub(events[i-1].at))
		}
		rows = append(rows, []string{each.at.UTC().Format("15:04:05.000"), seconds(each.at.Sub(events[0].at)), lasted, each.word, each.text})
	}
	s.line("%s", s.paint(dim, events[0].at.UTC().Format("2006-01-02, UTC")))
	s.table([]string{"AT", "AFTER", "SINCE", "WHAT", ""}, rows, -1)
}
