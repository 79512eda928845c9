// Waits for a task's end beside a person, who may press Ctrl-C: then it asks what that was to mean.
//
// It must never cancel a task that nobody has answered for: detaching is what every doubt comes to.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// waiting is how `run`, `cancel` and `approve` wait.
type waiting struct {
	at      *access
	output  output
	asked   string // the phase that it is to end in
	timeout time.Duration

	task     *Task
	story    *story
	answers  <-chan string
	isAsking bool
	held     []sighting // while a question stands
}

// until follows the task to its end. What it returns says how it has ended.
func (w *waiting) until(ctx context.Context, task *Task) error {
	w.task = task
	lines := os.Stdout
	if w.output != "" {
		lines = os.Stderr // stdout is for the object
	}
	w.story = newStory(screenOn(lines))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	var late <-chan time.Time
	if w.timeout > 0 {
		late = time.After(w.timeout)
	}
	seen, broken := w.at.follow(ctx, task.Name, task.UID)
	for {
		select {
		case next, isOpen := <-seen:
			if !isOpen {
				select {
				case err := <-broken:
					return err
				default:
					return exit(exitGone)
				}
			}
			if isOver, err := w.see(next); isOver {
				return err
			}
		case got := <-signals:
			if isOver, err := w.interrupted(got); isOver {
				return err
			}
		case answer, isOpen := <-w.answers:
			if !isOpen {
				w.answers = nil
			}
			if isOver, err := w.answered(ctx, answer, isOpen); isOver {
				return err
			}
		case <-late:
			w.say("not ended after %s; %s", w.timeout, w.howToGoOn())
			return exit(exitNotEnded)
		}
	}
}

func (w *waiting) see(next sighting) (isOver bool, err error) {
	isEnd := next.isGone || next.task != nil && next.task.hasEnded()
	if w.isAsking && !isEnd {
		w.held = append(w.held, next)
		return false, nil
	}
	if w.isAsking {
		w.say("\n%s has ended meanwhile", w.task.Name)
		w.goOn()
	}
	switch {
	case next.away != nil:
		w.say("the API server does not answer (%v); the task goes on, and is asked for again", next.away)
		return false, nil
	case next.isGone:
		w.say("task %s was deleted before its end was seen; its run ends first, by its finalizer", w.task.Name)
		return true, exit(exitGone)
	}
	w.task = next.task
	w.story.see(next.task)
	if !next.task.hasEnded() {
		return false, nil
	}
	w.story.end(next.task)
	if w.output != "" {
		if err := w.output.printObject(os.Stdout, next.object); err != nil {
			return true, err
		}
	}
	return true, exitOf(next.task, w.asked)
}

// goOn ends the question, and tells what came meanwhile.
func (w *waiting) goOn() {
	held := w.held
	w.isAsking, w.held = false, nil
	for _, each := range held {
		_, _ = w.see(each) // none of them is an end
	}
}

func (w *waiting) interrupted(by os.Signal) (isOver bool, err error) {
	if by != os.Interrupt || !isTerminal(os.Stdin) || !isTerminal(os.Stderr) {
		w.say("%s", w.howToGoOn())
		return true, exit(exitInterrupted)
	}
	if w.isAsking {
		return true, w.detached()
	}
	w.ask()
	return false, nil
}

func (w *waiting) ask() {
	w.isAsking = true
	if w.answers == nil {
		w.answers = linesOf(os.Stdin)
	}
	choices := "cancel it (c), go on waiting (w) or detach (d, or Ctrl-C again)"
	if w.isCancelled() {
		choices = "its cancel goes on; go on waiting (w) or detach (d, or Ctrl-C again)"
	}
	fmt.Fprintf(os.Stderr, "\n%s is not ended: %s? ", w.task.Name, choices)
}

func (w *waiting) isCancelled() bool {
	return w.task.Spec.Cancel
}

func (w *waiting) answered(ctx context.Context, answer string, isOpen bool) (isOver bool, err error) {
	if !w.isAsking {
		return false, nil // typed before anything was asked
	}
	if !isOpen {
		return true, w.detached()
	}
	switch word := strings.ToLower(strings.TrimSpace(answer)); {
	case word == "d" || word == "detach":
		return true, w.detached()
	case word == "w" || word == "wait":
		w.goOn()
	case (word == "c" || word == "cancel") && !w.isCancelled():
		if _, err := w.at.change(ctx, w.task.Name, map[string]any{"cancel": true}); err != nil {
			w.say("not cancelled: %s", explain(err))
		} else {
			w.task.Spec.Cancel = true
		}
		w.goOn()
	default:
		w.ask()
	}
	return false, nil
}

func (w *waiting) detached() error {
	w.say("%s", w.howToGoOn())
	return exit(exitNotEnded)
}

func (w *waiting) howToGoOn() string {
	where := fmt.Sprintf("%s -n %s", w.task.Name, w.at.namespace)
	if w.isCancelled() {
		return fmt.Sprintf("the cancel of %s goes on; to see it end: kubectl terrahalt cancel %s --wait", w.task.Name, where)
	}
	return fmt.Sprintf("%s goes on; to cancel it: kubectl terrahalt cancel %s --wait", w.task.Name, where)
}

func (w *waiting) say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", values...)
}

func linesOf(file *os.File) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(file); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return lines
}
