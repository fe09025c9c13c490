/**
 * What a service measures of itself. It is in Effect's registry, so who asks `/metrics` and a collector both get it; most of
 * it is read only when one of them does.
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"

const ignore = (): void => {}

/** A series that is read when somebody asks, until the scope closes. */
export const observe = <Input, State>(
  metric: Metric.Metric<Input, State>,
  get: () => State
): Effect.Effect<void, never, Scope.Scope> =>
  Effect.contextWith((context) =>
    Effect.asVoid(Effect.acquireRelease(
      Effect.sync(() => Metric.registerUnsafe(metric, context, { get, update: ignore, modify: ignore })),
      ({ remove }) => Effect.sync(remove)
    ))
  )

export const info = (attributes: Readonly<Record<"name" | "version" | "environment", string>>) =>
  Metric.gauge("service_info", { description: "The service, always 1.", attributes })

export const ready = Metric.gauge("service_ready", {
  description: "1 while the service has started and is not told to stop, whatever its checks say."
})

export const draining = Metric.gauge("service_draining", { description: "1 while the service stops." })

export const phaseDuration = (phase: string) =>
  Metric.gauge("service_phase_duration_seconds", {
    description: "How long a phase took that has ended.",
    attributes: { phase }
  })

export const taskRestarts = (task: string) =>
  Metric.counter("service_task_restarts_total", {
    description: "How often a background task or child process was started again after a failure.",
    attributes: { task },
    incremental: true
  })

export const requests = (attributes: Readonly<Record<"server" | "method" | "code", string>>) =>
  Metric.counter("http_requests_total", {
    description: "Requests that were answered; the code of one whose client went away before is \"aborted\".",
    attributes,
    incremental: true
  })

export const inFlight = (server: string) =>
  Metric.gauge("http_requests_in_flight", {
    description: "Requests that are not answered yet.",
    attributes: { server }
  })
