// kubectl-terrahalt, which kubectl runs as `kubectl terrahalt`: TerraformTasks for people at a terminal.
//
// It talks to the API server only, as the user of the kubeconfig, and never to the operator. What it knows of a task
// it reads from the task's status; it decides nothing about a run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// version is set by the build.
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(arguments []string) int {
	root := newRoot()
	root.SetArgs(arguments)
	err := root.ExecuteContext(context.Background())
	var ended exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return int(ended)
	}
	fmt.Fprintln(os.Stderr, "error: "+explain(err))
	return exitError
}
