import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Pull from "effect/Pull"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as GuestAgentSchema from "../GuestAgentSchema.ts"
import * as GuestError from "../GuestError.ts"
import type { Request } from "./connection.ts"

/** Keeps one request well under a tenth of a second on a slow guest, so that others get their turn. */
const chunkBytes = 256 * 1024
const closeWithin = Duration.seconds(2)

const odd = (operation: string, problem: string): GuestError.GuestError =>
  GuestError.make(new GuestError.Protocol({ operation, problem }))

/** @internal */
export const make = (request: Request, within: Duration.Duration) => {
  /** Handles that came when nobody waited for them any more. */
  const orphans = new Set<number>()

  const close = (handle: number) =>
    request(GuestAgentSchema.guestFileClose, { handle }, {
      within: Duration.min(within, closeWithin)
    })

  const open = (path: string, mode: string): Effect.Effect<File, GuestError.GuestError, Scope.Scope> =>
    Effect.gen(function*() {
      if (path === "" || path.includes("\0")) {
        const faults = [`path is ${JSON.stringify(path)}: name a file, without a NUL`]
        return yield* GuestError.make(new GuestError.InvalidArgument({ faults }))
      }
      for (const handle of orphans) {
        orphans.delete(handle)
        yield* Effect.ignore(close(handle))
      }
      let isOpen = true
      const handle = yield* Effect.acquireRelease(
        request(GuestAgentSchema.guestFileOpen, { path, mode }, {
          within,
          onLate: (late) => {
            orphans.add(late)
          }
        }),
        (opened) => Effect.suspend(() => isOpen ? Effect.ignore(close(opened)) : Effect.void),
        { interruptible: true }
      )
      return {
        read: request(GuestAgentSchema.guestFileRead, { handle, count: chunkBytes }, { within }),
        write: (bytes) =>
          request(GuestAgentSchema.guestFileWrite, { handle, "buf-b64": Base64.encode(bytes) }, { within }),
        close: Effect.suspend(() => {
          isOpen = false
          return close(handle)
        })
      }
    })

  const read = (path: string): Stream.Stream<Uint8Array, GuestError.GuestError> =>
    Stream.unwrap(Effect.gen(function*() {
      const file = yield* open(path, "r")
      let ended = false
      const next = Effect.gen(function*() {
        if (ended) return yield* Cause.done()
        const { "buf-b64": data, eof } = yield* file.read
        const bytes = Base64.decode(data)
        if (Result.isFailure(bytes)) {
          return yield* odd(GuestAgentSchema.guestFileRead.execute, "data that are not base64")
        }
        // The last bytes and the mark may come at once, or the mark alone.
        if (bytes.success.length === 0) return yield* Cause.done()
        ended = eof
        return [bytes.success] as const
      })
      return Stream.fromPull(Effect.succeed(next))
    }))

  const write = (path: string, mode: string): Sink.Sink<void, Uint8Array, never, GuestError.GuestError> =>
    Sink.unwrap(Effect.gen(function*() {
      const file = yield* open(path, mode)
      const writeAll = Effect.fnUntraced(function*(chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) {
        for (const chunk of chunks) {
          for (let done = 0; done < chunk.length;) {
            const part = chunk.subarray(done, done + chunkBytes)
            const { count } = yield* file.write(part)
            if (count < 1 || count > part.length) {
              return yield* odd(GuestAgentSchema.guestFileWrite.execute, `a count of ${count} for ${part.length} bytes`)
            }
            done += count
          }
        }
      })
      return Sink.fromTransform<Uint8Array, void, GuestError.GuestError, never>((upstream) =>
        upstream.pipe(
          Effect.flatMap(writeAll),
          Effect.forever({ disableYield: true }),
          // The guest may find out here only that its disk is full, so this failure counts.
          Pull.catchDone(() => file.close),
          Effect.as([undefined] as const)
        )
      )
    }))

  return { read, write }
}

interface File {
  readonly read: Effect.Effect<{ readonly "buf-b64": string; readonly eof: boolean }, GuestError.GuestError>
  readonly write: (bytes: Uint8Array) => Effect.Effect<{ readonly count: number }, GuestError.GuestError>
  readonly close: Effect.Effect<unknown, GuestError.GuestError>
}
