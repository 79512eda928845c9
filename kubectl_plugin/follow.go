// The versions of one task as they come, through lost connections, until it has ended.
package main

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

const (
	pollEvery  = time.Second // for who may get a task and not watch it
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
)

// sighting is one version of the task.
type sighting struct {
	task   *Task
	object *unstructured.Unstructured
	isGone bool // deleted; task and object are the last that was seen, or nil
	away   error
	// Why the API server can't be asked just now; task and object are nil.
}

type follower struct {
	client dynamic.ResourceInterface
	name   string
	uid    types.UID // another object of the same name is not meant
	last   sighting
	seen   chan<- sighting
}

// follow sends each version that is seen; the channel is closed after the end, or once ctx is done. What ends it early
// comes from the second channel.
func (a *access) follow(ctx context.Context, name string, uid types.UID) (<-chan sighting, <-chan error) {
	seen, broken := make(chan sighting), make(chan error, 1)
	f := &follower{client: a.tasks(), name: name, uid: uid, seen: seen}
	go func() {
		defer close(seen)
		if err := f.run(ctx); err != nil && ctx.Err() == nil {
			broken <- about(err, "get", "terraformtasks", a.namespace, name)
		}
	}()
	return seen, broken
}

func (f *follower) run(ctx context.Context) error {
	pause, isTold := firstPause, false
	for ctx.Err() == nil {
		object, err := f.client.Get(ctx, f.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && isNamed(err):
			f.gone(ctx)
			return nil
		case err != nil && isLasting(err):
			return err
		case err != nil:
			if !isTold {
				isTold = true
				f.send(ctx, sighting{away: err})
			}
			wait(ctx, pause)
			pause = min(2*pause, maxPause)
			continue
		}
		pause, isTold = firstPause, false
		if isOver, err := f.look(ctx, object); isOver || err != nil {
			return err
		}
		events, err := f.client.Watch(ctx, metav1.ListOptions{
			FieldSelector: "metadata.name=" + f.name, ResourceVersion: object.GetResourceVersion(),
		})
		if err != nil {
			wait(ctx, pollEvery)
			continue
		}
		isOver, err := f.read(ctx, events)
		events.Stop()
		if isOver || err != nil {
			return err
		}
		wait(ctx, firstPause)
	}
	return nil
}

// isLasting: asking again does not help.
func isLasting(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsNotFound(err) || apierrors.IsBadRequest(err)
}

func (f *follower) read(ctx context.Context, events watch.Interface) (isOver bool, err error) {
	for event := range events.ResultChan() {
		object, isObject := event.Object.(*unstructured.Unstructured)
		if !isObject {
			return false, nil // an error, as of a version that is too old: it is read anew
		}
		switch event.Type {
		case watch.Added, watch.Modified:
			if isOver, err = f.look(ctx, object); isOver || err != nil {
				return isOver, err
			}
		case watch.Deleted:
			// Its finalizer goes after its end was written, which was an event of its own.
			f.gone(ctx)
			return true, nil
		default:
			return false, nil
		}
	}
	return false, nil
}

func (f *follower) look(ctx context.Context, object *unstructured.Unstructured) (isOver bool, err error) {
	if object.GetUID() != f.uid {
		f.gone(ctx)
		return true, nil
	}
	task, err := taskOf(object)
	if err != nil {
		return false, err
	}
	f.last = sighting{task: task, object: object}
	f.send(ctx, f.last)
	return task.hasEnded(), nil
}

func (f *follower) gone(ctx context.Context) {
	gone := f.last
	gone.isGone = true
	f.send(ctx, gone)
}

func (f *follower) send(ctx context.Context, what sighting) {
	select {
	case f.seen <- what:
	case <-ctx.Done():
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
