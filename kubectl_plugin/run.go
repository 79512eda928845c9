// `run`: makes a task of a source and flags, creates it, and with --wait stays until it has ended.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	documents "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

type order struct {
	file, configMap, ref, path               string
	name, action, workspace, pool, approval  string
	variables, settings                      []string
	environment, settingsFrom, variablesFrom []string
	backend                                  string
}

func newRun(at *access) *cobra.Command {
	var out output
	var isWaiting, isDry bool
	var timeout time.Duration
	order := &order{}
	command := &cobra.Command{
		Use:   "run [FOLDER | FILE | GIT-ADDRESS]",
		Short: "Create a task from a folder, a file or a git repository",
		Long: `Creates a task. Its source is a folder or .tf file of this machine (at most 64 files of together 128 KiB, readable by
whoever may read the task), a git repository, or a TerraformTask in a YAML file, over which the flags win.

With --wait Ctrl-C asks whether to cancel the task, to go on waiting or to detach. Exit codes then: 0 Succeeded,
4 Failed, 5 Cancelled, 6 its state or lock needs a look, 2 not ended when --timeout was over or you detached,
7 deleted, 130 interrupted where nobody could be asked, 1 the command failed.`,
		Example: `  kubectl terrahalt run ./network --workspace network --action apply --wait
  kubectl terrahalt run https://git.example.com/net.git//envs/prod?ref=v1.2.0 --workspace network
  kubectl terrahalt run -f examples/apply.yaml --wait`,
		Args: cobra.MaximumNArgs(1),
	}
	flags := command.Flags()
	flags.StringVarP(&order.file, "filename", "f", "", "A file with a TerraformTask; - is standard input")
	flags.StringVar(&order.configMap, "config-map", "", "The files are the keys of this ConfigMap")
	flags.StringVar(&order.ref, "ref", "", "The branch, tag or commit of a git repository")
	flags.StringVar(&order.path, "path", "", "The folder of a git repository to run in")
	flags.StringVar(&order.name, "name", "", "The task's name; without it one is made from the workspace")
	flags.StringVar(&order.action, "action", "", "plan, apply or destroy (default plan)")
	flags.StringVarP(&order.workspace, "workspace", "w", "", "The state to work on")
	flags.StringVar(&order.pool, "pool", "", "The pool whose agents run it (default default)")
	flags.StringVar(&order.approval, "approval", "", "automatic, or manual: the plan waits for `kubectl terrahalt approve`")
	flags.StringArrayVar(&order.variables, "var", nil, "A variable, like region=eu-west-1, or with a JSON list or object: zones=[\"a\",\"b\"]")
	flags.StringArrayVar(&order.variablesFrom, "var-from", nil, "Variables of terraform: secret/NAME or configmap/NAME")
	flags.StringArrayVar(&order.environment, "env-from", nil, "Environment of terraform: secret/NAME or configmap/NAME")
	flags.StringVar(&order.backend, "backend", "", "The type of the backend, like s3 (default kubernetes)")
	flags.StringArrayVar(&order.settings, "backend-config", nil, "A setting of the backend, like bucket=states")
	flags.StringArrayVar(&order.settingsFrom, "backend-config-from", nil, "Settings of the backend: secret/NAME or configmap/NAME")
	flags.BoolVar(&isWaiting, "wait", false, "Stay until the task has ended")
	flags.DurationVar(&timeout, "timeout", 0, "With --wait: how long, like 30m; 0 is until the end")
	flags.BoolVar(&isDry, "dry-run", false, "Only print the task, as YAML or as --output says")
	flags.Lookup("approval").Usage = "automatic, or manual: the plan waits for an approval"
	complete(command, "action", "plan", "apply", "destroy")
	complete(command, "approval", "automatic", "manual")
	complete(command, "backend", "azurerm", "consul", "cos", "gcs", "http", "kubernetes", "oci", "oss", "pg", "s3")
	out.bind(command)
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if err := out.check(); err != nil {
			return err
		}
		task, err := order.task(arguments)
		if err != nil {
			return err
		}
		if isDry {
			if out == "" {
				out = "yaml"
			}
			return out.print(os.Stdout, task.Object)
		}
		if err := at.connect(); err != nil {
			return err
		}
		return order.create(command, at, task, out, isWaiting, timeout)
	}
	return command
}

func (o *order) create(
	command *cobra.Command, at *access, object *unstructured.Unstructured, out output, isWaiting bool, timeout time.Duration,
) error {
	if given := object.GetNamespace(); given != "" {
		if at.isGiven && given != at.namespace {
			return fmt.Errorf("the file's task is for namespace %s, and --namespace says %s: leave one of them out", given, at.namespace)
		}
		at.namespace = given
	}
	ctx, name := command.Context(), object.GetName()
	made, err := at.tasks().Create(ctx, object, metav1.CreateOptions{FieldManager: fieldManager, FieldValidation: "Strict"})
	if err != nil {
		return about(err, "create", "terraformtasks", at.namespace, name)
	}
	task, err := taskOf(made)
	if err != nil {
		return err
	}
	switch {
	case isWaiting:
		fmt.Fprintf(os.Stderr, "task %s created in namespace %s\n", task.Name, task.Namespace)
		waiting := waiting{at: at, output: out, asked: succeeded, timeout: timeout}
		return waiting.until(ctx, task)
	case out != "":
		return out.printObject(os.Stdout, made)
	}
	fmt.Printf("task %s created; to see it: kubectl terrahalt logs -f %s -n %s\n", task.Name, task.Name, task.Namespace)
	return nil
}

// task is what is to be created.
func (o *order) task(arguments []string) (*unstructured.Unstructured, error) {
	object, source, err := o.origin(arguments)
	if err != nil {
		return nil, err
	}
	spec, _, err := unstructured.NestedMap(object.Object, "spec")
	if err != nil {
		return nil, err
	}
	if spec == nil {
		spec = map[string]any{}
	}
	if source != nil {
		spec["source"] = source
	}
	if err := o.git(spec); err != nil {
		return nil, err
	}
	if err := o.fill(spec); err != nil {
		return nil, err
	}
	object.Object["spec"] = spec
	workspace, _ := spec["workspace"].(string)
	if workspace == "" {
		return nil, errors.New("say which state to work on: --workspace NAME. Tasks of one workspace run one after another; " +
			"another name is another, empty state")
	}
	switch {
	case o.name != "":
		object.SetName(o.name)
		object.SetGenerateName("")
	case object.GetName() == "" && object.GetGenerateName() == "":
		object.SetGenerateName(workspace + "-")
	}
	return object, nil
}

// origin is where everything comes from that no flag says: a task of a file, or an empty one and its source.
func (o *order) origin(arguments []string) (*unstructured.Unstructured, map[string]any, error) {
	given := append([]string{}, arguments...)
	if o.file != "" {
		given = append(given, o.file)
	}
	if o.configMap != "" {
		if len(given) > 0 {
			return nil, nil, fmt.Errorf("%s and --config-map: give one of them", given[0])
		}
		return empty(), map[string]any{"configMapRef": map[string]any{"name": o.configMap}}, nil
	}
	switch len(given) {
	case 0:
		return nil, nil, errors.New("say what to run: a folder, a file, a git address (https://...), or -f FILE with a TerraformTask")
	case 2:
		return nil, nil, fmt.Errorf("%s and --filename: give one of them", given[0])
	}
	what := given[0]
	if isGit(what) {
		source, err := gitSource(what)
		return empty(), source, err
	}
	if isManifest(what) {
		object, err := readManifest(what)
		return object, nil, err
	}
	if _, err := os.Stat(what); err != nil {
		return nil, nil, fmt.Errorf("%w: give a folder, a file, or a git address that begins with https://", err)
	}
	source, err := inlineSource(what)
	return empty(), source, err
}

func empty() *unstructured.Unstructured {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetAPIVersion(tasks.GroupVersion().String())
	object.SetKind("TerraformTask")
	return object
}

func isManifest(path string) bool {
	if path == "-" {
		return true
	}
	isJSON := strings.HasSuffix(path, ".json") && !strings.HasSuffix(path, ".tf.json")
	return isJSON || strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".yml")
}

// readManifest takes the one TerraformTask of a file.
func readManifest(path string) (*unstructured.Unstructured, error) {
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(os.Stdin)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	var found *unstructured.Unstructured
	reader := documents.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if len(object.Object) == 0 {
			continue
		}
		if object.GetKind() != "TerraformTask" || object.GetAPIVersion() != tasks.GroupVersion().String() {
			return nil, fmt.Errorf("%s holds a %s too: create that with kubectl, and keep the TerraformTask in a file of its own",
				path, object.GetKind())
		}
		if found != nil {
			return nil, fmt.Errorf("%s holds more than one TerraformTask: give each a file of its own", path)
		}
		found = object
	}
	if found == nil {
		return nil, fmt.Errorf("%s holds no TerraformTask", path)
	}
	return found, nil
}

// git adds what the flags say about a git source.
func (o *order) git(spec map[string]any) error {
	for field, value := range map[string]string{"ref": o.ref, "path": o.path} {
		if value == "" {
			continue
		}
		if _, isThere, _ := unstructured.NestedMap(spec, "source", "git"); !isThere {
			return fmt.Errorf("--%s is for a git repository, and the source is none", field)
		}
		if err := unstructured.SetNestedField(spec, value, "source", "git", field); err != nil {
			return err
		}
	}
	return nil
}

// fill sets what the flags say.
func (o *order) fill(spec map[string]any) error {
	action, err := word(o.action, "action", "Plan", "Apply", "Destroy")
	if err != nil {
		return err
	}
	if action == "" && spec["action"] == nil {
		action = "Plan"
	}
	approval, err := word(o.approval, "approval", "Automatic", "Manual")
	if err != nil {
		return err
	}
	for field, value := range map[string]string{"action": action, "approval": approval, "workspace": o.workspace} {
		if value != "" {
			spec[field] = value
		}
	}
	if o.pool != "" {
		spec["poolRef"] = map[string]any{"name": o.pool}
	}
	if err := setPairs(spec, o.variables, "var", "variables"); err != nil {
		return err
	}
	if o.backend != "" {
		if err := unstructured.SetNestedField(spec, o.backend, "backend", "type"); err != nil {
			return err
		}
	}
	if err := setPairs(spec, o.settings, "backend-config", "backend", "config"); err != nil {
		return err
	}
	if err := addReferences(spec, o.settingsFrom, "backend-config-from", "backend", "configFrom"); err != nil {
		return err
	}
	if err := addReferences(spec, o.variablesFrom, "var-from", "variablesFrom"); err != nil {
		return err
	}
	return addReferences(spec, o.environment, "env-from", "envFrom")
}

// word is one of the API's, however it is written.
func word(given, flag string, words ...string) (string, error) {
	if given == "" {
		return "", nil
	}
	for _, each := range words {
		if strings.EqualFold(given, each) {
			return each, nil
		}
	}
	return "", fmt.Errorf("--%s %s: use one of %s", flag, given, strings.ToLower(strings.Join(words, ", ")))
}

// setPairs puts NAME=VALUE into a map of the spec.
func setPairs(spec map[string]any, pairs []string, flag string, fields ...string) error {
	for _, pair := range pairs {
		name, value, isPair := strings.Cut(pair, "=")
		if !isPair || name == "" {
			return fmt.Errorf("--%s %s: write it as NAME=VALUE", flag, pair)
		}
		path := append(append([]string{}, fields...), name)
		if err := unstructured.SetNestedField(spec, valueOf(value), path...); err != nil {
			return err
		}
	}
	return nil
}

// valueOf is a JSON list or object as such, and all else text, which terraform converts to the variable's type.
func valueOf(text string) any {
	trimmed := strings.TrimSpace(text)
	if !strings.HasPrefix(trimmed, "[") && !strings.HasPrefix(trimmed, "{") {
		return text
	}
	object := &unstructured.Unstructured{}
	wrapped, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Value", "value": json.RawMessage(trimmed)})
	if len(wrapped) == 0 || object.UnmarshalJSON(wrapped) != nil {
		return text
	}
	return object.Object["value"]
}

// addReferences puts secret/NAME and configmap/NAME into a list of the spec.
func addReferences(spec map[string]any, references []string, flag string, fields ...string) error {
	if len(references) == 0 {
		return nil
	}
	list, _, err := unstructured.NestedSlice(spec, fields...)
	if err != nil {
		return err
	}
	for _, reference := range references {
		kind, name, _ := strings.Cut(reference, "/")
		field := map[string]string{"secret": "secretRef", "configmap": "configMapRef"}[strings.ToLower(kind)]
		if field == "" || name == "" {
			return fmt.Errorf("--%s %s: write it as secret/NAME or configmap/NAME", flag, reference)
		}
		list = append(list, map[string]any{field: map[string]any{"name": name}})
	}
	return unstructured.SetNestedSlice(spec, list, fields...)
}
