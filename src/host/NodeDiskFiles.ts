/**
 * The files of this host, by Node.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Semaphore from "effect/Semaphore"
import * as NodeFs from "node:fs"
import { Worker } from "node:worker_threads"
import { DiskFiles, type FileFacts } from "./DiskFiles.ts"

// Two ticks of the slowest kernel (CONFIG_HZ=100).
const SETTLED = 20

/** The size of a block of `st_blocks`, whatever the file system's own is (stat(2)). */
const BLOCK = 512

const codeOf = (cause: unknown): unknown => hasProperty(cause, "code") ? cause.code : undefined

const tagOf = (code: unknown) => {
  if (code === "ENOENT") return "NotFound"
  if (code === "EEXIST") return "AlreadyExists"
  return code === "EACCES" || code === "EPERM" ? "PermissionDenied" : "Unknown"
}

const failed = (method: string, pathOrDescriptor: string, cause: unknown) =>
  PlatformError.systemError({ _tag: tagOf(codeOf(cause)), module: "DiskFiles", method, pathOrDescriptor, cause })

const factsOf = (stats: NodeFs.BigIntStats): FileFacts => ({
  type: stats.isFile() ? "file" : stats.isDirectory() ? "directory" : "other",
  size: Number(stats.size),
  allocated: Number(stats.blocks) * BLOCK,
  links: Number(stats.nlink),
  modifiedAt: Number(stats.mtimeMs),
  seal: [stats.dev, stats.ino, stats.size, stats.mtimeNs, stats.ctimeNs].join(" "),
  // A file whose times lie in the future was not changed just now, but its next change may get any time.
  isSettled: Date.now() - Number(stats.ctimeMs) > SETTLED
})

/** What FICLONE says where there is no such thing, or not for these two files (ioctl_ficlone(2)). */
const cannotClone = new Set<unknown>(["ENOTSUP", "EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "ENOSYS"])

// Reading with calls that block is half as slow again as a stream, and this thread has nothing else to do. To open a pipe
// is not to block: it would until somebody writes to it, and the thread, and with it this process, could not be ended.
const hashing = `
const { createHash } = require("node:crypto")
const { closeSync, constants, fstatSync, openSync, readSync } = require("node:fs")
const { parentPort, workerData } = require("node:worker_threads")
try {
  const fd = openSync(workerData, constants.O_RDONLY | constants.O_NONBLOCK)
  if (fstatSync(fd).isFIFO()) throw new Error("it is a pipe")
  const hash = createHash("sha256")
  const piece = Buffer.allocUnsafe(1024 * 1024)
  for (let length; (length = readSync(fd, piece)) > 0;) hash.update(piece.subarray(0, length))
  closeSync(fd)
  parentPort.postMessage({ sha256: hash.digest("hex") })
} catch (error) {
  parentPort.postMessage({ code: error.code, message: error.message })
}`

const sha256 = (path: string): Effect.Effect<string, PlatformError.PlatformError> =>
  Effect.callback((resume) => {
    const worker = new Worker(hashing, { eval: true, workerData: path, stdin: false, env: {}, execArgv: [] })
    worker.once("message", (said: unknown) => {
      if (hasProperty(said, "sha256") && typeof said.sha256 === "string") return resume(Effect.succeed(said.sha256))
      const message = hasProperty(said, "message") ? String(said.message) : "it said nothing"
      resume(Effect.fail(failed("sha256", path, Object.assign(new Error(message), { code: codeOf(said) }))))
    })
    worker.once("error", (cause) => resume(Effect.fail(failed("sha256", path, cause))))
    worker.once("exit", (code) =>
      resume(Effect.fail(failed("sha256", path, new Error(`the thread that read it ended with ${code}`)))))
    return Effect.promise(() =>
      worker.terminate()
    )
  })

/**
 * ```ts import.meta.vitest
 * import { DiskFiles, NodeDiskFiles } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * const program = DiskFiles.DiskFiles.use((files) => files.sha256("/dev/null"))
 * const digest = await Effect.runPromise(program.pipe(Effect.provide(NodeDiskFiles.layer)))
 * digest.slice(0, 8) // => "e3b0c442"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<DiskFiles> = Layer.effect(
  DiskFiles,
  Effect.map(Semaphore.make(1), (oneAtATime) => ({
    facts: (path) =>
      Effect.tryPromise({
        try: async () => factsOf(await NodeFs.promises.lstat(path, { bigint: true })),
        catch: (cause) => failed("facts", path, cause)
      }),
    room: (directory) =>
      Effect.tryPromise({
        try: async () => {
          const { bavail, bsize } = await NodeFs.promises.statfs(directory)
          return bavail * bsize
        },
        catch: (cause) => failed("room", directory, cause)
      }),
    reflink: (from, to) =>
      Effect.callback((resume) => {
        const mode = NodeFs.constants.COPYFILE_FICLONE_FORCE | NodeFs.constants.COPYFILE_EXCL
        NodeFs.copyFile(from, to, mode, (cause) => {
          if (cause === null) return resume(Effect.succeed(true))
          resume(cannotClone.has(cause.code) ? Effect.succeed(false) : Effect.fail(failed("reflink", to, cause)))
        })
      }),
    sha256: (path) => oneAtATime.withPermit(sha256(path))
  }))
)
