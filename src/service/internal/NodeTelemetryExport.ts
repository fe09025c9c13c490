/** Traces, metrics and logs on their way to a collector. Loaded only where there is one. */
import * as ConfigProvider from "effect/ConfigProvider"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Otlp from "effect/observability/Otlp"
import * as Redacted from "effect/Redacted"
import type { Otlp as Target } from "../ServiceConfig.ts"
import { explain } from "../ServiceError.ts"

/** The same as what OpenTelemetry's own exporters use. */
const requestTimeout = 10_000

/** More than one for each signal means that the collector is slow; then what comes is dropped, not kept. */
const requestsAtOnce = 8

/** Of an answer nothing is read but its status. */
const answerBytes = 65_536

const drain = async (body: ReadableStream<Uint8Array>): Promise<void> => {
  let bytes = 0
  for await (const chunk of body) {
    bytes += chunk.byteLength
    // Leaving the loop cancels the rest.
    if (bytes > answerBytes) return
  }
}

const boundedFetch = (): typeof globalThis.fetch => {
  let underWay = 0
  return async (input, init) => {
    if (underWay >= requestsAtOnce) throw new Error("too many requests wait for an answer")
    underWay++
    try {
      const timeout = AbortSignal.timeout(requestTimeout)
      const response = await fetch(input, {
        ...init,
        // Keys in headers must not follow to another host.
        redirect: "manual",
        signal: init?.signal ? AbortSignal.any([init.signal, timeout]) : timeout
      })
      if (response.body !== null) await drain(response.body)
      return new Response(null, { status: response.status, headers: response.headers })
    } finally {
      underWay--
    }
  }
}

/** Says when telemetry does not arrive, and when it does again; not each time. */
const told = (endpoint: string) => (client: HttpClient.HttpClient): HttpClient.HttpClient => {
  let arrives = true
  const lost = (why: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (!arrives) return Effect.void
      arrives = false
      return Effect.logWarning(`Telemetry does not arrive at ${endpoint}: ${why}`)
    })
  const arrived = Effect.suspend(() => {
    if (arrives) return Effect.void
    arrives = true
    return Effect.logInfo(`Telemetry arrives at ${endpoint} again`)
  })
  return HttpClient.transformResponse(client, (response) =>
    response.pipe(
      Effect.tap(({ status }) => status < 300 ? arrived : lost(`it answers with ${status}`)),
      Effect.tapError((error) => lost(explain(error).replace(/\s*\n\s*/g, ", "))),
      Effect.onInterrupt(() => lost("it did not answer in time"))
    ))
}

const client = (endpoint: string): Layer.Layer<HttpClient.HttpClient> =>
  Layer.effect(HttpClient.HttpClient, Effect.map(HttpClient.HttpClient, told(endpoint))).pipe(
    Layer.provide(FetchHttpClient.layer),
    Layer.provide(Layer.sync(FetchHttpClient.Fetch, boundedFetch))
  )

export interface Options {
  readonly environment: string
  readonly version: string
  readonly flushWithin: Duration.Duration
}

/** Exporters of traces, metrics and logs. */
export const layer = (
  { endpoint, headers, protocol, resourceAttributes, serviceName }: Target,
  { environment, flushWithin, version }: Options
): Layer.Layer<never> => {
  const exporters = protocol === "http/json" ? Otlp.layerJson : Otlp.layerProtobuf
  return exporters({
    baseUrl: endpoint,
    headers: Redacted.value(headers),
    resource: {
      serviceName,
      serviceVersion: version,
      attributes: { "deployment.environment.name": environment, ...resourceAttributes }
    },
    shutdownTimeout: flushWithin
  }).pipe(
    Layer.provide(client(endpoint)),
    // All that it could read from the environment is read and checked already.
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({})))
  )
}
