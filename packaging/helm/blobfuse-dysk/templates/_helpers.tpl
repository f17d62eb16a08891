{{- define "dysk.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "dysk.labels" -}}
app.kubernetes.io/name: blobfuse-dysk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "dysk.selector" -}}
app.kubernetes.io/name: blobfuse-dysk
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dysk.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* A sidecar's image: (list . "provisioner") */ -}}
{{- define "dysk.sidecar" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.sidecars.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ index $root.Values.sidecars (index . 1) }}
{{- end -}}

{{- /* What a sidecar may do on its machine: nothing. */ -}}
{{- define "dysk.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}
