/**
 * Metrics of Firecracker, from a file or a FIFO.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs/promises"
import { attempt, codeOf, hostFailed } from "./internal/NodeAttempt.ts"
import { MetricsFiles, type Source } from "./MetricsCollector.ts"

/** A line or two. What is more comes with the next read. */
const chunkBytes = 16_384

/** So much may be read before it is given back. */
const keptBytes = 1 << 20

const newline = 0x0a

const nothingYet = (cause: unknown): { readonly bytesRead: number } => {
  // What a FIFO says that has a writer but no bytes; without a writer it reads as ended.
  if (codeOf(cause) === "EAGAIN") return { bytesRead: 0 }
  throw cause
}

const sourceOf = (handle: NodeFs.FileHandle, path: string, isFile: boolean): Source => {
  const buffer = new Uint8Array(chunkBytes)
  let position = 0
  let givenBack = 0
  return {
    // A read that was given up would take its bytes with it.
    read: attempt("read", path, async () => {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, isFile ? position : null).catch(nothingYet)
      position += bytesRead
      const isAtEnd = bytesRead < buffer.length && buffer[bytesRead - 1] === newline
      // The next line is up to a minute away, unless somebody asks for it just now.
      if (isFile && isAtEnd && position - givenBack >= keptBytes) {
        // Of one that cannot be truncated the numbers are right all the same.
        await handle.truncate(0).catch(() => {})
        givenBack = position
      }
      return buffer.slice(0, bytesRead)
    })
  }
}

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = NodeFs.constants

// Nonblocking, a FIFO opens without anybody at its other end. For writing, since a file is truncated.
const opened = (operation: string, path: string, flags: number) =>
  attempt(operation, path, () => NodeFs.open(path, flags | O_RDWR | O_NONBLOCK, 0o600))

const closed = (handle: NodeFs.FileHandle, path: string): Effect.Effect<void> =>
  Effect.ignore(attempt("close", path, () => handle.close()))

const removed = (path: string): Effect.Effect<void> =>
  attempt("remove", path, () => NodeFs.rm(path, { force: true })).pipe(
    Effect.catch((error) => Effect.logWarning(error.message))
  )

const create: MetricsFiles["Service"]["create"] = Effect.fn("MetricsFiles.create")(function*(path, { owner } = {}) {
  const handle = yield* Effect.acquireRelease(
    opened("create", path, O_CREAT | O_EXCL),
    (made) => Effect.andThen(closed(made, path), removed(path))
  )
  if (owner !== undefined) yield* attempt("chown", path, () => handle.chown(owner.uid, owner.gid))
  return sourceOf(handle, path, true)
})

const open: MetricsFiles["Service"]["open"] = Effect.fn("MetricsFiles.open")(function*(path) {
  // Whoever is in a jail could have put a link there, to a file of ours.
  const handle = yield* Effect.acquireRelease(opened("open", path, O_NOFOLLOW), (one) => closed(one, path))
  const stat = yield* attempt("stat", path, () => handle.stat())
  if (stat.isFile() || stat.isFIFO()) return sourceOf(handle, path, stat.isFile())
  return yield* hostFailed("open", path, "it is neither a file nor a FIFO")
})

/**
 * Files and FIFOs of the host. A read takes some 10 µs of our time, and runs on a thread of Node's pool, which nothing that
 * is done here can hold up.
 *
 * ```ts import.meta.vitest
 * import { MetricsCollector, NodeVmmMetrics } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * import { appendFile } from "node:fs/promises"
 *
 * const path = `/tmp/example-metrics-${process.pid}`
 * const program = Effect.gen(function*() {
 *   const files = yield* MetricsCollector.MetricsFiles
 *   const metrics = yield* MetricsCollector.make(yield* files.create(path), { machine: "vm-1" })
 *   yield* Effect.promise(() => appendFile(path, `{"vcpu":{"exit_io_in":3}}\n`))
 *   return (yield* metrics.refresh).values.get("vcpu.exit_io_in")
 * })
 * await Effect.runPromise(Effect.provide(Effect.scoped(program), NodeVmmMetrics.layer)) // => 3
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<MetricsFiles> = Layer.succeed(MetricsFiles, MetricsFiles.of({ create, open }))
