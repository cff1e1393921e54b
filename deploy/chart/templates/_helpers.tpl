{{/* The name of the objects. */}}
{{- define "opentunnel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "opentunnel.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "opentunnel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is missing: with serviceAccount.create=false it names the ServiceAccount that is there" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What the Deployment finds its Pods by: it can never be changed. */}}
{{- define "opentunnel.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of every object. */}}
{{- define "opentunnel.labels" -}}
{{ include "opentunnel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The namespaces of watchNamespace, as JSON. */}}
{{- define "opentunnel.watched" -}}
{{- $names := list -}}
{{- range splitList "," .Values.watchNamespace -}}
{{- with trim . }}{{ $names = append $names . }}{{ end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* The rights in a namespace, or in all. */}}
{{- define "opentunnel.rules" -}}
- apiGroups: [opentunnel.dev]
  resources: [tunnels]
  verbs: [get, list, watch, patch]
- apiGroups: [opentunnel.dev]
  resources: [tunnels/status]
  verbs: [patch]
- apiGroups: [opentunnel.dev]
  resources: [tunnels/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, update, delete]
{{- if .Values.watchSecrets }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [list, watch]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* The operator's environment, as in the ConfigMap. */}}
{{- define "opentunnel.environment" -}}
{{- $env := dict "AWS_REGION" (required "aws.region is missing: name the AWS region that the operator serves, as --set aws.region=eu-central-1" .Values.aws.region) -}}
{{- with .Values.aws.endpoint_url }}{{ $_ := set $env "AWS_ENDPOINT_URL_IOTSECURETUNNELING" . }}{{ end -}}
{{- if .Values.aws.credentials.secretName -}}
{{- $_ := set $env "AWS_SHARED_CREDENTIALS_FILE" "/var/run/secrets/aws/credentials" -}}
{{- $_ := set $env "AWS_PROFILE" .Values.aws.credentials.profile -}}
{{- end -}}
{{- $watched := include "opentunnel.watched" . | fromJsonArray -}}
{{- if $watched -}}
{{- $_ := set $env "OPENTUNNEL_WATCH_NAMESPACE" (join "," $watched) -}}
{{- $_ := required "clusterID is missing: with watchNamespace the operator has no right to read its default. Give it the UID of namespace kube-system, as --set clusterID=$(kubectl get namespace kube-system -o jsonpath={.metadata.uid})" .Values.clusterID -}}
{{- end -}}
{{- with .Values.clusterID }}{{ $_ := set $env "OPENTUNNEL_CLUSTER_ID" . }}{{ end -}}
{{- if not .Values.watchSecrets }}{{ $_ := set $env "OPENTUNNEL_WATCH_SECRETS" "false" }}{{ end -}}
{{- if ne .Values.log.format "text" }}{{ $_ := set $env "OPENTUNNEL_LOG_FORMAT" .Values.log.format }}{{ end -}}
{{- if ne .Values.log.filter "info" }}{{ $_ := set $env "OPENTUNNEL_LOG_FILTER" .Values.log.filter }}{{ end -}}
{{- range $name, $value := .Values.settings }}{{ $_ := set $env $name (toString $value) }}{{ end -}}
{{- toYaml $env -}}
{{- end -}}
