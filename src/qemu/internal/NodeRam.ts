import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs/promises"
import * as NodeOs from "node:os"
import { HostFailed, type Ram } from "../QemuHost.ts"

/** Node does not name it. It holds O_DIRECTORY, whose number is not the same everywhere (open(2)). */
const O_TMPFILE = 0o20000000 | NodeFs.constants.O_DIRECTORY

const mib = (bytes: number): number => Math.floor(bytes / 2 ** 20)

/** Beside the memory itself, so that the last of a host's memory is not taken. */
const slack = 64 * 2 ** 20

const openIn = (directory: string, bytes: number): Effect.Effect<NodeFs.FileHandle, string> =>
  Effect.gen(function*() {
    const { bavail, blocks, bsize } = yield* Effect.tryPromise(() => NodeFs.statfs(directory))
    // A tmpfs without a limit has no blocks.
    if (blocks > 0 && bavail * bsize < bytes + slack) {
      return yield* Effect.fail(`${directory} has ${mib(bavail * bsize)} MiB free`)
    }
    return yield* Effect.tryPromise(() => NodeFs.open(directory, O_TMPFILE | NodeFs.constants.O_RDWR, 0o600))
  }).pipe(Effect.mapError((error) => typeof error === "string" ? error : `${directory}: ${String(error.cause)}`))

/** In memory; on a disk if there is no room. */
const open = (bytes: number): Effect.Effect<NodeFs.FileHandle, HostFailed> => {
  const [memory, disk] = ["/dev/shm", NodeOs.tmpdir()] as const
  return Effect.catch(
    openIn(memory, bytes),
    (first) =>
      Effect.mapError(openIn(disk, bytes), (second) =>
        new HostFailed({
          path: `${memory}, ${disk}`,
          why: `no room for ${mib(bytes + slack)} MiB of memory: ${first}; ${second}`
        }))
  )
}

const piece = 2 ** 20
const block = 64 * 1024
const zeros = Buffer.alloc(block)

/** The parts of a piece that are not all zero. */
const inhabited = (bytes: Buffer): ReadonlyArray<{ readonly at: number; readonly part: Buffer }> =>
  Array.from({ length: Math.ceil(bytes.length / block) }, (_, index) => index * block)
    .map((at) => ({ at, part: bytes.subarray(at, at + block) }))
    .filter(({ part }) => !part.equals(zeros.subarray(0, part.length)))

const writeAll = async (to: NodeFs.FileHandle, bytes: Uint8Array, at: number): Promise<void> => {
  const { bytesWritten } = await to.write(bytes, 0, bytes.length, at)
  if (bytesWritten < bytes.length) await writeAll(to, bytes.subarray(bytesWritten), at + bytesWritten)
}

/** What a read stops short of, as before a part of a disk that is broken, is not zero: the next one says what is wrong. */
const readAll = async (from: NodeFs.FileHandle, into: Uint8Array, at: number): Promise<void> => {
  const { bytesRead } = await from.read(into, 0, into.length, at)
  if (bytesRead === 0) throw new Error(`nothing could be read at ${at}`)
  if (bytesRead < into.length) await readAll(from, into.subarray(bytesRead), at + bytesRead)
}

const copyPiece = async (from: NodeFs.FileHandle, to: NodeFs.FileHandle, start: number, end: number) => {
  const bytes = Buffer.allocUnsafe(end - start)
  await readAll(from, bytes, start)
  await Promise.all(inhabited(bytes).map(({ at, part }) => writeAll(to, part, start + at)))
}

const copy = (from: NodeFs.FileHandle, size: number, file: string, mode: number): Effect.Effect<void, HostFailed> => {
  const attempt = <A>(run: () => Promise<A>) =>
    Effect.tryPromise({
      try: run,
      catch: (cause) => new HostFailed({ path: file, why: `the memory cannot be copied: ${String(cause)}`, cause })
    })
  const pieces = Arr.makeBy(Math.ceil(size / piece), (index) => index * piece)
  return Effect.acquireUseRelease(
    attempt(() => NodeFs.open(file, "wx", 0o600)),
    (to) =>
      attempt(() => to.truncate(size)).pipe(
        Effect.andThen(
          Effect.forEach(pieces, (at) => attempt(() => copyPiece(from, to, at, Math.min(at + piece, size))), {
            concurrency: 4,
            discard: true
          })
        ),
        Effect.andThen(attempt(() => to.chmod(mode)))
      ),
    (to) => Effect.promise(() => to.close())
  )
}

export const makeRam = Effect.fnUntraced(function*(bytes: number): Effect.fn.Return<Ram, HostFailed, Scope.Scope> {
  const handle = yield* Effect.acquireRelease(open(bytes), (opened) => Effect.promise(() => opened.close()))
  const path = `/proc/${process.pid}/fd/${handle.fd}`
  yield* Effect.tryPromise({
    // QEMU's user opens it anew, and nobody else can: it has no name.
    try: () => Promise.all([handle.chmod(0o666), handle.truncate(bytes)]),
    catch: (cause) => new HostFailed({ path, why: `no memory of ${mib(bytes)} MiB: ${String(cause)}`, cause })
  })
  return { path, copyTo: (file, mode) => copy(handle, bytes, file, mode) }
})
