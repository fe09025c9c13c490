/**
 * Memory files of snapshots: which pages were written of one that is the difference to another, and one made of several.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { hasProperty } from "effect/Predicate"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs/promises"
import type { FirecrackerError } from "../FirecrackerError.ts"
import type { MemoryLayer } from "../FirecrackerHost.ts"
import { attempt, codeOf, hostFailed } from "./NodeAttempt.ts"
import type { Libc } from "./NodeLibc.ts"
import * as PageMap from "./pageMap.ts"

const { COPYFILE_EXCL, COPYFILE_FICLONE_FORCE, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } =
  NodeFs.constants
const [SEEK_DATA, SEEK_HOLE] = [3, 4] as const
const { pageSize } = PageMap

/** Where data begin or holes do, from an offset on; nothing after the last data. */
const seek = (libc: Libc, descriptor: number, from: number, what: number): number | undefined => {
  try {
    return libc.lseek(descriptor, from, what)
  } catch (error) {
    if (hasProperty(error, "code") && error.code === "ENXIO") return undefined
    throw error
  }
}

/** Of 32 GiB, every other page. A jail may leave a file that is none of ours, and much larger. */
const mostRuns = 2 ** 22

/** What is looked for at a time: others wait. */
const runsAtATime = 4096

/** The stretches of a file that were written. */
const writtenOf = async (
  libc: Libc,
  descriptor: number,
  runs: Array<PageMap.Run> = [],
  from = 0
): Promise<ReadonlyArray<PageMap.Run>> => {
  let end = from
  for (let more = runsAtATime; more > 0; more--) {
    const start = seek(libc, descriptor, end, SEEK_DATA)
    if (start === undefined) return runs
    end = seek(libc, descriptor, start, SEEK_HOLE) ?? start
    if (start % pageSize !== 0 || end % pageSize !== 0 || end <= start) throw new Error(untold)
    runs.push({ first: start / pageSize, count: (end - start) / pageSize })
  }
  if (runs.length >= mostRuns) throw new Error(`it has more than ${mostRuns} stretches`)
  await new Promise(setImmediate)
  return writtenOf(libc, descriptor, runs, end)
}

const untold =
  "its file system does not tell single pages from holes: keep snapshots on another one, as ext4, XFS or Btrfs"

/** As large as the largest page of a file system, twice. */
const probeBytes = 2 ** 22

/** A page of zeros has to be told from a hole, and both from what is beside them. */
const probe = async (libc: Libc, path: string): Promise<void> => {
  const file = await NodeFs.open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  try {
    await file.truncate(probeBytes)
    await file.write(new Uint8Array(pageSize), 0, pageSize, 5 * pageSize)
    await file.write(new Uint8Array(pageSize).fill(1), 0, pageSize, 7 * pageSize)
    const found = (await writtenOf(libc, file.fd)).map(({ count, first }) => `${first}+${count}`).join()
    if (found !== "5+1,7+1") throw new Error(untold)
  } finally {
    await file.close()
    await NodeFs.rm(path, { force: true })
  }
}

const open = async (path: string): Promise<NodeFs.FileHandle> => {
  // One that comes out of a jail could be anything.
  const file = await NodeFs.open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  if ((await file.stat()).isFile()) return file
  await file.close()
  throw new Error("it is no file")
}

/** Lists the pages of a sparse file in another, new one. */
export const listPages = (libc: Libc, memory: string, to: string): Effect.Effect<void, FirecrackerError> =>
  attempt("find out which pages were written of", memory, async () => {
    await probe(libc, `${memory}.probe`)
    await using file = await open(memory)
    await NodeFs.writeFile(to, PageMap.encode(await writtenOf(libc, file.fd)), { flag: "wx", mode: 0o600 })
  })

const chunkBytes = 2 ** 20
/** What is written at once or not at all. */
const blockBytes = 2 ** 16
const zeros = Buffer.alloc(blockBytes)

const readAll = async (file: NodeFs.FileHandle, into: Buffer, position: number): Promise<void> => {
  const { bytesRead } = await file.read(into, 0, into.length, position)
  if (bytesRead === 0 && into.length > 0) throw new Error("it has become shorter")
  if (bytesRead < into.length) await readAll(file, into.subarray(bytesRead), position + bytesRead)
}

const writeAll = async (file: NodeFs.FileHandle, bytes: Buffer, position: number): Promise<void> => {
  const { bytesWritten } = await file.write(bytes, 0, bytes.length, position)
  if (bytesWritten < bytes.length) await writeAll(file, bytes.subarray(bytesWritten), position + bytesWritten)
}

interface Layer {
  readonly file: NodeFs.FileHandle
  readonly runs: ReadonlyArray<PageMap.Run>
  /** The first run that is not done with. */
  next: number
}

/** Bytes of a chunk, from its beginning. */
type Part = readonly [from: number, to: number]

/** What a layer has of a chunk, which is asked for in order. */
const partsOf = (layer: Layer, start: number, end: number): ReadonlyArray<Part> => {
  const parts: Array<Part> = []
  for (; layer.next < layer.runs.length; layer.next++) {
    const { count, first } = layer.runs[layer.next] ?? { first: Infinity, count: 0 }
    const [from, to] = [first * pageSize, (first + count) * pageSize]
    if (from >= end) break
    parts.push([Math.max(from, start) - start, Math.min(to, end) - start])
    // Its rest is in the next chunk.
    if (to > end) break
  }
  return parts
}

interface Merging {
  readonly source: NodeFs.FileHandle
  readonly target: NodeFs.FileHandle
  /** Has the target the content of the source? */
  readonly isClone: boolean
  readonly layers: ReadonlyArray<Layer>
}

const mergeChunk = async (
  { isClone, layers, source, target }: Merging,
  chunk: Buffer,
  start: number
): Promise<void> => {
  const parts = layers.map((layer) => partsOf(layer, start, start + chunk.length))
  if (isClone && parts.every((some) => some.length === 0)) return
  const overs = await Promise.all(layers.map(async ({ file }, index) => {
    const [from = 0, to = 0] = [parts[index]?.at(0)?.[0], parts[index]?.at(-1)?.[1]]
    const bytes = Buffer.alloc(to - from)
    await readAll(file, bytes, start + from)
    return { bytes, from, parts: parts[index] ?? [] }
  }))
  await readAll(source, chunk, start)
  const touched = new Set<number>()
  for (const over of overs) {
    for (const [from, to] of over.parts) {
      over.bytes.copy(chunk, from, from - over.from, to - over.from)
      for (let block = Math.floor(from / blockBytes); block * blockBytes < to; block++) touched.add(block)
    }
  }
  const blocks = Array.from(
    { length: Math.ceil(chunk.length / blockBytes) },
    (_, index) => chunk.subarray(index * blockBytes, (index + 1) * blockBytes)
  )
  await Promise.all(blocks.map(async (block, index) => {
    const isWanted = isClone ? touched.has(index) : !block.equals(zeros.subarray(0, block.length))
    if (isWanted) await writeAll(target, block, start + index * blockBytes)
  }))
}

const handle = (operation: string, path: string, run: () => Promise<NodeFs.FileHandle>) =>
  Effect.acquireRelease(attempt(operation, path, run), (file) => Effect.promise(() => file.close()))

const sizeOf = (file: NodeFs.FileHandle, path: string) =>
  Effect.map(attempt("look at", path, () => file.stat()), ({ size }) => size)

const openLayer = Effect.fnUntraced(function*(
  { memory, pages }: MemoryLayer,
  size: number
): Effect.fn.Return<Layer, FirecrackerError, Scope.Scope> {
  const file = yield* handle("open", memory, () => open(memory))
  const length = yield* sizeOf(file, memory)
  if (length !== size) {
    return yield* hostFailed("use", memory, `it has ${length} bytes, and what it is the difference to has ${size}`)
  }
  const runs = PageMap.decode(yield* attempt("read", pages, () => NodeFs.readFile(pages)), size / pageSize)
  if (Result.isFailure(runs)) return yield* hostFailed("use", pages, `it is no list of pages: ${runs.failure}`)
  return { file, runs: runs.success, next: 0 }
})

/** A new file, and whether it has the content of the one that it is made of. */
const create = async (from: string, to: string) => {
  const isClone = await NodeFs.copyFile(from, to, COPYFILE_EXCL | COPYFILE_FICLONE_FORCE).then(
    () => true,
    (error: unknown) => {
      if (codeOf(error) === "EEXIST") throw error
      return false
    }
  )
  return { isClone, file: await NodeFs.open(to, isClone ? O_RDWR : O_RDWR | O_CREAT | O_EXCL, 0o600) }
}

/** Makes a new memory file of one and what is over it, the topmost last. What it is made of is only read. */
export const mergeMemory = (
  base: string,
  over: ReadonlyArray<MemoryLayer>,
  to: string
): Effect.Effect<void, FirecrackerError> =>
  Effect.scoped(Effect.gen(function*() {
    const source = yield* handle("open", base, () => open(base))
    const size = yield* sizeOf(source, base)
    if (size === 0 || size % pageSize !== 0) {
      return yield* hostFailed("use", base, `it has ${size} bytes, which are no pages`)
    }
    const layers = yield* Effect.forEach(over, (layer) => openLayer(layer, size))
    const { file: target, isClone } = yield* Effect.acquireRelease(
      attempt("make", to, () => create(base, to)),
      ({ file }, exit) =>
        Effect.promise(async () => {
          await file.close()
          if (Exit.isFailure(exit)) await NodeFs.rm(to, { force: true })
        })
    )
    const step = <A>(run: () => Promise<A>) => attempt("put a memory together in", to, run)
    if (!isClone) yield* step(() => target.truncate(size))
    const chunk = Buffer.alloc(chunkBytes)
    const merging = { source, target, isClone, layers }
    for (let start = 0; start < size; start += chunkBytes) {
      yield* step(() => mergeChunk(merging, chunk.subarray(0, Math.min(chunkBytes, size - start)), start))
    }
    yield* step(() => target.chmod(0o644))
  }))
