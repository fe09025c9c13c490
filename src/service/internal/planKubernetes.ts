/** A Deployment (apps/v1). */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type { ServiceOutline } from "./planModel.ts"

/** A JSON string is a YAML string. */
const text = (value: string): string => JSON.stringify(value)

/** What names of objects allow (RFC 1123, a label). */
const label = (name: string): string =>
  name.toLowerCase().replace(/[^a-z0-9-]+/g, "-").slice(0, 63).replace(/^-+|-+$/g, "") || "service"

/** As the configuration reads it. */
const duration = (millis: number): string => millis % 1000 === 0 ? `${millis / 1000}s` : `${Math.round(millis)}ms`

export interface DeploymentOptions {
  readonly image: string
  readonly replicas: number
  readonly graceSeconds: number
  readonly probeSeconds: number
}

const variables = (rows: ReadonlyArray<readonly [name: string, value: string]>): string =>
  rows.map(([name, value]) => `            - name: ${name}\n              value: ${text(value)}\n`).join("")

export const deployment = (
  outline: ServiceOutline,
  { graceSeconds, image, probeSeconds, replicas }: DeploymentOptions
): string => {
  const { drainDelay, exitCodes, health, listen, name, prefix, startLimit } = outline
  const label_ = label(name)
  const port = listen.port === 0 ? 8000 : listen.port
  const probed = Option.getOrElse(Option.map(health, (address) => address.port), () => 0)
  // Probes need a port; a random one cannot be named here.
  const healthPort = probed === 0 || probed === port ? (port === 8081 ? 8082 : 8081) : probed
  // Two probes, but never most of the budget.
  const drainMillis = Math.max(
    Duration.toMillis(drainDelay),
    Math.min(2000 * probeSeconds, Duration.toMillis(outline.stopBudget) / 2)
  )
  return `apiVersion: apps/v1
kind: Deployment
metadata:
  name: ${text(label_)}
  labels:
    app.kubernetes.io/name: ${text(label_)}
spec:
  replicas: ${replicas}
  selector:
    matchLabels:
      app.kubernetes.io/name: ${text(label_)}
  strategy:
    rollingUpdate:
      maxUnavailable: 0
  template:
    metadata:
      labels:
        app.kubernetes.io/name: ${text(label_)}
    spec:
      # The stop budget, what parts may ask for on top, and time to say what hangs.
      terminationGracePeriodSeconds: ${graceSeconds}
      # Variables of other Services could be taken for those of this one.
      enableServiceLinks: false
      containers:
        - name: ${text(label_)}
          image: ${text(image)}
          ports:
            - name: main
              containerPort: ${port}
            - name: health
              containerPort: ${healthPort}
          env:
${
    variables([
      [`${prefix}_ENV`, "production"],
      [`${prefix}_RUNTIME_IP`, "0.0.0.0"],
      [`${prefix}_RUNTIME_PORT`, String(port)],
      [`${prefix}_HEALTHZ_PORT`, String(healthPort)]
    ])
  }            # Requests still come for a while after the pod has been told to end.
${variables([[`${prefix}_DRAIN_DELAY`, duration(drainMillis)]])}\
          envFrom:
            # ${prefix}_API, ${prefix}_PROJECT_ID and ${prefix}_API_KEY.
            - secretRef:
                name: ${text(label_)}
                optional: true
          startupProbe:
            httpGet: { path: /startupz, port: health }
            periodSeconds: 1
            failureThreshold: ${Math.ceil(Duration.toSeconds(startLimit))}
          readinessProbe:
            httpGet: { path: /readyz, port: health }
            periodSeconds: ${probeSeconds}
            failureThreshold: 1
          livenessProbe:
            httpGet: { path: /livez, port: health }
            periodSeconds: 10
            failureThreshold: 3
          # Why the service ended stands in /dev/termination-log, else its last lines do.
          terminationMessagePolicy: FallbackToLogsOnError
# In a Job with restartPolicy: Never, invalid configuration is not worth another try (podFailurePolicy of batch/v1):
#   podFailurePolicy:
#     rules:
#       - action: FailJob
#         onExitCodes:
#           operator: In
#           values: [${exitCodes.configInvalid}, ${exitCodes.resourceInput}]
`
}
