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

{{/* Takes the context, and the name of the part. */}}
{{- define "terrahalt.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: terrahalt
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
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
  labels:
    {{- include "terrahalt.labels" (dict "root" .root "name" "terrahalt-operator") | nindent 4 }}
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
