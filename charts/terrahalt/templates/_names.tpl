{{/* terrahalt-operator, or RELEASE-terrahalt-operator for a release of another name. */}}
{{- define "terrahalt.operator" -}}
{{- if contains "terrahalt" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-operator
{{- else -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}-terrahalt-operator
{{- end -}}
{{- end }}

{{/* Of what belongs to the cluster: two releases of one name may live in two namespaces. */}}
{{- define "terrahalt.clusterName" -}}
{{ .Release.Namespace }}:{{ include "terrahalt.operator" . }}
{{- end }}

{{- define "terrahalt.selector" -}}
app.kubernetes.io/name: terrahalt-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
Labels and annotations of an object. Takes root, the context; name, of the part; and labels and annotations that it
has beside those that all objects have. Ours win, so that nothing loses what it is found by.
*/}}
{{- define "terrahalt.metadata" -}}
{{- $ours := dict
  "app.kubernetes.io/name" .name
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/part-of" "terrahalt"
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version)
-}}
labels:
  {{- merge $ours (.labels | default dict) .root.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Takes image: {repository, tag, reference}, and the context. Empty: neither repository nor reference. A whole
reference is taken as it is, and a repository from imageRegistry, where there is one.
*/}}
{{- define "terrahalt.image" -}}
{{- if .image.reference -}}
{{ .image.reference }}
{{- else if .image.repository -}}
{{- $repository := .image.repository }}
{{- with .root.Values.imageRegistry }}
{{- /* What has a dot, a colon or the name localhost before its first slash names a registry. */}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}
{{- end }}
{{- $repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Takes the context, and the name of the policy among those of this installation. */}}
{{- define "terrahalt.policyName" -}}
{{ .name }}.{{ include "terrahalt.operator" .root }}.{{ .root.Release.Namespace }}
{{- end }}

{{/* Binds a policy to the namespaces that are served: another installation's operator has its own. */}}
{{- define "terrahalt.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "terrahalt.policyName" . }}
  {{- include "terrahalt.metadata" (dict "root" .root "name" "terrahalt-operator") | nindent 2 }}
spec:
  policyName: {{ include "terrahalt.policyName" . }}
  validationActions: [Deny]
  {{- with .root.Values.watchNamespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        - key: kubernetes.io/metadata.name
          operator: In
          values:
            {{- toYaml . | nindent 12 }}
  {{- end }}
{{- end }}

{{/* What each pod of the operator's image has: nobody's user, and where it may be pulled and run. */}}
{{- define "terrahalt.podSpec" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.operator.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Of its container. */}}
{{- define "terrahalt.containerSpec" -}}
image: {{ include "terrahalt.image" (dict "root" . "image" .Values.operator.image) | quote }}
imagePullPolicy: {{ .Values.operator.image.pullPolicy }}
resources:
  {{- toYaml .Values.operator.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}
