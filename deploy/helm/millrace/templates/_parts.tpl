{{/* What both DaemonSets have in common. */}}

{{- define "millrace.labels" -}}
app.kubernetes.io/part-of: millrace
{{- end }}

{{- define "millrace.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The API server's address overrides that of its ClusterIP, which pods are told by itself. */}}
{{- define "millrace.endpoint" -}}
{{- if .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.apiServer.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.apiServer.port | quote }}
{{- end }}
{{- end }}

{{- define "millrace.pod" -}}
priorityClassName: system-node-critical
hostNetwork: true
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
tolerations:
  - operator: Exists
securityContext:
  seccompProfile:
    type: {{ .Values.seccompProfile }}
{{- end }}

{{- define "millrace.confined" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end }}

{{/* Containers have /proc/sys read-only, and pods in the network of their node may set no sysctl of
it. This is the one that the agents write. */}}
{{- define "millrace.reservedPorts" -}}
- name: reserved-ports
  hostPath:
    path: /proc/sys/net/ipv4/ip_local_reserved_ports
    type: File
{{- end }}
