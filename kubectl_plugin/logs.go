// `logs NAME`: what the agents of a task have logged, whole and in order, through lost connections.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type logReader struct {
	at            *access
	isFollowing   bool
	hasTimes      bool
	tail          int64
	out           *bufio.Writer
	latest        time.Time // of the lines of the present pod that were written
	countOfLatest int       // how many of them have that very time
}

func newLogs(at *access) *cobra.Command {
	reader := &logReader{at: at, out: bufio.NewWriter(os.Stdout)}
	command := oneTask(at, &cobra.Command{
		Use:   "logs NAME",
		Short: "What a task's agent has logged; with -f as it comes",
		Long: `Writes the log of the pod that runs the task, or has run it; of an approved plan, first the pod that planned.
A pool keeps the pods of its last five ended agents: after that it is what the agent has kept in a Secret of the task.`,
		Example: "  kubectl terrahalt logs -f network",
	})
	flags := command.Flags()
	flags.BoolVarP(&reader.isFollowing, "follow", "f", false, "Go on until the task has ended")
	flags.BoolVar(&reader.hasTimes, "timestamps", false, "Put the time before each line")
	flags.Int64Var(&reader.tail, "tail", -1, "Only the last lines of each pod; -1 is all")
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := at.connect(); err != nil {
			return err
		}
		err := reader.write(command.Context(), arguments[0])
		return errors.Join(err, reader.out.Flush())
	}
	return command
}

func (r *logReader) write(ctx context.Context, name string) error {
	task, _, err := r.at.task(ctx, name)
	if err != nil {
		return err
	}
	written := map[string]bool{}
	for isAnnounced := false; ; {
		names, err := r.podsOf(ctx, task)
		if err != nil {
			return err
		}
		if err := r.copyKept(ctx, task, names, written); err != nil {
			return err
		}
		for _, pod := range names {
			if written[pod] {
				continue
			}
			r.announce(written, "agent "+pod)
			written[pod] = true
			if err := r.copy(ctx, pod); err != nil {
				return err
			}
		}
		if task.hasEnded() || !r.isFollowing {
			if len(written) == 0 {
				return noLog(task)
			}
			return nil
		}
		if len(written) == 0 && !isAnnounced {
			isAnnounced = true
			fmt.Fprintf(os.Stderr, "task %s has no agent yet: %s\n", task.Name, task.Status.Message)
		}
		if task, err = r.untilNext(ctx, task, written); err != nil {
			return err
		}
	}
}

// copyKept writes the logs of runs whose pods are gone: the first ones, as pods go in the order in which they ended.
func (r *logReader) copyKept(ctx context.Context, task *Task, names []string, written map[string]bool) error {
	runs := task.runs()
	if len(written) > 0 || len(names) >= len(runs) {
		return nil
	}
	for _, run := range runs[:len(runs)-len(names)] {
		kept, err := r.at.keptLog(ctx, run)
		if apierrors.IsNotFound(err) {
			continue // it could not be kept, or is older than that
		}
		if err != nil {
			return err
		}
		r.announce(written, "kept log of run "+run)
		written[run] = true
		if r.hasTimes {
			_ = r.out.Flush()
			fmt.Fprintln(os.Stderr, "a kept log has no times")
		}
		_, _ = r.out.Write(lastLines(kept, r.tail))
	}
	return nil
}

// announce says whose the lines are that follow others.
func (r *logReader) announce(written map[string]bool, what string) {
	if len(written) > 0 {
		_ = r.out.Flush()
		fmt.Fprintf(os.Stderr, "==> %s\n", what)
	}
}

// lastLines are so many; -1 is all.
func lastLines(text []byte, count int64) []byte {
	if count < 0 {
		return text
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	if len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	return bytes.Join(lines[max(0, len(lines)-int(count)):], nil)
}

func noLog(task *Task) error {
	switch {
	case !task.hasEnded():
		return fmt.Errorf("task %s has no agent yet, so there is no log: -f waits for it", task.Name)
	case task.Status.StartedAt == "":
		return fmt.Errorf("no agent has run task %s, so there is no log: it is %s, %s", task.Name, task.Status.Phase, task.Status.Message)
	}
	return fmt.Errorf("the pod that ran task %s is gone, and its log was not kept; `kubectl terrahalt status %s` has what is known of "+
		"its end", task.Name, task.Name)
}

// untilNext waits for another agent, or the end. The task that it returns is the latest.
func (r *logReader) untilNext(ctx context.Context, task *Task, written map[string]bool) (*Task, error) {
	_ = r.out.Flush()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	seen, broken := r.at.follow(ctx, task.Name, task.UID)
	for next := range seen {
		switch {
		case next.isGone:
			return nil, fmt.Errorf("task %s was deleted", task.Name)
		case next.task == nil:
			continue
		}
		pod := next.task.Status.Agent.PodName
		if next.task.hasEnded() || pod != "" && !written[pod] {
			return next.task, nil
		}
	}
	return nil, <-broken
}

// podsOf is the agents that have had a run of this task, in the order of their ends; one that still runs is the last.
func (r *logReader) podsOf(ctx context.Context, task *Task) ([]string, error) {
	var names []string
	list, err := r.at.list(ctx, pods, r.at.namespace, lastTaskLabel+"="+task.Name)
	switch {
	case err == nil:
		for _, pod := range byEnd(list.Items, task) {
			names = append(names, pod.GetName())
		}
	case !apierrors.IsForbidden(err):
		return nil, err
	}
	// Who may get pods and not list them has the last one by the status; so has who was quicker than its label.
	if named := task.Status.Agent.PodName; named != "" && !slices.Contains(names, named) {
		switch _, err := r.pod(ctx, named); {
		case err == nil:
			names = append(names, named)
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return names, nil
}

func byEnd(found []unstructured.Unstructured, task *Task) []unstructured.Unstructured {
	found = slices.DeleteFunc(found, func(pod unstructured.Unstructured) bool {
		// It ran an earlier task of the same name.
		end := endOf(&pod)
		return end != "" && end.time().Before(task.CreationTimestamp.Time)
	})
	const never = moment("9999-12-31T00:00:00Z")
	slices.SortStableFunc(found, func(a, b unstructured.Unstructured) int {
		return cmp.Or(endOf(&a), never).time().Compare(cmp.Or(endOf(&b), never).time())
	})
	return found
}

// endOf is when its agent's container was seen to have ended; empty: it has not.
func endOf(pod *unstructured.Unstructured) moment {
	containers, _, _ := unstructured.NestedSlice(pod.Object, "status", "containerStatuses")
	for _, each := range containers {
		if status, isMap := each.(map[string]any); isMap && status["name"] == container {
			at, _, _ := unstructured.NestedString(status, "state", "terminated", "finishedAt")
			return moment(at)
		}
	}
	return ""
}

func (r *logReader) pod(ctx context.Context, name string) (*unstructured.Unstructured, error) {
	pod, err := r.at.objects.Resource(pods).Namespace(r.at.namespace).Get(ctx, name, metav1.GetOptions{})
	return pod, about(err, "get", "pods", r.at.namespace, name)
}

// copy writes the log of one pod. Followed, it is whole only once it was read to its end after the container has ended:
// a stream may break off earlier, and is then taken up where it was left.
func (r *logReader) copy(ctx context.Context, name string) error {
	r.latest, r.countOfLatest = time.Time{}, 0
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		pod, err := r.pod(ctx, name)
		hasEnded := apierrors.IsNotFound(err) || err == nil && endOf(pod) != ""
		before := r.latest
		err = r.read(ctx, name)
		if err == nil && (hasEnded || !r.isFollowing) {
			return nil
		}
		if err != nil && (!r.isFollowing || ctx.Err() != nil || isLasting(err) && !apierrors.IsBadRequest(err)) {
			if hasEnded && apierrors.IsNotFound(err) {
				return nil // it was removed meanwhile
			}
			return about(err, "get", "pods/log", r.at.namespace, name)
		}
		if !r.latest.Equal(before) {
			pause = firstPause
		}
		_ = r.out.Flush()
		wait(ctx, pause)
	}
}

func (r *logReader) read(ctx context.Context, name string) error {
	request := r.at.core.Get().Resource("pods").Namespace(r.at.namespace).Name(name).SubResource("log").
		Param("container", container).Param("timestamps", "true")
	if r.isFollowing {
		request.Param("follow", "true")
	}
	switch {
	case !r.latest.IsZero():
		// In whole seconds: what comes again is passed over.
		request.Param("sinceTime", r.latest.UTC().Truncate(time.Second).Format(time.RFC3339))
	case r.tail >= 0:
		request.Param("tailLines", strconv.FormatInt(r.tail, 10))
	}
	stream, err := request.Stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	resume, known, lines := r.latest, r.countOfLatest, bufio.NewReader(stream)
	for {
		line, err := lines.ReadString('\n')
		// What is cut off in a followed stream comes again, whole.
		if line != "" && (err == nil || !r.isFollowing) {
			r.line(line, resume, &known)
		}
		if r.isFollowing && lines.Buffered() == 0 {
			_ = r.out.Flush()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// line writes one, unless it came before: `known` lines of the time `resume` have.
func (r *logReader) line(line string, resume time.Time, known *int) {
	stamp, text, _ := strings.Cut(line, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	switch {
	case err != nil:
		text = line
	case at.Before(resume):
		return
	case at.Equal(resume) && *known > 0:
		*known--
		return
	case at.Equal(r.latest):
		r.countOfLatest++
	default:
		r.latest, r.countOfLatest = at, 1
	}
	if r.hasTimes {
		text = line
	}
	_, _ = r.out.WriteString(text)
}
