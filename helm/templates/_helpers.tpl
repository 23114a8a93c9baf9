{{- define "cdc-pipeline.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "cdc-pipeline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "cdc-pipeline.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "cdc-pipeline.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a role is called in Kubernetes: sinks by the name that guides and scripts use, whatever the release is called. */}}
{{- define "cdc-pipeline.workload" -}}
{{- if eq .role "sink" -}}kafka-connect{{- else -}}{{ include "cdc-pipeline.fullname" .root }}-{{ .role }}{{- end -}}
{{- end -}}

{{- define "cdc-pipeline.selectorLabels" -}}
app.kubernetes.io/name: {{ if eq .role "sink" }}kafka-connect{{ else }}{{ include "cdc-pipeline.name" .root }}{{ end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "cdc-pipeline.labels" -}}
{{ include "cdc-pipeline.selectorLabels" . }}
app.kubernetes.io/part-of: cdc-pipeline
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Of objects that belong to no role. */}}
{{- define "cdc-pipeline.commonLabels" -}}
{{ include "cdc-pipeline.labels" (dict "root" . "role" "common") }}
{{- end -}}

{{- define "cdc-pipeline.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (default dict .own) -}}
{{- with .root.Values.global.imageRegistry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "cdc-pipeline.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cdc-pipeline.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The role whose sections a job before a release, and a test, have: who writes to PostgreSQL. */}}
{{- define "cdc-pipeline.writer" -}}
{{- if .Values.config.kafka }}sink{{ else }}agent{{ end -}}
{{- end -}}

{{/* Secrets of a role, as a list. */}}
{{- define "cdc-pipeline.secrets" -}}
{{- $values := .root.Values -}}
{{- $writes := or (ne .role "agent") (not $values.config.kafka) -}}
{{- $inVault := include "cdc-pipeline.vaultConfig" .root | fromJson -}}
{{- $hasCassandra := ternary $values.vault.secrets.cassandra.path $values.credentials.cassandra.existingSecret (has $values.vault.mode (list "agent" "csi")) -}}
{{- $secrets := list "metrics" -}}
{{- if eq .role "reconciler" }}{{ $secrets = append $secrets "api" }}{{ end -}}
{{- if and $writes (not $inVault.postgres) }}{{ $secrets = append $secrets "postgres" }}{{ end -}}
{{- if and (ne .role "sink") $hasCassandra (not $inVault.cassandra) }}{{ $secrets = append $secrets "cassandra" }}{{ end -}}
{{- toJson $secrets -}}
{{- end -}}

{{- define "cdc-pipeline.stateDirectory" -}}
{{- $agent := .Values.agent -}}
{{- $own := ternary (printf "%s/cdc-agent" $agent.sidecar.volume.mountPath) "/var/lib/cdc" (eq $agent.kind "sidecar") -}}
{{- default $own $agent.stateDirectory -}}
{{- end -}}

{{/* Section `vault` as it is; only where cdc asks Vault itself. What it names there is not asked for elsewhere. */}}
{{- define "cdc-pipeline.vaultConfig" -}}
{{- if eq .Values.vault.mode "direct" -}}
{{- toJson .Values.vault.config -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* The configuration of a role: the sections it needs, and no path of a secret that it does not. */}}
{{- define "cdc-pipeline.config" -}}
{{- $values := .root.Values -}}
{{- $given := $values.config -}}
{{- $secrets := include "cdc-pipeline.secrets" . | fromJsonArray -}}
{{- $vault := include "cdc-pipeline.vaultConfig" .root | fromJson -}}
{{- $writes := or (ne .role "agent") (not $given.kafka) -}}
{{- $config := dict -}}
{{- if ne .role "sink" -}}
  {{- $cassandra := deepCopy (default dict $given.cassandra) -}}
  {{- $_ := set $cassandra "contact_points" (list (ternary $values.cassandra.contactPoint "127.0.0.1:9042" (eq .role "reconciler"))) -}}
  {{- if $vault.cassandra }}{{ $cassandra = omit $cassandra "username" }}{{ end -}}
  {{- if has "cassandra" $secrets }}{{ $_ := set $cassandra "password_file" "/etc/cdc/secrets/cassandra" }}{{ end -}}
  {{- $_ := set $config "cassandra" $cassandra -}}
  {{- $source := deepCopy $given.source -}}
  {{- $_ := set $source "cdc_raw_directory" $values.agent.cdcRawDirectory -}}
  {{- $_ := set $source "state_directory" (include "cdc-pipeline.stateDirectory" .root) -}}
  {{- $_ := set $config "source" $source -}}
{{- end -}}
{{- if $given.kafka }}{{ $_ := set $config "kafka" $given.kafka }}{{ end -}}
{{- if $writes -}}
  {{- $postgres := deepCopy $given.postgres -}}
  {{- if $vault.postgres }}{{ $postgres = omit $postgres "username" }}{{ end -}}
  {{- if has "postgres" $secrets }}{{ $_ := set $postgres "password_file" "/etc/cdc/secrets/postgres" }}{{ end -}}
  {{- $_ := set $config "postgres" $postgres -}}
{{- end -}}
{{- if and $writes (ne .role "reconciler") $given.sink }}{{ $_ := set $config "sink" $given.sink }}{{ end -}}
{{- if eq .role "reconciler" -}}
  {{- $own := dict "listen" "0.0.0.0:8080" "token_file" "/etc/cdc/secrets/api" -}}
  {{- $_ := set $config "reconciler" (merge $own (deepCopy (default dict $given.reconciler))) -}}
{{- end -}}
{{- $remote := dict "listen" (printf "0.0.0.0:%v" $values.monitoring.prometheus.port) "token_file" "/etc/cdc/secrets/metrics" -}}
{{- $_ := set $config "admin" (dict "remote" $remote) -}}
{{- if $given.log }}{{ $_ := set $config "log" $given.log }}{{ end -}}
{{- $_ := set $config "stop_timeout_ms" $given.stop_timeout_ms -}}
{{- with $vault }}{{ $_ := set $config "vault" . }}{{ end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "cdc-pipeline.gracePeriod" -}}
{{- add (div (int64 .Values.config.stop_timeout_ms) 1000) 10 -}}
{{- end -}}

{{/* Ports out of host:port texts. */}}
{{- define "cdc-pipeline.port" -}}
{{- $last := splitList ":" . | last -}}
{{- if regexMatch "^[0-9]+$" $last }}{{ $last }}{{ end -}}
{{- end -}}
