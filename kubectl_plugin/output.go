// -o json|yaml: objects as the API server gave them, for programs.
package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

type output string

func (o *output) bind(command *cobra.Command) {
	command.Flags().StringVarP((*string)(o), "output", "o", "", "json or yaml, for programs; without it text for people")
	complete(command, "output", "json", "yaml")
}

func (o output) check() error {
	switch o {
	case "", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output %s: use json or yaml", string(o))
}

func (o output) print(to io.Writer, object any) error {
	text, err := json.MarshalIndent(object, "", "    ")
	if err != nil {
		return err
	}
	if o == "yaml" {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return err
		}
		_, err = to.Write(text)
		return err
	}
	_, err = fmt.Fprintln(to, string(text))
	return err
}

func (o output) printObject(to io.Writer, object *unstructured.Unstructured) error {
	return o.print(to, withoutManagers(object.Object))
}

// printList is a List like kubectl's, of one kind or several.
func (o output) printList(to io.Writer, objects []unstructured.Unstructured) error {
	items := make([]any, len(objects))
	for i := range objects {
		items[i] = withoutManagers(objects[i].Object)
	}
	return o.print(to, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}

// withoutManagers: as kubectl shows objects, without who has written which field.
func withoutManagers(object map[string]any) map[string]any {
	unstructured.RemoveNestedField(object, "metadata", "managedFields")
	return object
}
