/**
 * What a run writes, in files of bounded size that others read while it goes on.
 *
 * ```
 *   DIR/output.000000000000000.log     bytes 0 to 8388607        removed when there are two after it
 *   DIR/output.000000008388608.log     from byte 8388608 on
 *   DIR/output.000000016777216.log     from byte 16777216 on
 * ```
 *
 * The name of a file says where its first byte is in all that was ever written. So a reader always knows where it is, and how
 * much it has missed; nothing is renamed below it.
 *
 * @since 0.1.0
 */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as OutputTail from "../process/OutputTail.ts"

/**
 * Which log of which directory.
 *
 * @category models
 * @since 0.1.0
 */
export interface Place {
  readonly directory: string
  readonly name: "output" | "console"
}

/**
 * A log that is written.
 *
 * @category models
 * @since 0.1.0
 */
export interface RunLog {
  /** Adds what comes, in the order in which it comes. Several may run at a time. */
  readonly sink: Sink.Sink<void, Uint8Array>
  /** Adds these bytes. What cannot be written is left out, and the log says so where it would be. */
  readonly write: (bytes: Uint8Array) => Effect.Effect<void>
  /** Adds what of this text is not in it yet: its beginning may be what was written last. */
  readonly catchUp: (text: string) => Effect.Effect<void>
}

/** Of a file. */
const defaultMaxBytes = 8 * 1024 * 1024
/** The newest files are kept. */
const kept = 2
const block = 64 * 1024

interface Part {
  readonly path: string
  /** Where its first byte is in all that was written. */
  readonly start: number
  readonly size: number
}

const nameOf = (name: string, start: number): string => `${name}.${String(start).padStart(15, "0")}.log`

const whenGone = <A>(instead: A) => <E extends PlatformError.PlatformError, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.catchIf(effect, (error) => error.reason._tag === "NotFound", () => Effect.succeed(instead))

/** The files of a log, the oldest first. */
const parts = Effect.fnUntraced(function*({ directory, name }: Place) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const found: Array<Part> = []
  for (const file of (yield* whenGone<ReadonlyArray<string>>([])(fs.readDirectory(directory))).toSorted()) {
    const [, log, start] = /^(output|console)\.(\d{15,16})\.log$/.exec(file) ?? []
    if (log !== name) continue
    const at = path.join(directory, file)
    const info = yield* whenGone(Option.none<FileSystem.File.Info>())(Effect.asSome(fs.stat(at)))
    if (Option.isSome(info)) {
      found.push({ path: at, start: Number(start), size: ByteSize.toNumberUnsafe(info.value.size) })
    }
  }
  return found.toSorted((one, other) => one.start - other.start)
})

/**
 * Opens a log to add to it, until the scope closes. `maxBytes` is the size of a file, by default 8 MiB; the newest two are kept.
 * It has one writer at a time.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { RunLog } from "effect-microvm-runtime/cli"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Stream from "effect/Stream"
 *
 * const program = Effect.gen(function*() {
 *   const fs = yield* FileSystem.FileSystem
 *   const place = { directory: yield* fs.makeTempDirectoryScoped(), name: "output" } as const
 *   const log = yield* RunLog.open(place)
 *   yield* Stream.run(Stream.encodeText(Stream.make("one\n", "two\n")), log.sink)
 *   return yield* Stream.mkString(Stream.decodeText(RunLog.read(place, { lines: 1 })))
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer))) // => "two\n"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const open = Effect.fn("RunLog.open")(function*(
  place: Place,
  options: { readonly maxBytes?: number | undefined } = {}
): Effect.fn.Return<RunLog, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path | Scope.Scope> {
  const { maxBytes = defaultMaxBytes } = options
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const outer = yield* Effect.scope
  const turn = yield* Semaphore.make(1)
  const list = parts(place).pipe(
    Effect.provideService(FileSystem.FileSystem, fs),
    Effect.provideService(Path.Path, path)
  )

  const append = Effect.fnUntraced(function*(start: number, size: number) {
    const scope = yield* Scope.fork(outer)
    const at = path.join(place.directory, nameOf(place.name, start))
    const file = yield* Scope.provide(fs.open(at, { flag: "a", mode: 0o600 }), scope)
    return { scope, file, start, size }
  })
  const last = (yield* list).at(-1)
  let current = yield* append(last?.start ?? 0, last?.size ?? 0)
  let missing = 0

  const rotate = Effect.gen(function*() {
    const next = yield* append(current.start + current.size, 0)
    yield* Scope.close(current.scope, Exit.void)
    current = next
    const all = yield* list
    yield* Effect.forEach(all.slice(0, -kept), (one) => fs.remove(one.path), { discard: true })
  })
  const put = Effect.fnUntraced(function*(bytes: Uint8Array) {
    for (let at = 0; at < bytes.length;) {
      if (current.size >= maxBytes) yield* rotate
      const some = bytes.subarray(at, at + maxBytes - current.size)
      yield* current.file.writeAll(some)
      current.size += some.length
      at += some.length
    }
  })
  /** What of it was written before it failed is there. */
  const lookAgain = Effect.ignore(
    Effect.map(current.file.stat, ({ size }) => void (current.size = ByteSize.toNumberUnsafe(size)))
  )
  const write = (bytes: Uint8Array): Effect.Effect<void> =>
    Effect.gen(function*() {
      if (missing > 0) {
        yield* put(new TextEncoder().encode(`\n[microvm: ${missing} bytes could not be written here]\n`))
        missing = 0
      }
      yield* put(bytes)
    }).pipe(
      Effect.catch(() => {
        missing += bytes.length
        return Effect.suspend(() => lookAgain)
      }),
      Effect.uninterruptible,
      Semaphore.withPermit(turn)
    )
  const catchUp = Effect.fnUntraced(
    function*(text: string) {
      const isCut = text.startsWith(OutputTail.truncated)
      // What was cut off within a character cannot be compared.
      const whole = (isCut ? text.slice(OutputTail.truncated.length) : text).replace(/^\uFFFD+/, "")
      const written = yield* Effect.orElseSucceed(lastBytes(place, 4 * whole.length), () => new Uint8Array(0))
      const seen = new TextDecoder().decode(written).replace(/\uFFFD+$/, "")
      const known = overlap(seen, whole)
      // Something is missing only where nothing of it is known.
      const mark = isCut && known === 0 ? OutputTail.truncated : ""
      yield* write(new TextEncoder().encode(mark + whole.slice(known)))
    },
    Effect.provideService(FileSystem.FileSystem, fs),
    Effect.provideService(Path.Path, path)
  )
  return { sink: Sink.forEach(write), write, catchUp }
})

/**
 * @category options
 * @since 0.1.0
 */
export interface ReadOptions {
  /** Only that many of the last lines. By default all that is there. */
  readonly lines?: number | undefined
  /**
   * Goes on with what comes, until this says that nothing more does. It is asked five times a second, and what was
   * written before it said so is read. By default, what is there is all.
   */
  readonly until?: Effect.Effect<boolean> | undefined
  /** Told of bytes that are gone, where they would be. By default, nobody. */
  readonly onDropped?: ((bytes: number) => Effect.Effect<void>) | undefined
}

/** Some bytes of a file; none at its end, or when it has just been removed. */
const readAt = (part: Part, at: number, bytes: number) =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const file = yield* fs.open(part.path, { flag: "r" })
    const buffer = new Uint8Array(bytes)
    return buffer.subarray(0, yield* file.read(buffer, { position: BigInt(at) }))
  })).pipe(whenGone<Uint8Array>(new Uint8Array(0)))

const endOf = (all: ReadonlyArray<Part>): number => {
  const last = all.at(-1)
  return last === undefined ? 0 : last.start + last.size
}

/** The end of a log, up to so many bytes. */
const lastBytes = Effect.fnUntraced(function*(place: Place, most: number) {
  const pieces: Array<Uint8Array> = []
  let left = most
  for (const part of (yield* parts(place)).toReversed()) {
    const bytes = Math.min(left, part.size)
    pieces.unshift(yield* readAt(part, part.size - bytes, bytes))
    left -= bytes
  }
  return Buffer.concat(pieces)
})

/** How much of the text's beginning is the end of what was written, at the most (Knuth, Morris and Pratt). */
const overlap = (written: string, text: string): number => {
  const shorter = new Uint32Array(text.length)
  const step = (from: number, char: string): number => {
    let matched = from
    while (matched > 0 && text.charAt(matched) !== char) matched = shorter[matched - 1] ?? 0
    return text.charAt(matched) === char ? matched + 1 : 0
  }
  let matched = 0
  for (let at = 1; at < text.length; at++) shorter[at] = matched = step(matched, text.charAt(at))
  matched = 0
  for (let at = 0; at < written.length; at++) matched = step(matched, written.charAt(at))
  return matched
}

/** Where the last lines begin. An unfinished line is one. */
const startOfLines = Effect.fnUntraced(function*(all: ReadonlyArray<Part>, lines: number) {
  const end = endOf(all)
  if (lines === 0) return end
  let seen = 0
  for (const part of all.toReversed()) {
    for (let to = part.size; to > 0;) {
      const from = Math.max(0, to - block)
      const bytes = yield* readAt(part, from, to - from)
      for (let i = bytes.length - 1; i >= 0; i--) {
        if (bytes[i] !== 0x0a || part.start + from + i === end - 1) continue
        if (++seen === lines) return part.start + from + i + 1
      }
      to = from
    }
  }
  return all[0]?.start ?? 0
})

/**
 * What is in a log, in the order in which it was written. A log that is not there is empty.
 *
 * @category constructors
 * @since 0.1.0
 */
export const read = (
  place: Place,
  options: ReadOptions = {}
): Stream.Stream<Uint8Array, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path> => {
  const { lines, onDropped = () => Effect.void, until } = options
  return Stream.unwrap(Effect.gen(function*() {
    const there = yield* parts(place)
    const start = lines === undefined ? 0 : yield* startOfLines(there, lines)
    // One who writes faster than we read would never come to an end.
    const end = until === undefined ? endOf(there) : Infinity
    return Stream.paginate(start, (position) =>
      Effect.gen(function*() {
        // Asked first: what was written before is there then.
        const isAll = until === undefined || (yield* until)
        const all = yield* parts(place)
        const first = all[0]?.start ?? position
        const at = Math.min(end, Math.max(first, position))
        if (at > position) yield* onDropped(at - position)
        if (at === end) return [[], Option.none()] as const
        const part = all.find((one) => one.start <= at && at < one.start + one.size)
        const bytes = part === undefined
          ? new Uint8Array(0)
          : yield* readAt(part, at - part.start, Math.min(block, end - at))
        if (bytes.length > 0) return [[bytes], Option.some(at + bytes.length)] as const
        if (part === undefined && isAll) return [[], Option.none()] as const
        yield* Effect.sleep("200 millis")
        return [[], Option.some(at)] as const
      }))
  }))
}
