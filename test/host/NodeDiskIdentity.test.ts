import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeDiskIdentity from "../../src/host/NodeDiskIdentity.ts"

const work = Effect.acquireRelease(
  Effect.sync(() => NodeFs.mkdtempSync(join(tmpdir(), "disk-identity-"))),
  (directory) => Effect.sync(() => NodeFs.rmSync(directory, { recursive: true }))
)

const digestOf = (text: string) => createHash("sha256").update(text).digest("hex")

it.live("a disk that is only read has a digest, and its very file is not read for it again", () =>
  Effect.gen(function*() {
    const path = join(yield* work, "disk")
    NodeFs.writeFileSync(path, "one")
    const first = yield* NodeDiskIdentity.identify(path, { readOnly: true })
    assert.deepInclude(first, { size: 3, sha256: digestOf("one") })
    // What is said of it is believed of the very same file only.
    const told = { ...first, sha256: "said before" }
    assert.deepStrictEqual(yield* NodeDiskIdentity.identify(path, { readOnly: true, known: told }), told)
    assert.deepStrictEqual(yield* NodeDiskIdentity.identify(path, { readOnly: true }), first)
    const link = `${path}-link`
    NodeFs.symlinkSync(path, link)
    assert.deepStrictEqual(yield* NodeDiskIdentity.identify(link, { readOnly: true, known: told }), told)

    yield* Effect.sleep("30 millis")
    NodeFs.writeFileSync(path, "two")
    assert.deepInclude(yield* NodeDiskIdentity.identify(path, { readOnly: true, known: told }), {
      sha256: digestOf("two")
    })
    const copy = `${path}-copy`
    NodeFs.copyFileSync(path, copy)
    assert.deepInclude(yield* NodeDiskIdentity.identify(copy, { readOnly: true, known: told }), {
      sha256: digestOf("two")
    })
  }))

it.live("a disk that is written to is not read; that it was written to shows", () =>
  Effect.gen(function*() {
    const path = join(yield* work, "disk")
    NodeFs.writeFileSync(path, "one")
    const before = yield* NodeDiskIdentity.identify(path, { readOnly: false })
    assert.isUndefined(before.sha256)
    yield* Effect.sleep("30 millis")
    NodeFs.chmodSync(path, 0o600)
    const after = yield* NodeDiskIdentity.identify(path, { readOnly: false })
    assert.deepStrictEqual(after, { ...before, ...(after.changed !== undefined && { changed: after.changed }) })
    NodeFs.writeFileSync(path, "two")
    const written = yield* NodeDiskIdentity.identify(path, { readOnly: false })
    assert.strictEqual(written.file, before.file)
    assert.notStrictEqual(written.modified, before.modified)
  }))

it.live("a file that is made when another one is gone is another one, though it may get the inode of that", () =>
  Effect.gen(function*() {
    const path = join(yield* work, "disk")
    NodeFs.writeFileSync(path, "one")
    const gone = yield* NodeDiskIdentity.identify(path, { readOnly: false })
    NodeFs.rmSync(path)
    yield* Effect.sleep("30 millis")
    NodeFs.writeFileSync(path, "two")
    const clone = yield* NodeDiskIdentity.identify(path, { readOnly: false })
    assert.notStrictEqual(clone.file, gone.file)
  }))

it.live("one that is not there is told", () =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(NodeDiskIdentity.identify("/nonexistent/disk", { readOnly: true }))
    assert.include(error.message, "/nonexistent/disk")
  }))
