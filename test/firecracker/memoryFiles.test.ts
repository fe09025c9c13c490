import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeLibc from "../../src/firecracker/internal/NodeLibc.ts"
import { listPages, mergeMemory } from "../../src/firecracker/internal/NodeMemoryFiles.ts"
import * as PageMap from "../../src/firecracker/internal/pageMap.ts"

const page = 4096
const work = mkdtempSync(join(tmpdir(), "memory-files-"))
afterAll(() => rmSync(work, { recursive: true }))
let made = 0
const fresh = () => join(work, `file-${++made}`)

type Pages = ReadonlyMap<number, Uint8Array>

/** A sparse file with these pages. */
const sparse = (pages: number, written: Pages): string => {
  const path = fresh()
  const file = openSync(path, "wx")
  ftruncateSync(file, pages * page)
  for (const [at, bytes] of written) writeSync(file, bytes, 0, page, at * page)
  closeSync(file)
  return path
}

const over = (...layers: ReadonlyArray<Pages>): Map<number, Uint8Array> =>
  new Map(layers.flatMap((layer) => Array.from(layer)))

const contentOf = (pages: number, written: Pages): Buffer => {
  const content = Buffer.alloc(pages * page)
  for (const [at, bytes] of written) content.set(bytes, at * page)
  return content
}

const listed = Effect.fnUntraced(function*(memory: string) {
  const pages = fresh()
  yield* listPages(yield* NodeLibc.load, memory, pages)
  return { memory, pages }
})

const messageOf = <A, E extends Error, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), ({ message }) => message)

/** Some pages of zeros among them. */
const somePages = Effect.fnUntraced(function*(pages: number, count: number) {
  const written = new Map<number, Uint8Array>()
  for (let index = 0; index < count; index++) {
    const at = yield* Random.nextIntBetween(0, pages - 1)
    const run = yield* Random.nextIntBetween(1, 5)
    const byte = yield* Random.nextIntBetween(0, 3)
    for (let more = 0; more < run && at + more < pages; more++) written.set(at + more, new Uint8Array(page).fill(byte))
  }
  return written
})

describe("a memory that is put together", () => {
  it.live("is the base with each difference over it, and takes no more room than that", () =>
    Effect.gen(function*() {
      // Not a multiple of what is read at once, and longer than that.
      const pages = 700
      for (let round = 0; round < 8; round++) {
        const all = [yield* somePages(pages, 40)]
        for (let depth = round % 4; depth >= 0; depth--) all.push(yield* somePages(pages, 1 + 4 * round))
        const [base = new Map<number, Uint8Array>(), ...diffs] = all
        // To the very ends, over the border of what is read at once, and all of a stretch.
        diffs[0]?.set(0, new Uint8Array(page)).set(pages - 1, new Uint8Array(page).fill(9))
        for (let at = 250; at < 260; at++) diffs[0]?.set(at, new Uint8Array(page).fill(at % 3))
        const from = sparse(pages, base)
        const layers = yield* Effect.forEach(diffs, (diff) => listed(sparse(pages, diff)))
        const before = [from, ...layers.map(({ memory }) => memory)].map((path) => readFileSync(path))
        const to = fresh()
        yield* mergeMemory(from, layers, to)
        assert.isTrue(readFileSync(to).equals(contentOf(pages, over(...all))))
        assert.strictEqual(statSync(to).mode & 0o777, 0o644)
        const after = [from, ...layers.map(({ memory }) => memory)].map((path) => readFileSync(path))
        assert.isTrue(before.every((bytes, index) => after[index]?.equals(bytes)))
      }
      const small = sparse(25_600, new Map([[20_000, new Uint8Array(page).fill(1)]]))
      const to = fresh()
      yield* mergeMemory(small, [yield* listed(sparse(25_600, new Map()))], to)
      assert.isAtMost(statSync(to).blocks, 1024)
    }).pipe(Random.withSeed("memory")))

  it.live("goes by the list, whatever holes the file has", () =>
    Effect.gen(function*() {
      const base = new Map([[1, new Uint8Array(page).fill(1)], [2, new Uint8Array(page).fill(2)]])
      const { memory, pages } = yield* listed(sparse(8, new Map([[2, new Uint8Array(page)]])))
      assert.deepStrictEqual(Result.getOrThrow(PageMap.decode(readFileSync(pages), 8)), [{ first: 2, count: 1 }])
      // As a copy that knows of no holes has it, and one that makes holes of zeros.
      const filled = fresh()
      writeFileSync(filled, readFileSync(memory))
      for (const copy of [filled, sparse(8, new Map())]) {
        const to = fresh()
        yield* mergeMemory(sparse(8, base), [{ memory: copy, pages }], to)
        assert.isTrue(readFileSync(to).equals(contentOf(8, over(base, new Map([[2, new Uint8Array(page)]])))))
      }
    }))

  it.live("is not made of what does not belong together, and then there is none", () =>
    Effect.gen(function*() {
      const base = sparse(8, new Map([[1, new Uint8Array(page).fill(1)]]))
      const good = yield* listed(sparse(8, new Map([[2, new Uint8Array(page).fill(2)]])))
      const garbage = fresh()
      writeFileSync(garbage, "garbage, and more of it.")
      const foreign = fresh()
      writeFileSync(foreign, PageMap.encode([{ first: 7, count: 2 }]))
      const link = fresh()
      symlinkSync(base, link)
      const before = readdirSync(work).length
      const cases = [
        [sparse(9, new Map()), good.memory, good.pages, /has 32768 bytes, and what it is the difference to has 36864/],
        [base, sparse(7, new Map()), good.pages, /has 28672 bytes/],
        [base, good.memory, garbage, /it is no list of pages: it tells of/],
        [base, good.memory, foreign, /it tells of 2 pages from 7 on/],
        [base, "/nowhere", good.pages, /ENOENT/],
        [base, good.memory, "/nowhere", /ENOENT/],
        [link, good.memory, good.pages, /ELOOP/],
        [work, good.memory, good.pages, /it is no file/],
        [garbage, good.memory, good.pages, /which are no pages/]
      ] as const
      for (const [from, memory, pages, message] of cases) {
        assert.match(yield* messageOf(mergeMemory(from, [{ memory, pages }], join(work, "none"))), message)
      }
      assert.match(yield* messageOf(mergeMemory(base, [good], garbage)), /EEXIST/)
      assert.strictEqual(readFileSync(garbage, "utf8"), "garbage, and more of it.")
      assert.strictEqual(readdirSync(work).length, before + 2)
    }))

  it.live("is not there when whoever wanted it has left", () =>
    Effect.gen(function*() {
      const base = sparse(2_560_000, new Map())
      const layer = yield* listed(sparse(2_560_000, new Map()))
      const to = join(work, "left")
      const merging = yield* Effect.forkChild(mergeMemory(base, [layer], to), { startImmediately: true })
      const next = Effect.promise(() => new Promise((resolve) => void setImmediate(resolve)))
      yield* Effect.repeat(next, {
        until: () => readdirSync(work).includes("left") || merging.pollUnsafe() !== undefined
      })
      if (merging.pollUnsafe() !== undefined) {
        console.warn("skipped: it was done before anybody could leave")
        return yield* Fiber.join(merging)
      }
      yield* Fiber.interrupt(merging)
      assert.notInclude(readdirSync(work), "left")
    }))
})

describe("which pages were written", () => {
  it.live("is not guessed where the file system does not tell", () =>
    Effect.gen(function*() {
      const libc = yield* NodeLibc.load
      const memory = sparse(64, new Map([[3, new Uint8Array(page)]]))
      const before = readdirSync(work)
      // As records of 128 KiB look, as a file system without holes, and as one that makes some of zeros.
      const coarse: NodeLibc.Libc["lseek"] = (descriptor, offset, whence) => {
        const found = libc.lseek(descriptor, offset, whence)
        return whence === 3 ? found - found % (32 * page) : Math.ceil(found / (32 * page)) * 32 * page
      }
      const full: NodeLibc.Libc["lseek"] = (_, offset, whence) => {
        if (whence === 4) return 2 ** 22
        if (offset < 2 ** 22) return offset
        throw Object.assign(new Error("ENXIO"), { code: "ENXIO" })
      }
      const zeroless: NodeLibc.Libc["lseek"] = (descriptor, offset, whence) =>
        whence === 3 && offset < 7 * page ? 7 * page : libc.lseek(descriptor, offset, whence)
      for (const lseek of [coarse, full, zeroless]) {
        const message = yield* messageOf(listPages({ ...libc, lseek }, memory, join(work, "pages")))
        assert.include(message, "does not tell single pages from holes")
      }
      assert.deepStrictEqual(readdirSync(work), before)
    }))

  it.live("is not looked for in what is no file, or through a link", () =>
    Effect.gen(function*() {
      const libc = yield* NodeLibc.load
      const memory = sparse(8, new Map())
      const link = fresh()
      symlinkSync(memory, link)
      assert.match(yield* messageOf(listPages(libc, link, fresh())), /ELOOP/)
      truncateSync(memory, 0)
      const { pages } = yield* listed(memory)
      assert.strictEqual(statSync(pages).size, 0)
      assert.match(yield* messageOf(listPages(libc, memory, pages)), /EEXIST/)
    }))
})
