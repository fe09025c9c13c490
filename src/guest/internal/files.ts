import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Pull from "effect/Pull"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as GuestAgentSchema from "../GuestAgentSchema.ts"
import * as GuestError from "../GuestError.ts"

type Request = <A, R>(
  command: GuestAgentSchema.Command<A, R>,
  args: A,
  options?: { readonly within?: Duration.Input | undefined }
) => Effect.Effect<R, GuestError.GuestError>

/** Keeps one request well under a tenth of a second on a slow guest, so that others get their turn. */
const chunkBytes = 256 * 1024
const closeWithin = "2 seconds"

const open = (request: Request, path: string, mode: string) =>
  Effect.suspend(() => {
    if (path !== "" && !path.includes("\0")) return request(GuestAgentSchema.guestFileOpen, { path, mode })
    const faults = [`path is ${JSON.stringify(path)}: name a file, without a NUL`]
    return Effect.fail(GuestError.make(new GuestError.InvalidArgument({ faults })))
  })

const close = (request: Request, handle: number) =>
  request(GuestAgentSchema.guestFileClose, { handle }, { within: closeWithin })

/** @internal */
export const read = (request: Request, path: string): Stream.Stream<Uint8Array, GuestError.GuestError> =>
  Stream.unwrap(Effect.gen(function*() {
    const handle = yield* Effect.acquireRelease(
      open(request, path, "r"),
      (acquired) => Effect.ignore(close(request, acquired)),
      { interruptible: true }
    )
    let ended = false
    const next = Effect.gen(function*() {
      if (ended) return yield* Cause.done()
      const { "buf-b64": data, eof } = yield* request(GuestAgentSchema.guestFileRead, { handle, count: chunkBytes })
      const bytes = Base64.decode(data)
      if (Result.isFailure(bytes)) {
        const operation = GuestAgentSchema.guestFileRead.execute
        return yield* GuestError.make(new GuestError.Protocol({ operation, problem: "data that are not base64" }))
      }
      // The last bytes and the mark may come at once, or the mark alone.
      if (bytes.success.length === 0) return yield* Cause.done()
      ended = eof
      return [bytes.success] as const
    })
    return Stream.fromPull(Effect.succeed(next))
  }))

/** @internal */
export const write = (
  request: Request,
  path: string,
  mode: string
): Sink.Sink<void, Uint8Array, never, GuestError.GuestError> =>
  Sink.fromTransform<Uint8Array, void, GuestError.GuestError, never>((upstream, scope) =>
    Effect.gen(function*() {
      let handle: number | undefined = yield* Effect.acquireRelease(
        open(request, path, mode),
        (acquired) =>
          Effect.suspend(() => handle === undefined ? Effect.void : Effect.ignore(close(request, acquired))),
        { interruptible: true }
      ).pipe(Scope.provide(scope))
      const opened = handle
      const writeAll = Effect.fnUntraced(function*(chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) {
        for (const chunk of chunks) {
          for (let done = 0; done < chunk.length;) {
            const part = chunk.subarray(done, done + chunkBytes)
            const { count } = yield* request(GuestAgentSchema.guestFileWrite, {
              handle: opened,
              "buf-b64": Base64.encode(part)
            })
            if (count < 1 || count > part.length) {
              const operation = GuestAgentSchema.guestFileWrite.execute
              const problem = `a count of ${count} bytes for ${part.length}`
              return yield* GuestError.make(new GuestError.Protocol({ operation, problem }))
            }
            done += count
          }
        }
      })
      yield* upstream.pipe(
        Effect.flatMap(writeAll),
        Effect.forever({ disableYield: true }),
        Pull.catchDone(() => Effect.void)
      )
      // The guest may find out here only that its disk is full, so this failure counts.
      handle = undefined
      yield* close(request, opened)
      return [undefined] as const
    })
  )
