{{/* What every pod of ours is. Takes root, role, and values of the workload as own; args and extra parts of it. */}}

{{- define "cdc-pipeline.podMetadata" -}}
labels:
  {{- include "cdc-pipeline.labels" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # cdc reads its file when it starts.
  checksum/config: {{ include "cdc-pipeline.config" . | sha256sum }}
  {{- if eq .root.Values.vault.mode "agent" }}
  {{- include "cdc-pipeline.vaultAnnotations" . | nindent 2 }}
  {{- end }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "cdc-pipeline.vaultAnnotations" -}}
vault.hashicorp.com/agent-inject: "true"
# Once: beside an agent that stays the pod of a job would never end.
vault.hashicorp.com/agent-pre-populate-only: "true"
vault.hashicorp.com/role: {{ .root.Values.vault.role | quote }}
vault.hashicorp.com/secret-volume-path: /etc/cdc/secrets
{{- range include "cdc-pipeline.secrets" . | fromJsonArray }}
{{- $secret := get $.root.Values.vault.secrets . }}
vault.hashicorp.com/agent-inject-secret-{{ . }}: {{ $secret.path | quote }}
vault.hashicorp.com/agent-inject-template-{{ . }}: {{ printf "{{- with secret %q -}}{{- .Data.data.%s -}}{{- end -}}" $secret.path $secret.field | quote }}
{{- end }}
{{- with .root.Values.vault.annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cdc-pipeline.podFields" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ default (include "cdc-pipeline.serviceAccountName" .root) .account }}
# Only Vault looks at it.
automountServiceAccountToken: {{ has $values.vault.mode (list "agent" "csi" "direct") }}
enableServiceLinks: false
{{- with $values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ default 65532 .own.runAsUser }}
  runAsGroup: {{ default 65532 .own.runAsGroup }}
  seccompProfile: {type: RuntimeDefault}
  {{- with $values.podSecurityContext }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with get $.own $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "cdc-pipeline.container" -}}
{{- $values := .root.Values -}}
name: cdc
image: {{ include "cdc-pipeline.image" (dict "root" .root "own" .own.image) }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
  {{- toYaml .args | nindent 2 }}
env:
  {{- with .extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- $secrets := include "cdc-pipeline.secrets" . | fromJsonArray }}
  {{- if has $values.vault.mode (list "none" "direct") }}
  {{- range $name := list "cassandra" "postgres" }}
  {{- $credential := get $values.credentials $name }}
  {{- if and (has $name $secrets) $credential.usernameKey }}
  - name: CDC__{{ upper $name }}__USERNAME
    valueFrom: {secretKeyRef: {name: {{ $credential.existingSecret | quote }}, key: {{ $credential.usernameKey | quote }}}}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with .own.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .own.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  {{- with .own.securityContext }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml .own.resources | nindent 2 }}
{{- with $values.lifecycle }}
lifecycle:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: cdc-config, mountPath: /etc/cdc/config, readOnly: true}
  {{- if ne $values.vault.mode "agent" }}
  - {name: cdc-secrets, mountPath: /etc/cdc/secrets, readOnly: true}
  {{- end }}
  {{- with .extraMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Ports and probes of what runs on. Liveness is the process alone: servers that are away are waited for, and a restart helps nobody. */}}
{{- define "cdc-pipeline.probes" -}}
{{- $timing := dict "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 6 -}}
ports:
  - {name: health, containerPort: {{ .root.Values.monitoring.prometheus.port }}}
  {{- if eq .role "reconciler" }}
  - {name: api, containerPort: 8080}
  {{- end }}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  {{- toYaml (merge (dict) (default dict .own.livenessProbe) $timing) | nindent 2 }}
readinessProbe:
  # A reconciler is ready when it can answer: which server is missing is part of the answer.
  httpGet: {path: {{ eq .role "reconciler" | ternary "/healthz" "/readyz" }}, port: health}
  {{- toYaml (merge (dict) (default dict .own.readinessProbe) (dict "failureThreshold" 2) $timing) | nindent 2 }}
{{- end -}}

{{- define "cdc-pipeline.volumes" -}}
{{- $values := .root.Values -}}
- name: cdc-config
  configMap: {name: {{ .configMap }}}
{{- if eq $values.vault.mode "csi" }}
- name: cdc-secrets
  csi:
    driver: secrets-store.csi.k8s.io
    readOnly: true
    volumeAttributes: {secretProviderClass: {{ include "cdc-pipeline.fullname" .root }}-{{ .role }}}
{{- else if ne $values.vault.mode "agent" }}
- name: cdc-secrets
  projected:
    # 0444, for a user whom only the pod knows
    defaultMode: 292
    sources:
      {{- range include "cdc-pipeline.secrets" . | fromJsonArray }}
      {{- $credential := get $values.credentials . }}
      - secret:
          name: {{ $credential.existingSecret | quote }}
          items: [{key: {{ default $credential.passwordKey $credential.tokenKey | quote }}, path: {{ . }}}]
      {{- end }}
{{- end }}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
