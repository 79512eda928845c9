// The exit codes: how a task that was waited for has ended. docs/kubectl.md has this table.
package main

import "fmt"

const (
	exitAsAsked     = 0 // run: Succeeded; cancel: Cancelled
	exitError       = 1 // the command itself failed
	exitNotEnded    = 2 // the time of --timeout is over, or the user detached
	exitSucceeded   = 3 // cancel: it had succeeded before the cancel could stop it
	exitFailed      = 4
	exitCancelled   = 5 // run: somebody cancelled it
	exitLookAtState = 6 // its state or lock needs a person
	exitGone        = 7 // the object was deleted before its end was seen
	exitInterrupted = 130
)

// exit is an exit code as an error, for an end that was told to the user already.
type exit int

func (e exit) Error() string {
	return fmt.Sprintf("exit code %d", int(e))
}

// exitOf is the code for the end of a task that was asked to end in the phase `asked`.
func exitOf(task *Task, asked string) error {
	switch phase := task.Status.Phase; {
	case task.needsAttention():
		return exit(exitLookAtState)
	case phase == asked:
		return nil
	case phase == succeeded:
		return exit(exitSucceeded)
	case phase == cancelled:
		return exit(exitCancelled)
	default:
		return exit(exitFailed)
	}
}
