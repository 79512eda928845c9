// The way to the API server, as kubectl has it: kubeconfig, contexts, credentials, proxies and the flags for them.
// The only file that makes clients, so whatever the user's RBAC refuses is refused here too.
package main

import (
	"context"
	"encoding/json"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways to log in that kubectl has
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/spf13/pflag"
)

const (
	pageSize     = 500
	fieldManager = "kubectl-terrahalt"
	// One user at one terminal; client-go's own 5 would delay the pages of a long list.
	requestsPerSecond = 50
)

// access holds what the flags say; `connect` comes before anything else.
type access struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides

	namespace string
	isGiven   bool // the namespace, by -n
	objects   dynamic.Interface
	core      rest.Interface
}

func (a *access) bind(flags *pflag.FlagSet) {
	a.rules = clientcmd.NewDefaultClientConfigLoadingRules()
	a.overrides = &clientcmd.ConfigOverrides{}
	flags.StringVar(&a.rules.ExplicitPath, "kubeconfig", "", "Path to the kubeconfig file to use")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.ContextOverrideFlags.Namespace.ShortName = "n"
	clientcmd.BindOverrideFlags(a.overrides, flags, names)
}

func (a *access) connect() error {
	loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(a.rules, a.overrides)
	config, err := loaded.ClientConfig()
	if err != nil {
		return err
	}
	if a.namespace, _, err = loaded.Namespace(); err != nil {
		return err
	}
	a.isGiven = a.overrides.Context.Namespace != ""
	config.QPS, config.Burst = requestsPerSecond, 2*requestsPerSecond
	config.UserAgent = fieldManager + "/" + version
	config.WarningHandler = rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	if a.objects, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	core := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, core)
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &core
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	a.core, err = rest.RESTClientFor(config)
	return err
}

func (a *access) tasks() dynamic.ResourceInterface {
	return a.objects.Resource(tasks).Namespace(a.namespace)
}

func (a *access) task(ctx context.Context, name string) (*Task, *unstructured.Unstructured, error) {
	object, err := a.tasks().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, about(err, "get", "terraformtasks", a.namespace, name)
	}
	task, err := taskOf(object)
	return task, object, err
}

// change patches the task's spec.
func (a *access) change(ctx context.Context, name string, spec map[string]any) (*unstructured.Unstructured, error) {
	patch, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		return nil, err
	}
	object, err := a.tasks().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return object, about(err, "patch", "terraformtasks", a.namespace, name)
}

// list reads all pages. An empty namespace is all of them.
func (a *access) list(
	ctx context.Context, what schema.GroupVersionResource, namespace, selector string,
) (*unstructured.UnstructuredList, error) {
	options := metav1.ListOptions{Limit: pageSize, LabelSelector: selector}
	var all *unstructured.UnstructuredList
	for {
		page, err := a.objects.Resource(what).Namespace(namespace).List(ctx, options)
		if err != nil {
			return nil, about(err, "list", what.Resource, namespace, "")
		}
		if all == nil {
			all = page
		} else {
			all.Items = append(all.Items, page.Items...)
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			all.SetContinue("")
			all.SetRemainingItemCount(nil)
			return all, nil
		}
	}
}

func (a *access) listTasks(ctx context.Context, namespace, selector string) ([]*Task, *unstructured.UnstructuredList, error) {
	list, err := a.list(ctx, tasks, namespace, selector)
	if err != nil {
		return nil, nil, err
	}
	found := make([]*Task, len(list.Items))
	for i := range list.Items {
		if found[i], err = taskOf(&list.Items[i]); err != nil {
			return nil, nil, err
		}
	}
	return found, list, nil
}
