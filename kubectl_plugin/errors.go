// What went wrong, in words that say what to do. `about` notes what was tried, `explain` finds the words.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// refusal is an answer of the API server, with what was asked of it.
type refusal struct {
	cause                           error
	verb, resource, namespace, name string
}

func (r *refusal) Error() string { return r.cause.Error() }
func (r *refusal) Unwrap() error { return r.cause }

func about(err error, verb, resource, namespace, name string) error {
	if err == nil {
		return nil
	}
	return &refusal{err, verb, resource, namespace, name}
}

func (r *refusal) where() string {
	if r.namespace == "" {
		return "all namespaces"
	}
	return "namespace " + r.namespace
}

func explain(err error) string {
	var refused *refusal
	var address *url.Error
	switch {
	case clientcmd.IsEmptyConfig(err):
		return "there is no kubeconfig: set KUBECONFIG, or name one with --kubeconfig"
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept your credentials: log in again, or choose another --context"
	case errors.As(err, &refused) && apierrors.IsForbidden(err):
		return refused.forbidden()
	case errors.As(err, &refused) && apierrors.IsNotFound(err):
		return refused.notFound()
	case errors.As(err, &refused) && apierrors.IsAlreadyExists(err):
		return fmt.Sprintf("there is already a task %s in namespace %s, and a task runs once: give another --name, or "+
			"delete that one", refused.name, refused.namespace)
	case errors.As(err, &address) && isUnreachable(address):
		return fmt.Sprintf("the API server can't be reached (%v): `kubectl cluster-info` with the same --context shows "+
			"whether kubectl can", address)
	}
	return err.Error()
}

func isUnreachable(err *url.Error) bool {
	var network net.Error
	return err.Timeout() || errors.As(err.Err, &network)
}

func (r *refusal) forbidden() string {
	if details := detailsOf(r.cause); details != nil && len(details.Causes) > 0 {
		return r.cause.Error() // an admission policy, which says which verb is missing
	}
	return fmt.Sprintf("you may not %s %s in %s: ask whoever gives out roles there for that verb (docs/security.md has the "+
		"roles; `kubectl auth can-i --list` shows what you may)\n  %v", r.verb, r.resource, r.where(), r.cause)
}

func (r *refusal) notFound() string {
	switch missing := detailsOf(r.cause); {
	case missing == nil || missing.Name == "":
		return fmt.Sprintf("this cluster has no %s.terrahalt.dev: install Terrahalt, or choose another --context", r.resource)
	case missing.Kind == "namespaces":
		return fmt.Sprintf("there is no namespace %s: choose another one with -n", missing.Name)
	case r.resource != tasks.Resource:
		return r.cause.Error()
	}
	return fmt.Sprintf("there is no task %s in namespace %s: `kubectl terrahalt list -A` shows where there are some",
		r.name, r.namespace)
}

// isNamed: the API server knows the kind, and misses the object.
func isNamed(err error) bool {
	details := detailsOf(err)
	return details != nil && details.Name != ""
}

func detailsOf(err error) *metav1.StatusDetails {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return nil
	}
	return status.Status().Details
}
