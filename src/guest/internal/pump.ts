import type * as Arr from "effect/Array"
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as GuestError from "../GuestError.ts"
import * as GuestStdio from "../GuestStdio.ts"

/** @internal */
export interface Pump {
  readonly stream: Stream.Stream<Uint8Array, GuestError.GuestError>
  /** Waits until nothing more comes. */
  readonly ended: Effect.Effect<void>
  /** Has all come, and nothing else? */
  readonly clean: () => boolean
  /** Nobody reads from now on. */
  readonly discard: Effect.Effect<void>
  /** Takes what still comes once the scope is closed, for nobody: `clean` then says whether that was all. */
  readonly rest: Effect.Effect<void>
}

/** Batches of chunks that are read ahead. */
const window = 2
/** More than what all buffers between a process that has ended and us can hold. */
const maxDrainBytes = 16 * 1024 * 1024

const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

/** Like `GuestStdio.makeReadyDecoder`, of a stream that may have begun before: then it goes on with its first byte. */
const makeMarkStripper = (nonce: string): (chunk: Uint8Array) => Uint8Array | undefined => {
  const mark = GuestStdio.ready(nonce)
  let seen = 0
  return (chunk) => {
    const same = chunk.findIndex((byte, i) => byte !== mark[seen + i])
    const more = Math.min(same === -1 ? chunk.length : same, mark.length - seen)
    seen += more
    if (seen === mark.length) return chunk.subarray(more)
    if (more === chunk.length) return undefined
    const whole = new Uint8Array(seen + chunk.length - more)
    whole.set(mark.subarray(0, seen))
    whole.set(chunk.subarray(more), seen)
    return whole
  }
}

/**
 * Takes an output port up to the trailer. `patience` is there once the command is over: the milliseconds for which the
 * guest may still be waited for, in all. Time that a slow reader takes does not count, so nothing that was written in time is
 * lost. `onMark` is run when the mark has come with which stdout begins. It may have come to another reader before (`perhaps`).
 *
 * @internal
 */
export const pump = Effect.fnUntraced(function*(
  pull: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, GuestError.GuestError>,
  nonce: string,
  patience: Effect.Effect<number>,
  { mark, onMark }: { readonly mark: "expected" | "perhaps" | "none"; readonly onMark: Effect.Effect<void> }
): Effect.fn.Return<Pump, never, Scope.Scope> {
  const queue = yield* Queue.bounded<ReadonlyArray<Uint8Array>, GuestError.GuestError | Cause.Done>(window)
  const ended = yield* Deferred.make<void>()
  const decoder = GuestStdio.makeTrailerDecoder(nonce)
  const untilReady = mark === "perhaps" ? makeMarkStripper(nonce) : GuestStdio.makeReadyDecoder(nonce)
  let isReady = mark === "none"
  let overAt: number | undefined
  let waited = 0
  let drained = 0

  const outOfTime = Effect.gen(function*() {
    const longest = yield* patience
    overAt ??= yield* now
    yield* Effect.sleep(Math.max(0, longest - waited))
  })

  const next = Effect.gen(function*() {
    const since = yield* now
    const chunks = yield* Effect.raceFirst(pull, outOfTime)
    if (overAt === undefined || chunks === undefined) return chunks
    waited += (yield* now) - Math.max(since, overAt)
    drained = chunks.reduce((sum, chunk) => sum + chunk.length, drained)
    return drained > maxDrainBytes ? undefined : chunks
  })

  const begun = (chunk: Uint8Array): ReadonlyArray<Uint8Array> => {
    if (isReady) return [chunk]
    const rest = untilReady(chunk)
    isReady = rest !== undefined
    return rest === undefined ? [] : [rest]
  }

  yield* Effect.gen(function*() {
    while (!decoder.ended()) {
      const wasReady = isReady
      const chunks = (yield* next)?.flatMap(begun)
      if (isReady && !wasReady) yield* onMark
      const bytes = (chunks === undefined ? [decoder.held()] : chunks.flatMap(decoder.push)).filter((part) =>
        part.length > 0
      )
      if (bytes.length > 0) yield* Queue.offer(queue, bytes)
      if (chunks === undefined) break
    }
    yield* Queue.end(queue)
  }).pipe(
    Effect.catch((error) => Queue.fail(queue, error)),
    Effect.ensuring(Deferred.succeed(ended, undefined)),
    Effect.forkScoped({ startImmediately: true })
  )

  return {
    stream: Stream.flattenIterable(Stream.fromQueue(queue)),
    ended: Deferred.await(ended),
    clean: () => decoder.ended() && decoder.excess() === 0,
    discard: Effect.sync(() => {
      // Ended first, so that a reader sees an end and no interruption. Offers to it are then done at once.
      Queue.endUnsafe(queue)
      Queue.shutdownUnsafe(queue)
    }),
    rest: Effect.gen(function*() {
      for (let bytes = 0; !decoder.ended() && bytes <= maxDrainBytes;) {
        for (const chunk of yield* pull) {
          bytes += chunk.length
          decoder.push(chunk)
        }
      }
    }).pipe(Effect.ignore)
  }
})
