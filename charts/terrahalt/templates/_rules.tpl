{{/*
What the operator may do where tasks live. It reads not one Secret: what a task refers to is read by its agent. It
makes one from the log of a pod whose agent ended without keeping it.
ConfigMaps: the anchor that owns a pool's agent pods. NetworkPolicies: one for each pool; they go with its anchor.
Budgets: a drain waits for the runs of a pool that wants it. Pools are patched for their finalizer. Leases: the lock
of a state whose agent was lost. Tasks are deleted when their ttlSecondsAfterFinished is over, pools by `helm uninstall`.
*/}}
{{- define "terrahalt.taskRules" -}}
- apiGroups: [terrahalt.dev]
  resources: [terraformtasks]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [terrahalt.dev]
  resources: [agentpools]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [terrahalt.dev]
  resources: [terraformtasks/status, agentpools/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, create, delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/*
What an agent may do, and so terraform and whoever writes its tasks: the state and its lock (terraform's
kubernetes backend), the Secrets and ConfigMaps that tasks refer to, and what the installation adds.
*/}}
{{- define "terrahalt.agentRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, create, update, patch, delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
{{- with .Values.agent.extraRules }}
{{ toYaml . }}
{{- end }}
{{- end }}
