// `list` and `queue`: tasks as tables.
package main

import (
	"cmp"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// selection is which tasks a table is about.
type selection struct {
	isAll    bool
	selector string
	output   output
}

func (s *selection) bind(command *cobra.Command) {
	flags := command.Flags()
	flags.BoolVarP(&s.isAll, "all-namespaces", "A", false, "Tasks of all namespaces")
	flags.StringVarP(&s.selector, "selector", "l", "", "Only tasks with these labels, like team=net,env!=dev")
	s.output.bind(command)
	command.Args = cobra.NoArgs
}

func (s *selection) namespace(at *access) string {
	if s.isAll {
		return ""
	}
	return at.namespace
}

// begin is what each of these commands does first.
func (s *selection) begin(at *access) error {
	if err := s.output.check(); err != nil {
		return err
	}
	return at.connect()
}

// withNamespace puts a column before the others, where they differ.
func (s *selection) withNamespace(namespace string, cells ...string) []string {
	if s.isAll {
		return append([]string{namespace}, cells...)
	}
	return cells
}

func (s *selection) phases(column int) int {
	if s.isAll {
		return column + 1
	}
	return column
}

func (s *selection) none(at *access, what string) {
	where := "in namespace " + at.namespace
	if s.isAll {
		where = "in any namespace"
	}
	screenOn(os.Stderr).line("no %s %s", what, where)
}

func newList(at *access) *cobra.Command {
	var chosen selection
	command := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Tasks, and how far they are",
		Example: "  kubectl terrahalt list -A\n  kubectl terrahalt list -l team=net -o json",
	}
	chosen.bind(command)
	command.RunE = func(command *cobra.Command, _ []string) error {
		if err := chosen.begin(at); err != nil {
			return err
		}
		found, list, err := at.listTasks(command.Context(), chosen.namespace(at), chosen.selector)
		if err != nil {
			return err
		}
		if chosen.output != "" {
			return chosen.output.printList(os.Stdout, list.Items)
		}
		if len(found) == 0 {
			chosen.none(at, "tasks")
			return nil
		}
		var rows [][]string
		for _, t := range found {
			rows = append(rows, chosen.withNamespace(t.Namespace, t.Name, t.phase(), t.Spec.Action, t.Spec.Workspace,
				t.Status.Agent.PodName, t.Status.Progress.Summary, t.reason(), age(t.CreationTimestamp.Time)))
		}
		head := chosen.withNamespace("NAMESPACE", "NAME", "PHASE", "ACTION", "WORKSPACE", "AGENT", "PROGRESS", "REASON", "AGE")
		screenOn(os.Stdout).table(head, rows, chosen.phases(1))
		return nil
	}
	return command
}

func newQueue(at *access) *cobra.Command {
	var chosen selection
	command := &cobra.Command{
		Use:   "queue",
		Short: "Tasks that wait, in their order, and for what",
		Long: `Shows the tasks that wait for an agent or their workspace. The first 20 of a pool have a position
(docs/queue.md).`,
	}
	chosen.bind(command)
	command.RunE = func(command *cobra.Command, _ []string) error {
		if err := chosen.begin(at); err != nil {
			return err
		}
		found, list, err := at.listTasks(command.Context(), chosen.namespace(at), chosen.selector)
		if err != nil {
			return err
		}
		order := inQueue(found)
		if chosen.output != "" {
			waiting := make([]unstructured.Unstructured, len(order))
			for i, number := range order {
				waiting[i] = list.Items[number]
			}
			return chosen.output.printList(os.Stdout, waiting)
		}
		if len(order) == 0 {
			chosen.none(at, "tasks wait")
			return nil
		}
		var rows [][]string
		for _, number := range order {
			t, position, reason := found[number], "", ""
			if queue := t.Status.Queue; queue != nil {
				reason = queue.WaitingFor
				if queue.Position > 0 {
					position = strconv.FormatInt(queue.Position, 10)
				}
			}
			rows = append(rows, chosen.withNamespace(t.Namespace, t.pool(), position, t.Name, t.Spec.Workspace,
				strconv.FormatInt(t.Spec.Priority, 10), age(t.CreationTimestamp.Time), reason))
		}
		head := chosen.withNamespace("NAMESPACE", "POOL", "POSITION", "NAME", "WORKSPACE", "PRIORITY", "AGE", "WAITING FOR")
		screenOn(os.Stdout).table(head, rows, -1)
		return nil
	}
	return command
}

// inQueue is which of them wait, by pool and position; those without a position come last, oldest first.
func inQueue(found []*Task) []int {
	var waiting []int
	for i, task := range found {
		if task.phase() == queued && !task.hasEnded() {
			waiting = append(waiting, i)
		}
	}
	slices.SortStableFunc(waiting, func(a, b int) int {
		one, other := found[a], found[b]
		return cmp.Or(
			cmp.Compare(one.Namespace, other.Namespace),
			cmp.Compare(one.pool(), other.pool()),
			cmp.Compare(position(one), position(other)),
			one.CreationTimestamp.Compare(other.CreationTimestamp.Time),
		)
	})
	return waiting
}

func position(task *Task) int64 {
	const last = 1 << 31
	if task.Status.Queue == nil || task.Status.Queue.Position == 0 {
		return last
	}
	return task.Status.Queue.Position
}
