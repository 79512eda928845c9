// `unlock`: who holds the lock of a state, and its release where that is a run that has ended.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var leases = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}

// maxHostname: what a container's hostname has of its pod's name.
const maxHostname = 63

// lock is what terraform has written about who holds it.
type lock struct {
	lease     string
	ID        string `json:"ID"`
	Who       string `json:"Who"`
	Operation string `json:"Operation"`
	Created   string `json:"Created"`
}

func newUnlock(at *access) *cobra.Command {
	var isSure bool
	command := oneTask(at, &cobra.Command{
		Use:   "unlock NAME | WORKSPACE",
		Short: "Show who holds the lock of a state; release it where that is a run that has ended",
		Long: `Shows who holds the lock of a task's state, or of a workspace of the namespace. With --yes it is released, if it is the
lock of a run that has ended, and no other run has the workspace; if somebody else is quicker, nothing happens.
For states in the default backend: those of others only terraform can unlock.`,
		Example: "  kubectl terrahalt unlock network\n  kubectl terrahalt unlock network --yes",
	})
	command.Flags().BoolVarP(&isSure, "yes", "y", false, "Release it")
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := at.connect(); err != nil {
			return err
		}
		ctx := command.Context()
		workspace, err := at.workspaceOf(ctx, arguments[0])
		if err != nil {
			return err
		}
		held, err := at.lockOf(ctx, workspace)
		if err != nil {
			return err
		}
		s := screenOn(os.Stdout)
		if held == nil {
			s.line("nobody holds the lock of workspace %s in namespace %s", workspace, at.namespace)
			return nil
		}
		s.line("workspace %s in namespace %s is locked", s.paint(bold, workspace), at.namespace)
		s.line("  by       %s, since %s, for %s", held.Who, held.Created, held.Operation)
		s.line("  lock ID  %s", held.ID)
		owner, err := at.mayRelease(ctx, workspace, held)
		if owner != nil {
			s.line("  task     %s, %s", owner.Name, s.phase(owner.phase(), owner.phase()))
		}
		if err != nil {
			return err
		}
		if !isSure {
			s.line("its run has ended: `kubectl terrahalt unlock %s -n %s --yes` releases it", arguments[0], at.namespace)
			return nil
		}
		if err := at.release(ctx, held); err != nil {
			return err
		}
		s.line("released")
		return nil
	}
	return command
}

// workspaceOf a task, or the workspace itself.
func (a *access) workspaceOf(ctx context.Context, name string) (string, error) {
	task, _, err := a.task(ctx, name)
	switch {
	case apierrors.IsNotFound(err) && isNamed(err):
		return name, nil
	case err != nil:
		return "", err
	}
	if !task.hasDefaultBackend() {
		return "", fmt.Errorf("the state of task %s is in backend %s: use terraform force-unlock where that is at hand; "+
			"docs/backends.md says how", name, task.Spec.Backend.Type)
	}
	return task.Spec.Workspace, nil
}

func (t *Task) hasDefaultBackend() bool {
	return t.Spec.Backend.Type == "" || t.Spec.Backend.Type == "kubernetes"
}

// lockOf a workspace; nil: nobody holds it.
func (a *access) lockOf(ctx context.Context, workspace string) (*lock, error) {
	name := "lock-tfstate-default-" + workspace + "-tf"
	lease, err := a.objects.Resource(leases).Namespace(a.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && isNamed(err) {
		return nil, nil
	}
	if err != nil {
		return nil, about(err, "get", "leases", a.namespace, name)
	}
	id, _, _ := unstructured.NestedString(lease.Object, "spec", "holderIdentity")
	if id == "" {
		return nil, nil
	}
	found := &lock{}
	if json.Unmarshal([]byte(lease.GetAnnotations()["app.terraform.io/lock-info"]), found) != nil {
		found = &lock{Who: "somebody who does not say who", Created: "an unknown time", Operation: "an unknown purpose"}
	}
	found.lease, found.ID = name, id
	return found, nil
}

// mayRelease is the task whose run has the lock, and why it may not be released; nil: it may.
func (a *access) mayRelease(ctx context.Context, workspace string, held *lock) (*Task, error) {
	found, _, err := a.listTasks(ctx, a.namespace, "")
	if err != nil {
		return nil, err
	}
	var owner, alive *Task
	for _, task := range found {
		if !task.hasDefaultBackend() || task.Spec.Workspace != workspace {
			continue
		}
		if task.hasTaken(held) {
			owner = task
		}
		if task.Status.RunID != "" && !task.hasEnded() {
			alive = task
		}
	}
	switch {
	case alive != nil:
		return owner, fmt.Errorf("a run of task %s has the workspace: wait for its end, or cancel it; its agent releases the "+
			"lock that it leaves", alive.Name)
	case owner == nil:
		return nil, fmt.Errorf("it is not the lock of a run of any task here: ask %s, and if nobody is at work with it, release "+
			"it with\n  %s", held.Who, held.command(a.namespace))
	}
	return owner, a.isGone(ctx, owner)
}

// isGone: what ends without evidence, because a person has given it up, may be at work still.
func (a *access) isGone(ctx context.Context, task *Task) error {
	if task.reason() != "Abandoned" {
		return nil
	}
	name := task.Status.Agent.PodName
	pod, err := a.objects.Resource(pods).Namespace(a.namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return about(err, "get", "pods", a.namespace, name)
	case endOf(pod) != "":
		return nil
	}
	return fmt.Errorf("task %s was given up, and its agent pod %s may be at work still: once its machine is certainly off, delete "+
		"that pod and its Node", task.Name, name)
}

// hasTaken: USER is the run's ID, or else HOST its pod's name, which nobody chose.
func (t *Task) hasTaken(held *lock) bool {
	user, host, _ := strings.Cut(held.Who, "@")
	for _, run := range t.runs() {
		if user == run {
			return true
		}
	}
	pod := t.Status.Agent.PodName
	return pod != "" && host == strings.TrimRight(pod[:min(len(pod), maxHostname)], "-.")
}

// patch changes nothing where somebody else holds it by then.
func (l *lock) patch() string {
	path := "/spec/holderIdentity"
	patch, _ := json.Marshal([]map[string]string{
		{"op": "test", "path": path, "value": l.ID}, {"op": "remove", "path": path},
	})
	return string(patch)
}

func (l *lock) command(namespace string) string {
	return fmt.Sprintf("kubectl -n %s patch lease %s --type=json -p '%s'", namespace, l.lease, l.patch())
}

func (a *access) release(ctx context.Context, held *lock) error {
	_, err := a.objects.Resource(leases).Namespace(a.namespace).Patch(
		ctx, held.lease, types.JSONPatchType, []byte(held.patch()), metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("it was released, or taken by somebody else, just now: look again")
	}
	return about(err, "patch", "leases", a.namespace, held.lease)
}
