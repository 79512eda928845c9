// Tells what becomes of a task, a line for each change, as its versions are seen.
package main

import (
	"fmt"
	"strings"
	"time"
)

// rungs says what each rung of a cancel has done, where the status is past it; docs/cancellation.md has the whole ladder.
var rungs = map[string]string{
	"NotStarted":      "no process of terraform was there to be signalled",
	"Gate":            "terraform is asked once it can hear it",
	"Interrupt":       "SIGINT to terraform",
	"KillProviders":   "SIGKILL to the providers",
	"SecondInterrupt": "a second SIGINT to terraform",
	"Kill":            "SIGKILL to terraform",
}

type story struct {
	screen

	begun       time.Time
	latest      time.Duration // no line is earlier than the one before
	lines       int
	latestPhase string
	message     string
	progress    string
	told        map[string]bool // of the cancel: stages and rungs
	requested   time.Duration   // when the cancel was seen to be asked for
}

func newStory(on screen) *story {
	return &story{screen: on, begun: time.Now(), told: map[string]bool{}}
}

func (s *story) tell(after time.Duration, word, text string) {
	s.latest, s.lines = max(s.latest, after), s.lines+1
	padded := fmt.Sprintf("%-16s", word)
	s.line("%12s  %s  %s", seconds(s.latest), s.phase(word, padded), s.paint(dim, text))
}

func (s *story) see(task *Task) {
	now := time.Since(s.begun)
	phase, status := task.phase(), &task.Status
	before := s.lines
	if status.Cancel != nil {
		s.seeCancel(task, now)
	}
	isNew := status.Message != s.message
	s.message = status.Message
	switch isCancelling := phase == cancelling && status.Cancel != nil; {
	case isCancelling && s.lines > before:
		s.latestPhase = phase // its stages have told it
	case phase != s.latestPhase, isNew && (isCancelling || phase == queued):
		s.latestPhase = phase
		s.tell(now, phase, status.Message)
	}
	if status.Progress.Summary != s.progress && status.Progress.Summary != "" && !task.hasEnded() {
		s.progress = status.Progress.Summary
		s.tell(now, s.progress, status.Progress.Current)
	}
}

// seeCancel tells each stage once, at the time that the operator has stamped it with.
func (s *story) seeCancel(task *Task, now time.Duration) {
	cancel := task.Status.Cancel
	doing := "" // what the operator says of it just now
	if task.phase() == cancelling {
		doing = strings.TrimPrefix(task.Status.Message, "cancelling: ")
	}
	if !s.told["requested"] {
		s.told["requested"] = true
		s.requested = now
		text := "by " + task.canceller()
		if cancel.SentAt == "" && doing != "" {
			text += "; " + doing
		}
		s.tell(now, "requested", text)
	}
	after := func(at moment) time.Duration {
		return s.requested + at.time().Sub(cancel.RequestedAt.time())
	}
	stage := func(word string, at moment, text string) {
		if at == "" || s.told[word] {
			return
		}
		s.told[word] = true
		s.tell(after(at), word, text)
	}
	stage("sent", cancel.SentAt, "to agent "+task.Status.Agent.PodName)
	if cancel.Rung != "" && !s.told[cancel.Rung] {
		s.told[cancel.Rung] = true
		at := now
		if cancel.Rung == "Interrupt" && cancel.SignalledAt != "" {
			at = after(cancel.SignalledAt)
		}
		text := rungs[cancel.Rung]
		if doing != "" && cancel.ExitedAt == "" {
			text = doing
		}
		s.tell(at, cancel.Rung, text)
	}
	stage("exited", cancel.ExitedAt, "terraform is gone")
	stage("swept", cancel.SweptAt, "no process of the run is alive")
}

// end says how it has ended, and what a person has to do about it.
func (s *story) end(task *Task) {
	writeEnd(s.screen, task)
}

func writeEnd(s screen, task *Task) {
	result := task.Status.Result
	if result == nil {
		return
	}
	parts := []string{fmt.Sprintf("state %s", result.State), fmt.Sprintf("lock %s", result.Lock)}
	if result.ExitCode != nil {
		parts = append([]string{fmt.Sprintf("exit code %d", *result.ExitCode)}, parts...)
	}
	if result.Forced {
		parts = append(parts, "forced")
	}
	s.line("%s: %s, %s; %s", task.Name, s.phase(task.Status.Phase, task.Status.Phase), result.Reason, strings.Join(parts, ", "))
	if result.OpenAddressCount > 0 {
		s.line("under way when terraform was killed (%d): %s", result.OpenAddressCount, strings.Join(result.OpenAddresses, ", "))
	}
	if outputs := task.Status.Outputs; outputs != nil {
		s.line("outputs: %s", outputs)
	}
	if task.needsAttention() {
		s.line("%s", task.Status.Message)
		if result.LockCommand != "" {
			s.line("for the lock: %s", result.LockCommand)
		}
		s.line("docs/cancellation.md says what state %s and lock %s mean, and what to do next", result.State, result.Lock)
	}
}
