/** The HTTP side of a host of sandboxes: each request is a script, each answer what it writes, as it comes. */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Stream from "effect/Stream"
import { Sandboxes } from "./sandboxes.ts"

export const Routes = HttpRouter.add(
  "POST",
  "/run",
  Effect.gen(function*() {
    const script = yield* (yield* HttpServerRequest.HttpServerRequest).text
    // The machine is the request's: it is given back when all is sent, or when nobody reads it any more.
    const told = yield* (yield* Sandboxes).run(script)
    const events = told.pipe(
      Stream.catch(({ message }) => Stream.succeed({ event: "error", data: message })),
      Stream.map(({ data, event }) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
    )
    return HttpServerResponse.stream(Stream.encodeText(events), { contentType: "text/event-stream" })
  }).pipe(
    Effect.catchReason(
      "MicroVmError",
      "PoolFull",
      ({ message }) =>
        Effect.succeed(HttpServerResponse.text(`${message}\n`, { status: 503, headers: { "retry-after": "10" } }))
    ),
    Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.mebibytes(1))
  )
)
