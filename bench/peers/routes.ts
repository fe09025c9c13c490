/** The routes of the servers that are made with Effect. */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Socket from "effect/socket/Socket"
import { block, prepare } from "./app.ts"

/** `fail` makes work in the background fail. */
export const routes = (fail: Effect.Effect<unknown>) =>
  HttpRouter.use(Effect.fnUntraced(function*(router) {
    yield* Effect.promise(prepare)
    yield* router.add("GET", "/fast", Effect.as(Console.log("GET /fast"), HttpServerResponse.text("fast")))
    yield* router.add("GET", "/slow", (request) =>
      Effect.delay(
        Effect.succeed(HttpServerResponse.text("slow")),
        Number(new URL(request.url, "http://localhost").searchParams.get("ms"))
      ))
    yield* router.add("GET", "/hang", Effect.never)
    yield* router.add("GET", "/block", Effect.sync(block))
    yield* router.add("GET", "/fail", Effect.as(fail, HttpServerResponse.text("soon")))
    yield* router.add(
      "GET",
      "/websocket",
      Effect.gen(function*() {
        const socket = yield* (yield* HttpServerRequest.HttpServerRequest).upgrade
        const pull = yield* Socket.readerBytes(socket)
        yield* Effect.ignore(Effect.forever(pull))
        return HttpServerResponse.empty()
      })
    )
  }))
