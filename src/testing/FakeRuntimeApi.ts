/**
 * The runtime API on a real socket, for tests of whoever depends on it. What it answers comes from the same declaration and
 * handlers as the real server; faults are laid over that, one request at a time.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { Socket } from "node:net"
import { Readable } from "node:stream"
import { text } from "node:stream/consumers"
import { pipeline } from "node:stream/promises"
import { setInterval, setTimeout } from "node:timers/promises"
import { Provisioner } from "../service/Provisioner.ts"
import * as RuntimeApiServer from "../service/RuntimeApiServer.ts"

/**
 * What goes wrong with one request. The true answer is what the API would have said.
 *
 * - `None`: nothing.
 * - `Hang`: the request is read and never answered.
 * - `Reset`: the connection is cut before any answer.
 * - `Slow`: the true answer, late.
 * - `Trickle`: the true answer, its body one byte at a time.
 * - `Truncate`: the true answer, cut after so many bytes of its body.
 * - `Huge`: an answer of so many bytes, the length not told before.
 * - `Respond`: something else.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = Data.TaggedEnum<{
  None: {}
  Hang: {}
  Reset: {}
  Slow: { readonly by: Duration.Input }
  Trickle: { readonly every: Duration.Input }
  Truncate: { readonly after: number }
  Huge: { readonly bytes: number }
  Respond: {
    readonly status: number
    readonly body?: string | Uint8Array
    readonly headers?: Readonly<Record<string, string>>
  }
}>

/**
 * Constructors and matchers of faults.
 *
 * @category constructors
 * @since 0.1.0
 */
export const Fault = Data.taggedEnum<Fault>()

/**
 * Sends the client elsewhere.
 *
 * @category constructors
 * @since 0.1.0
 */
export const redirect = (status: 301 | 302 | 303 | 307 | 308, location: string): Fault =>
  Fault.Respond({ status, headers: { location } })

/**
 * An error in the API's own words, with a `Retry-After` if one is given.
 *
 * @category constructors
 * @since 0.1.0
 */
export const failure = (status: number, message: string, retryAfter?: string): Fault =>
  Fault.Respond({
    status,
    body: JSON.stringify({ message, status_code: status }),
    headers: { "content-type": "application/json", ...(retryAfter === undefined ? {} : { "retry-after": retryAfter }) }
  })

/**
 * How a resource is, the next time that it is asked for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Step {
  readonly state: string
  readonly output?: unknown
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default: `proj_X`. */
  readonly projectId?: string | undefined
  /** What clients have to show. Default: nothing. */
  readonly apiKey?: string | undefined
  /** Default: none. */
  readonly secrets?: Readonly<Record<string, string>> | undefined
  /** By type, in order; the last step stays. A type that is not there is ready at once, with its config as output. */
  readonly resources?: Readonly<Record<string, ReadonlyArray<Step>>> | undefined
  /** One for each request, in order. Later requests are answered truly. */
  readonly faults?: ReadonlyArray<Fault> | undefined
}

/**
 * A request as it came over the wire.
 *
 * @category models
 * @since 0.1.0
 */
export interface Received {
  readonly method: string
  /** Not decoded. */
  readonly path: string
  readonly headers: Readonly<Record<string, string | ReadonlyArray<string> | undefined>>
  readonly body: string
  /** Milliseconds of a clock that only goes forward. */
  readonly at: number
}

/**
 * @category models
 * @since 0.1.0
 */
export interface FakeRuntimeApi {
  /** Where it listens, on loopback. */
  readonly url: URL
  /** What came, in order. */
  readonly received: Effect.Effect<ReadonlyArray<Received>>
  /** Connections that are open now. */
  readonly connections: Effect.Effect<number>
  /** Adds faults for the requests to come. */
  readonly next: (...faults: ReadonlyArray<Fault>) => Effect.Effect<void>
  /** From now on connections are refused, and the open ones are cut. */
  readonly refuse: Effect.Effect<void>
}

/** Answers requests for resources from a script. */
const scripted = ({ resources = {}, secrets = {} }: Options): Provisioner["Service"] => {
  const asked = new Map<string, number>()
  return {
    secrets: Effect.sync(() =>
      new Map(Object.entries(secrets).map(([name, value]) => [name, Redacted.make(value, { label: name })]))
    ),
    request: ({ config, type }) =>
      Effect.sync(() => {
        const steps = resources[type]
        const index = asked.get(type) ?? 0
        asked.set(type, index + 1)
        const step = steps === undefined ? { state: "ready", output: config } : steps[index] ?? steps.at(-1)
        return { type, state: step?.state ?? "failed", output: step?.output ?? null }
      })
  }
}

/** As fast as the other side reads. */
const flood = function*(bytes: number) {
  const piece = Buffer.alloc(64 * 1024, " ")
  for (let left = bytes; left > 0; left -= piece.length) yield piece.subarray(0, left)
}

const trickle = async function*(body: Buffer, every: Duration.Input, signal: AbortSignal) {
  let index = 0
  for await (const _ of setInterval(Duration.toMillis(every), undefined, { signal })) {
    if (index === body.length) return
    yield body.subarray(index, ++index)
  }
}

/** Sends the head of a true answer, with the length of its body. */
const sendHead = async (response: ServerResponse, truth: () => Promise<Response>): Promise<Buffer> => {
  const answer = await truth()
  const body = Buffer.from(await answer.arrayBuffer())
  response.writeHead(answer.status, { ...Object.fromEntries(answer.headers), "content-length": body.length })
  return body
}

const apply = (
  fault: Fault,
  response: ServerResponse,
  truth: () => Promise<Response>,
  signal: AbortSignal
): Promise<void> =>
  Fault.$match(fault, {
    None: async () => {
      response.end(await sendHead(response, truth))
    },
    Hang: async () => {},
    Reset: async () => {
      response.socket?.destroy()
    },
    Slow: async ({ by }) => {
      await setTimeout(Duration.toMillis(by), undefined, { signal })
      response.end(await sendHead(response, truth))
    },
    Trickle: async ({ every }) =>
      pipeline(Readable.from(trickle(await sendHead(response, truth), every, signal)), response),
    Truncate: async ({ after }) => {
      const body = await sendHead(response, truth)
      response.write(body.subarray(0, after), () => response.socket?.destroy())
    },
    Huge: ({ bytes }) =>
      pipeline(Readable.from(flood(bytes)), response.writeHead(200, { "content-type": "application/json" })),
    Respond: async ({ body, headers, status }) => {
      response.writeHead(status, headers).end(body)
    }
  })

/**
 * Starts one on a free port of loopback. It ends with the scope, hung requests included.
 *
 * ```ts import.meta.vitest
 * import { FakeRuntimeApi } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const api = yield* FakeRuntimeApi.make({ faults: [FakeRuntimeApi.failure(503, "not now")] })
 *   const get = Effect.promise(() => fetch(new URL("/projects/proj_X/resources/secrets", api.url)))
 *   return [(yield* get).status, (yield* get).status]
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => [503, 200]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("FakeRuntimeApi.make")(function*(
  options: Options = {}
): Effect.fn.Return<FakeRuntimeApi, never, Scope.Scope> {
  const received: Array<Received> = []
  const faults = [...options.faults ?? []]
  const sockets = new Set<Socket>()
  const ended = new AbortController()

  const api = yield* Effect.acquireRelease(
    Effect.sync(() =>
      HttpRouter.toWebHandler(
        RuntimeApiServer.layer({
          projectId: options.projectId ?? "proj_X",
          apiKey: Option.map(Option.fromUndefinedOr(options.apiKey), (key) => Redacted.make(key))
        }).pipe(
          Layer.provide(Layer.succeed(Provisioner, scripted(options))),
          Layer.provide(HttpServer.layerServices)
        ),
        { disableLogger: true }
      )
    ),
    ({ dispose }) => Effect.promise(dispose)
  )

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { headers, method = "GET", url: path = "/" } = request
    const at = performance.now()
    const body = await text(request)
    received.push({ method, path, headers, body, at })
    const truth = () =>
      api.handler(
        new Request(`http://127.0.0.1${path}`, {
          method,
          headers: Object.entries(headers).flatMap(([name, value]) => typeof value === "string" ? [[name, value]] : []),
          ...(body === "" ? {} : { body })
        })
      )
    await apply(faults.shift() ?? Fault.None(), response, truth, ended.signal)
  }

  const server = createServer((request, response) => {
    // The client may go at any time, and so may this server.
    answer(request, response).catch(() => response.destroy())
  }).on("connection", (socket) => {
    sockets.add(socket)
    socket.on("error", () => {}).on("close", () => sockets.delete(socket))
  })
  const refuse = Effect.callback<void>((resume) => {
    ended.abort()
    server.close(() => resume(Effect.void))
    for (const socket of sockets) socket.destroy()
  })
  const port = yield* Effect.acquireRelease(
    Effect.callback<number>((resume) => {
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0))
      })
    }),
    () => refuse
  )

  return {
    url: new URL(`http://127.0.0.1:${port}`),
    received: Effect.sync(() => [...received]),
    connections: Effect.sync(() => sockets.size),
    next: (...more) =>
      Effect.sync(() => {
        faults.push(...more)
      }),
    refuse
  }
})
