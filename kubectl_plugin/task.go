// The part of a TerraformTask that is read here, in the API's own words; crds/terraformtasks.yaml has all of it.
package main

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	tasks = schema.GroupVersionResource{Group: "terrahalt.dev", Version: "v1alpha1", Resource: "terraformtasks"}
	pools = schema.GroupVersionResource{Group: "terrahalt.dev", Version: "v1alpha1", Resource: "agentpools"}
	pods  = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
)

const (
	queued           = "Queued"
	awaitingApproval = "AwaitingApproval"
	cancelling       = "Cancelling"
	succeeded        = "Succeeded"
	failed           = "Failed"
	cancelled        = "Cancelled"

	taskLabel     = "terrahalt.dev/task"
	lastTaskLabel = "terrahalt.dev/last-task"
	poolLabel     = "terrahalt.dev/pool"
	agentSelector = "app.kubernetes.io/name=terrahalt-agent"
	container     = "agent"
)

// moment is a time of the API; empty: not yet.
type moment string

func (m moment) time() time.Time {
	at, err := time.Parse(time.RFC3339Nano, string(m))
	if err != nil {
		return time.Time{}
	}
	return at
}

type Task struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec   TaskSpec   `json:"spec"`
	Status TaskStatus `json:"status"`
}

type TaskSpec struct {
	Action    string `json:"action"`
	Workspace string `json:"workspace"`
	Backend   struct {
		Type string `json:"type"`
	} `json:"backend"`
	Approval               string `json:"approval"`
	ApprovedPlanDigest     string `json:"approvedPlanDigest"`
	ApprovalTimeoutSeconds int64  `json:"approvalTimeoutSeconds"`
	Cancel                 bool   `json:"cancel"`
	Priority               int64  `json:"priority"`
	PoolRef                struct {
		Name string `json:"name"`
	} `json:"poolRef"`
}

type TaskStatus struct {
	Phase      string      `json:"phase"`
	Conditions []Condition `json:"conditions"`
	Message    string      `json:"message"`
	Queue      *Queue      `json:"queue"`
	Agent      struct {
		PodName string `json:"podName"`
	} `json:"agent"`
	RunID  string `json:"runID"`
	Source struct {
		Commit string `json:"commit"`
	} `json:"source"`
	Plan     *Plan `json:"plan"`
	Progress struct {
		Current string `json:"current"`
		Summary string `json:"summary"`
	} `json:"progress"`
	Outputs *Outputs `json:"outputs"`
	Log     struct {
		SecretName string `json:"secretName"`
	} `json:"log"`
	Cancel     *Cancel `json:"cancel"`
	Result     *Result `json:"result"`
	StartedAt  moment  `json:"startedAt"`
	FinishedAt moment  `json:"finishedAt"`
}

type Condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	LastTransitionTime moment `json:"lastTransitionTime"`
}

type Queue struct {
	Position   int64  `json:"position"`
	WaitingFor string `json:"waitingFor"`
}

type Plan struct {
	Add     int64  `json:"add"`
	Change  int64  `json:"change"`
	Destroy int64  `json:"destroy"`
	Digest  string `json:"digest"`
	ReadyAt moment `json:"readyAt"`
	RunID   string `json:"runID"`
}

type Outputs struct {
	SecretName string `json:"secretName"`
	Count      int64  `json:"count"`
	Problem    string `json:"problem"`
}

func (o *Outputs) String() string {
	if o.Problem != "" {
		return fmt.Sprintf("not in Secret %s: %s", o.SecretName, o.Problem)
	}
	return fmt.Sprintf("%d in Secret %s", o.Count, o.SecretName)
}

type Cancel struct {
	By           string `json:"by"`
	SupersededBy string `json:"supersededBy"`
	RequestedAt  moment `json:"requestedAt"`
	SentAt       moment `json:"sentAt"`
	SignalledAt  moment `json:"signalledAt"`
	ExitedAt     moment `json:"exitedAt"`
	SweptAt      moment `json:"sweptAt"`
	Rung         string `json:"rung"`
}

type Result struct {
	ExitCode         *int64   `json:"exitCode"`
	Reason           string   `json:"reason"`
	State            string   `json:"state"`
	Lock             string   `json:"lock"`
	LockCommand      string   `json:"lockCommand"`
	Forced           bool     `json:"forced"`
	OpenAddresses    []string `json:"openAddresses"`
	OpenAddressCount int64    `json:"openAddressCount"`
}

func taskOf(object *unstructured.Unstructured) (*Task, error) {
	task := &Task{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, task); err != nil {
		return nil, fmt.Errorf("TerraformTask %s is not as this version of the plugin knows them: %w", object.GetName(), err)
	}
	return task, nil
}

func (t *Task) condition(kind string) *Condition {
	for i := range t.Status.Conditions {
		if t.Status.Conditions[i].Type == kind {
			return &t.Status.Conditions[i]
		}
	}
	return nil
}

// hasEnded: nothing of it will change any more.
func (t *Task) hasEnded() bool {
	finished := t.condition("Finished")
	return finished != nil && finished.Status == "True"
}

// phase is the word for people; a task that the operator has not seen yet waits.
func (t *Task) phase() string {
	if t.Status.Phase == "" {
		return queued
	}
	return t.Status.Phase
}

// runs are those that it has had so far, in their order.
func (t *Task) runs() []string {
	var runs []string
	if t.Status.Plan != nil && t.Status.Plan.RunID != "" {
		runs = append(runs, t.Status.Plan.RunID)
	}
	if t.Status.RunID != "" {
		runs = append(runs, t.Status.RunID)
	}
	return runs
}

func (t *Task) pool() string {
	if t.Spec.PoolRef.Name == "" {
		return "default"
	}
	return t.Spec.PoolRef.Name
}

func (t *Task) reason() string {
	if t.Status.Result == nil {
		return ""
	}
	return t.Status.Result.Reason
}

// needsAttention: its state is not complete, or its lock not free, as far as anybody knows.
func (t *Task) needsAttention() bool {
	result := t.Status.Result
	if result == nil {
		return false
	}
	isWell := (result.State == "" || result.State == "Complete") && (result.Lock == "" || result.Lock == "Released")
	return !isWell
}

func (p *Plan) String() string {
	return fmt.Sprintf("%d to add, %d to change, %d to destroy", p.Add, p.Change, p.Destroy)
}

// canceller says who asked for its cancel; empty: nobody has.
func (t *Task) canceller() string {
	cancel := t.Status.Cancel
	if cancel == nil {
		if t.Spec.Cancel {
			return "User" + t.writerOfCancel()
		}
		return ""
	}
	if cancel.SupersededBy != "" {
		return fmt.Sprintf("%s, for task %s", cancel.By, cancel.SupersededBy)
	}
	if cancel.By == "User" {
		return cancel.By + t.writerOfCancel()
	}
	return cancel.By
}

// writerOfCancel is the program that set spec.cancel, as far as the API server has noted it.
func (t *Task) writerOfCancel() string {
	for _, entry := range t.ManagedFields {
		if entry.FieldsV1 != nil && strings.Contains(entry.FieldsV1.GetRawString(), `"f:cancel":{}`) && entry.Subresource == "" {
			return ", with " + entry.Manager
		}
	}
	return ""
}
