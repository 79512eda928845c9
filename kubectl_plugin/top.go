// `top`: pools, their agents, and who runs what.
package main

import (
	"cmp"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func newTop(at *access) *cobra.Command {
	var chosen selection
	command := &cobra.Command{
		Use:   "top",
		Short: "Pools, agents, and who runs what",
		Long: `Shows pools and agents. Who may not list pods sees the agents that have a run, as the tasks tell them.
--selector is for pools and tasks.`,
	}
	chosen.bind(command)
	command.RunE = func(command *cobra.Command, _ []string) error {
		if err := chosen.begin(at); err != nil {
			return err
		}
		ctx, namespace := command.Context(), chosen.namespace(at)
		poolList, err := at.list(ctx, pools, namespace, chosen.selector)
		if err != nil {
			return err
		}
		taskList, _, err := at.listTasks(ctx, namespace, chosen.selector)
		if err != nil {
			return err
		}
		var agents []unstructured.Unstructured
		podList, err := at.list(ctx, pods, namespace, agentSelector)
		switch {
		case err == nil:
			agents = podList.Items
		case !apierrors.IsForbidden(err):
			return err
		}
		if chosen.output != "" {
			return chosen.output.printList(os.Stdout, append(poolList.Items, agents...))
		}
		s := screenOn(os.Stdout)
		if len(poolList.Items) == 0 {
			chosen.none(at, "pools")
		} else {
			chosen.writePools(s, poolList.Items)
		}
		var rows [][]string
		if err == nil {
			rows = chosen.agents(agents, taskList)
		} else {
			screenOn(os.Stderr).line("you may not list pods: only agents with a run are shown")
			rows = chosen.agentsOfTasks(taskList)
		}
		if len(rows) > 0 {
			s.line("")
			head := chosen.withNamespace("NAMESPACE", "AGENT", "POOL", "IS", "TASK", "PHASE", "PROGRESS", "NODE", "AGE")
			s.table(head, rows, chosen.phases(4))
		}
		return nil
	}
	return command
}

func (s *selection) writePools(on screen, found []unstructured.Unstructured) {
	var rows [][]string
	for _, pool := range found {
		count := func(name string) string {
			number, _, _ := unstructured.NestedInt64(pool.Object, "status", name)
			return strconv.FormatInt(number, 10)
		}
		engine, _, _ := unstructured.NestedString(pool.Object, "spec", "engine", "type")
		most, _, _ := unstructured.NestedInt64(pool.Object, "spec", "maxAgents")
		rows = append(rows, s.withNamespace(pool.GetNamespace(), pool.GetName(), engine,
			count("agents")+"/"+strconv.FormatInt(most, 10), count("idle"), count("busy"), count("starting"), count("queued")))
	}
	on.table(s.withNamespace("NAMESPACE", "POOL", "ENGINE", "AGENTS", "IDLE", "BUSY", "STARTING", "QUEUED"), rows, -1)
}

// agents is a row for each pod, those with a run first, those that have ended last.
func (s *selection) agents(found []unstructured.Unstructured, known []*Task) [][]string {
	byName := map[[2]string]*Task{}
	for _, task := range known {
		byName[[2]string{task.Namespace, task.Name}] = task
	}
	order := map[string]int{"busy": 0, "idle": 1, "starting": 2, "ended": 3}
	slices.SortStableFunc(found, func(a, b unstructured.Unstructured) int {
		return cmp.Compare(order[conditionOf(&a)], order[conditionOf(&b)])
	})
	var rows [][]string
	for i := range found {
		pod := &found[i]
		name, phase, progress := pod.GetLabels()[taskLabel], "", ""
		if task := byName[[2]string{pod.GetNamespace(), name}]; task != nil {
			phase, progress = task.phase(), task.Status.Progress.Summary
		}
		node, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
		rows = append(rows, s.withNamespace(pod.GetNamespace(), pod.GetName(), pod.GetLabels()[poolLabel], conditionOf(pod), name,
			phase, progress, node, age(pod.GetCreationTimestamp().Time)))
	}
	return rows
}

// agentsOfTasks is what can be said without the pods.
func (s *selection) agentsOfTasks(known []*Task) [][]string {
	var rows [][]string
	for _, task := range known {
		if task.Status.Agent.PodName != "" && !task.hasEnded() {
			rows = append(rows, s.withNamespace(task.Namespace, task.Status.Agent.PodName, task.pool(), "busy", task.Name,
				task.phase(), task.Status.Progress.Summary, "", ""))
		}
	}
	return rows
}

// conditionOf is what an agent's pod does: busy, idle, starting or ended.
func conditionOf(pod *unstructured.Unstructured) string {
	if pod.GetLabels()[taskLabel] != "" {
		return "busy"
	}
	if endOf(pod) != "" || pod.GetLabels()[lastTaskLabel] != "" {
		return "ended"
	}
	conditions, _, _ := unstructured.NestedSlice(pod.Object, "status", "conditions")
	for _, each := range conditions {
		if condition, isMap := each.(map[string]any); isMap && condition["type"] == "Ready" && condition["status"] == "True" {
			return "idle"
		}
	}
	return "starting"
}
