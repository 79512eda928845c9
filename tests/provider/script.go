package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const deafWord = "deaf"

// One operation, in the steps that a test has written:
//
//	sleep 300ms   takes so long; a stop of terraform ends the operation at once
//	work 300ms    takes so long, whatever is asked
//	linger 300ms  waits for a stop, and ends the operation so long after it
//	hang          never ends
//	finish        the cloud has done what was asked; without this word it is so at the end
//	keep          from here on the answer has the object, also if it is an error
//	fail          the answer is an error
//	crash         the process ends without an answer
//	fork          starts a process in a session of its own that no signal but SIGKILL ends
//	cling         the same, and it holds the error output of this one
type operation struct {
	cloud string
	kind  string
	name  string
}

// `keep` is called at most once, before the end. The error is the operation's answer.
func (o operation) run(ctx context.Context, script []string, keep func()) error {
	underWay, err := o.tell(http.MethodPost, "")
	if err != nil {
		return err
	}
	// The cloud sees by this connection how long the operation lasts, also if this process is killed.
	defer underWay.Close()
	finished := false
	for _, step := range append(script, "finish") {
		word, argument, _ := strings.Cut(step, " ")
		var wait time.Duration
		if argument != "" {
			if wait, err = time.ParseDuration(argument); err != nil {
				return err
			}
		}
		switch word {
		case "sleep":
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return o.stopped()
			}
		case "work":
			time.Sleep(wait)
		case "linger":
			<-ctx.Done()
			time.Sleep(wait)
			return o.stopped()
		case "hang":
			forever()
		case "finish":
			if !finished {
				finished = true
				err = o.end("finished")
			}
		case "keep":
			keep()
		case "fail":
			if !finished {
				err = o.end("aborted")
			}
			return errors.Join(errors.New("it was told to fail"), err)
		case "crash":
			os.Exit(3)
		case "fork":
			err = fork(nil)
		case "cling":
			err = fork(os.Stderr)
		default:
			err = fmt.Errorf("there is no step %q", step)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (o operation) stopped() error {
	if err := o.end("aborted"); err != nil {
		return err
	}
	return fmt.Errorf("%s of %s was stopped", o.kind, o.name)
}

func (o operation) end(how string) error {
	answer, err := o.tell(http.MethodPut, "/"+how)
	if err == nil {
		err = answer.Close()
	}
	return err
}

// Not with the context of the request: what was stopped has to be told too.
func (o operation) tell(method string, suffix string) (io.ReadCloser, error) {
	request, err := http.NewRequest(method, fmt.Sprintf("%s/%s/%s%s", o.cloud, o.kind, o.name, suffix), nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("the cloud answers %s", answer.Status)
	}
	return answer.Body, nil
}

func (o operation) exists() (bool, error) {
	answer, err := http.Get(o.cloud + "/objects/" + o.name)
	if err != nil {
		return false, err
	}
	return answer.StatusCode == http.StatusOK, answer.Body.Close()
}

func fork(stderr *os.File) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	deaf := exec.Command(self, deafWord)
	deaf.Env = []string{}
	deaf.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if stderr != nil {
		deaf.Stderr = stderr
	}
	return deaf.Start()
}

func beDeaf() {
	signal.Ignore()
	forever()
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}
