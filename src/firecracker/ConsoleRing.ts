/**
 * The last lines of a serial console, or of anything else that writes lines and may write them for ever.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as LineSplitter from "./internal/lineSplitter.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** How many lines are kept. Default 200; with 0, what comes is taken and forgotten. */
  readonly maxLines?: number | undefined
  /** How many bytes of a line are kept. Default 4096. */
  readonly maxLineBytes?: number | undefined
}

/**
 * Lines, the oldest given up first. Can be read while it is written to, and after the end.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConsoleRing {
  /** More output, cut anywhere. */
  readonly push: (bytes: Uint8Array) => Effect.Effect<void>
  /**
   * What is kept, the oldest line first.
   *
   * - A line ends at a newline; that and one carriage return before it are not part of it. Empty lines count.
   * - What follows the last newline, a prompt for one, is a line too.
   * - A line over the limit is cut between two characters, and ends in `…[truncated]`.
   * - What is not valid UTF-8 shows as U+FFFD.
   */
  readonly tail: Effect.Effect<ReadonlyArray<string>>
}

const truncated = "…[truncated]"

const carriageReturn = 0x0d

// A byte order mark is output like any other.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

/** Where to cut `bytes`, at `limit` or up to three bytes before it, so that no character is cut in two. */
const boundary = (bytes: Uint8Array, limit: number): number => {
  for (let at = limit; at > limit - 4 && at >= 0; at--) {
    if (((bytes[at] ?? 0) & 0xc0) !== 0x80) return at
  }
  return limit
}

/** A byte more than the limit is looked at: it may be the carriage return. */
const decode = ({ bytes, isWhole }: LineSplitter.Line, limit: number): string =>
  isWhole && bytes.length <= limit
    ? decoder.decode(bytes)
    : decoder.decode(bytes.subarray(0, boundary(bytes, limit))) + truncated

const withoutReturn = (line: LineSplitter.Line): LineSplitter.Line =>
  line.isWhole && line.bytes.at(-1) === carriageReturn ? { ...line, bytes: line.bytes.subarray(0, -1) } : line

// `OutputTail` of the process folder keeps the last bytes of a stream, which is what an error message needs. It cannot tell
// where a line began that is cut off in front, one endless line drives all others out of it, and a burst of short ones
// leaves thousands. Here both the number of lines and the length of each are bounded.
const lines = (maxLines: number, maxLineBytes: number): ConsoleRing => {
  const ring: Array<LineSplitter.Line> = []
  let oldest = 0
  const splitter = LineSplitter.make(maxLineBytes + 1, (line) => {
    if (ring.length < maxLines) ring.push(withoutReturn(line))
    else {
      ring[oldest] = withoutReturn(line)
      oldest = (oldest + 1) % maxLines
    }
  })
  return {
    push: (bytes) => Effect.sync(() => splitter.push(bytes)),
    tail: Effect.sync(() => {
      const rest = splitter.rest()
      const all = [...ring.slice(oldest), ...ring.slice(0, oldest), ...rest === undefined ? [] : [rest]]
      return all.slice(-maxLines).map((line) => decode(line, maxLineBytes))
    })
  }
}

const nothing: ConsoleRing = { push: () => Effect.void, tail: Effect.succeed([]) }

/**
 * An empty ring. Fails with `InvalidRequest` when a limit is no whole number from 0.
 *
 * ```ts import.meta.vitest
 * import { ConsoleRing } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const ring = yield* ConsoleRing.make({ maxLines: 2, maxLineBytes: 16 })
 *   yield* ring.push(new TextEncoder().encode("booting\r\nStarting the network …\r\nlogin: "))
 *   return yield* ring.tail
 * })
 * Effect.runSync(program) // => ["Starting the net…[truncated]", "login: "]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  { maxLineBytes = 4096, maxLines = 200 }: Options = {}
): Effect.Effect<ConsoleRing, FirecrackerError.FirecrackerError> =>
  Effect.suspend(() => {
    const faults = Object.entries({ maxLines, maxLineBytes }).flatMap(([field, value]) =>
      Number.isSafeInteger(value) && value >= 0 ? [] : [{ field, value, remedy: "write a whole number from 0" }]
    )
    if (faults.length > 0) return FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))
    return Effect.sync(() => maxLines === 0 ? nothing : lines(maxLines, maxLineBytes))
  })

/**
 * A ring that takes a stream in until that ends or the scope closes; the ring can be read after that. A failure of the
 * stream is its end, and is logged as a warning.
 *
 * ```ts import.meta.vitest
 * import { ConsoleRing } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const output = Stream.make(new TextEncoder().encode("one\ntwo\n"))
 * const ring = await Effect.runPromise(Effect.scoped(Effect.tap(ConsoleRing.fromStream(output), Effect.yieldNow)))
 * await Effect.runPromise(ring.tail) // => ["one", "two"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromStream = Effect.fn("ConsoleRing.fromStream")(function*<E, R>(
  stream: Stream.Stream<Uint8Array, E, R>,
  options?: Options
): Effect.fn.Return<ConsoleRing, FirecrackerError.FirecrackerError, R | Scope.Scope> {
  const ring = yield* make(options)
  yield* stream.pipe(
    Stream.runForEach(ring.push),
    Effect.tapError((cause) => Effect.logWarning("The output can no longer be read", cause)),
    Effect.ignore,
    Effect.forkScoped({ startImmediately: true })
  )
  return ring
})
