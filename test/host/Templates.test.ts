import { assert, describe, it, vi } from "@effect/vitest"
import { DiskFiles, type HostError, NodeDiskFiles, Templates } from "effect-microvm-runtime/host"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  closeSync,
  constants,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import { systemError } from "../files.ts"
import { addBase, image, inDirectory, layer, tree, type World } from "./diskSupport.ts"

const using = <A>(
  directory: string,
  use: (templates: Templates.Templates["Service"]) => Effect.Effect<A, HostError.HostError>,
  world?: World
) => Templates.Templates.use(use).pipe(Effect.provide(layer(directory, world)))

/** Counts what is read to its end. */
const counting = () => {
  const read: Array<string> = []
  const hook = (step: string) => Effect.sync(() => void (step.startsWith("sha256") && read.push(step)))
  return { read, hook }
}

const settle = Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 40)))

describe("Templates", () => {
  it.live("are the directories that have a regular rootfs.ext4, in order", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const stacks = using(directory, ({ list }) => list)
        assert.deepStrictEqual(yield* stacks, [])
        for (const stack of ["node-20", "base", "incomplete", "linked", "..odd", "no rootfs"]) {
          mkdirSync(join(directory, "templates", stack), { recursive: true })
        }
        writeFileSync(join(directory, "templates/node-20/rootfs.ext4"), "")
        writeFileSync(join(directory, "templates/base/rootfs.ext4"), "")
        writeFileSync(join(directory, "templates/..odd/rootfs.ext4"), "")
        symlinkSync(join(directory, "base.img"), join(directory, "templates/linked/rootfs.ext4"))
        writeFileSync(join(directory, "templates/file"), "")
        assert.deepStrictEqual((yield* stacks).map(({ isAdded, stack }) => [stack, isAdded]), [["base", false], [
          "node-20",
          false
        ]])
        assert.isTrue(Option.isNone(yield* using(directory, ({ find }) => find("incomplete"))))
        assert.isTrue(Option.isNone(yield* using(directory, ({ find }) => find("nothing"))))
      })
    ))

  it.live.each(["", "..", ".tmp", "a/b", "../x", "a\0", "-a", "a".repeat(65)])(
    "have no name such as %j",
    (stack) =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const uses: ReadonlyArray<Effect.Effect<unknown, HostError.HostError>> = [
            using(directory, ({ find }) => find(stack)),
            using(directory, ({ add }) => add(stack, join(directory, "base.img"))),
            using(directory, ({ remove }) => remove(stack))
          ]
          for (const use of uses) {
            const { reason } = yield* Effect.flip(use)
            assert.strictEqual(reason._tag, "InvalidArgument")
            assert.include(reason.message, `stack: ${JSON.stringify(stack)}`)
          }
          assert.deepStrictEqual(tree(directory), ["base.img"])
        })
      )
  )

  it.live("are read-only copies of what was added, with their digest and size", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const added = yield* addBase(directory)
        const path = join(directory, "templates/base/rootfs.ext4")
        assert.deepStrictEqual([added.path, added.size, added.stack], [path, 65_536, "base"])
        assert.deepStrictEqual(readFileSync(path), Buffer.from(image(65_536)))
        assert.strictEqual(statSync(path).mode & 0o777, 0o444)
        assert.notStrictEqual(statSync(path).ino, statSync(join(directory, "base.img")).ino)
        const { hook, read } = counting()
        const found = yield* using(directory, ({ find }) => find("base"), { hook })
        assert.deepStrictEqual(Option.getOrUndefined(found), added)
        assert.deepStrictEqual(read, [])
        const [listed] = yield* using(directory, ({ list }) => list)
        assert.isTrue(listed?.isAdded)
        assert.deepStrictEqual(tree(join(directory, "templates")), [
          "base/rootfs.ext4",
          "base/rootfs.ext4.digest.json"
        ])
      })
    ))

  it.live("are not taken from where everybody may write", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* addBase(directory)
        for (const open of [join(directory, "templates"), join(directory, "templates/base")]) {
          chmodSync(open, 0o777)
          const uses: ReadonlyArray<Effect.Effect<unknown, HostError.HostError>> = [
            using(directory, ({ find }) => find("base")),
            addBase(directory)
          ]
          for (const use of uses) {
            assert.include((yield* Effect.flip(use)).message, `everybody may write to it: chmod o-w ${open}`)
          }
          chmodSync(open, 0o775)
        }
        assert.isTrue(Option.isSome(yield* using(directory, ({ find }) => find("base"))))
      })
    ))

  it.live("added again change nothing, and another one needs to be told to take its place", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const first = yield* addBase(directory)
        assert.deepStrictEqual(yield* addBase(directory), first)
        const other = join(directory, "other.img")
        writeFileSync(other, image(131_072, { content: 9 }))
        const { reason } = yield* Effect.flip(using(directory, ({ add }) => add("base", other)))
        assert.strictEqual(reason._tag, "Conflict")
        assert.strictEqual(statSync(first.path).size, 65_536)
        const replaced = yield* using(directory, ({ add }) => add("base", other, { replace: true }))
        assert.notStrictEqual(replaced.digest, first.digest)
        assert.deepStrictEqual(Option.getOrUndefined(yield* using(directory, ({ find }) => find("base"))), replaced)
      })
    ))

  const bad: ReadonlyArray<readonly [what: string, make: (path: string) => void, why: RegExp]> = [
    ["nothing", () => {}, /there is no such file/],
    ["a directory", (path) => mkdirSync(path), /no regular file/],
    ["an empty file", (path) => writeFileSync(path, ""), /too short/],
    ["something else", (path) => writeFileSync(path, "x".repeat(10_000)), /no ext2, ext3 or ext4/],
    [
      "half of a file system",
      (path) => writeFileSync(path, image(65_536, { fileSystem: 131_072 })),
      /131072 bytes, and it ends before/
    ]
  ]
  it.live.each(bad)("are not made of %s", ([, make, why]) =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const file = join(directory, "bad.img")
        make(file)
        const { reason } = yield* Effect.flip(using(directory, ({ add }) => add("base", file)))
        assert.strictEqual(reason._tag, "InvalidArgument")
        assert.match(reason.message, why)
        assert.deepStrictEqual(tree(join(directory, "templates")), [])
      })
    ))

  it.live("are read again when they were changed, even if the time of writing was set back", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { digest, path } = yield* addBase(directory)
        const { atime, mtime } = statSync(path)
        chmodSync(path, 0o644)
        writeFileSync(path, image(65_536, { content: 8 }))
        utimesSync(path, atime, mtime)
        yield* settle
        const { hook, read } = counting()
        const found = yield* using(directory, ({ find }) => find("base"), { hook })
        assert.notStrictEqual(Option.getOrThrow(found).digest, digest)
        const again = yield* using(directory, ({ find }) => find("base"), { hook })
        assert.deepStrictEqual(again, found)
        assert.lengthOf(read, 1)
        // Whoever wrote there may have had reasons.
        const [listed] = yield* using(directory, ({ list }) => list)
        assert.isFalse(listed?.isAdded)
      })
    ))

  it.live("whose digest file is nonsense, or too long, are read again", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { digest } = yield* addBase(directory)
        for (const text of ["", "{}", "[".repeat(100_000), JSON.stringify({ seal: "x", sha256: "y", isAdded: true })]) {
          writeFileSync(join(directory, "templates/base/rootfs.ext4.digest.json"), text)
          assert.strictEqual(Option.getOrThrow(yield* using(directory, ({ find }) => find("base"))).digest, digest)
        }
      })
    ))

  it.live("go with nothing else that is in their directory", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* addBase(directory)
        yield* using(directory, ({ add }) => add("own", join(directory, "base.img")))
        writeFileSync(join(directory, "templates/base/README"), "kept")
        for (const stack of ["base", "own"]) {
          assert.isTrue(yield* using(directory, ({ remove }) => remove(stack)))
          assert.isFalse(yield* using(directory, ({ remove }) => remove(stack)))
        }
        assert.deepStrictEqual(tree(directory), ["base.img", "templates/base/README"])
      })
    ))

  it.live("that nobody may write down the digest of are found all the same", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { digest } = yield* addBase(directory)
        const refuse = () => Effect.fail(systemError("EROFS"))
        const found = yield* using(directory, ({ find }) => find("base"), {
          files: () => ({ makeDirectory: refuse, makeTempDirectory: refuse, rename: refuse, utimes: refuse })
        })
        assert.strictEqual(Option.getOrThrow(found).digest, digest)
      })
    ))

  it.live(
    "are whole, or as before, whenever the process that adds one is killed",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const other = join(directory, "other.img")
          writeFileSync(other, image(131_072, { content: 9 }))
          const { digest: before } = yield* addBase(directory)
          const adding = (world: World) => using(directory, ({ add }) => add("base", other, { replace: true }), world)
          let steps = 0
          let after: string | undefined
          for (let last = 1; after === undefined; last++) {
            steps = 0
            const hook = () =>
              Effect.suspend(() => ++steps >= last ? Effect.die(new Error(`killed at step ${last}`)) : Effect.void)
            const exit = yield* Effect.exit(adding({ hook, isDoomed: true }))
            const found = Option.getOrThrow(yield* using(directory, ({ find }) => find("base")))
            if (Exit.isSuccess(exit)) after = exit.value.digest
            else if (found.digest === before) {
              assert.strictEqual(statSync(found.path).size, 65_536)
            } else {
              // The rename was the last thing that counted.
              assert.deepStrictEqual(readFileSync(found.path), readFileSync(other))
              yield* using(directory, ({ add }) => add("base", join(directory, "base.img"), { replace: true }))
            }
            assert.isBelow(last, 200)
          }
          assert.isAbove(steps, 15)
          assert.notStrictEqual(after, before)
          yield* using(directory, ({ add }) => add("base", other))
          assert.deepStrictEqual(tree(join(directory, "templates")), [
            "base/rootfs.ext4",
            "base/rootfs.ext4.digest.json"
          ])
        })
      ),
    180_000
  )

  it.live("are where MICROVM_ROOTFS_TEMPLATE_DIR says, or else in /var/lib/microvm", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const at = (env: Record<string, string>) =>
          Templates.Templates.use((templates) => Effect.succeed(templates.directory)).pipe(
            Effect.provide(
              Templates.layer.pipe(
                Layer.provide([layer(directory), ConfigProvider.layer(ConfigProvider.fromEnv({ env }))])
              )
            )
          )
        assert.strictEqual(yield* at({}), "/var/lib/microvm/rootfs-templates")
        assert.strictEqual(yield* at({ MICROVM_ROOTFS_TEMPLATE_DIR: "/t" }), "/t")
      })
    ))
})

describe("DiskFiles on this host", () => {
  const files = <A, E>(use: (files: DiskFiles.DiskFiles["Service"]) => Effect.Effect<A, E>) =>
    DiskFiles.DiskFiles.use(use).pipe(Effect.provide(NodeDiskFiles.layer))

  it.live("hashes", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const known: ReadonlyArray<readonly [string | Uint8Array, string, string]> = [
          ["abc", "ba7816bf", "15ad"],
          ["", "e3b0c442", "b855"],
          [new Uint8Array(10 * 1024 * 1024), "e5b844cc", "e55d"]
        ]
        for (const [content, start, end] of known) {
          const path = join(directory, "content")
          writeFileSync(path, content)
          const digest = yield* files(({ sha256 }) => sha256(path))
          assert.deepStrictEqual([digest.slice(0, 8), digest.slice(-4)], [start, end])
        }
        const error = yield* Effect.flip(files(({ sha256 }) => sha256(join(directory, "nothing"))))
        assert.strictEqual(error.reason._tag, "NotFound")
        const directoryError = yield* Effect.flip(files(({ sha256 }) => sha256(directory)))
        assert.include(String(directoryError.reason.cause), "EISDIR")
      })
    ))

  it.live("stops hashing at once when it is interrupted", () =>
    Effect.gen(function*() {
      // It has no end.
      const done = yield* Effect.option(Effect.timeout(files(({ sha256 }) => sha256("/dev/zero")), "300 millis"))
      assert.isTrue(Option.isNone(done))
    }))

  it.live("does not wait for who may write to a pipe", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const path = join(directory, "pipe")
        execFileSync("mkfifo", [path])
        // Ends the wait, if there is one: nothing else could.
        yield* Effect.forkScoped(Effect.delay(
          Effect.sync(() => closeSync(openSync(path, constants.O_RDWR | constants.O_NONBLOCK))),
          "5 seconds"
        ))
        const error = yield* Effect.flip(files(({ sha256 }) => sha256(path)))
        assert.include(String(error.reason.cause), "it is a pipe")
      }).pipe(Effect.scoped)
    ))

  it.live("sees what is written, renamed and linked, and follows no link", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const path = join(directory, "file")
        writeFileSync(path, "one")
        const facts = (at = path) => files((disk) => disk.facts(at))
        // As at that very moment, however long we take to look.
        const now = vi.spyOn(Date, "now").mockReturnValue(statSync(path).ctimeMs)
        const first = yield* Effect.ensuring(facts(), Effect.sync(() => now.mockRestore()))
        assert.isFalse(first.isSettled)
        yield* settle
        assert.deepStrictEqual(yield* facts(), { ...first, isSettled: true })
        writeFileSync(path, "two")
        const second = yield* facts()
        assert.notStrictEqual(second.seal, first.seal)
        yield* settle
        linkSync(path, join(directory, "link"))
        assert.strictEqual((yield* facts()).links, 2)
        symlinkSync(path, join(directory, "symlink"))
        assert.strictEqual((yield* facts(join(directory, "symlink"))).type, "other")
        renameSync(path, join(directory, "renamed"))
        assert.strictEqual((yield* Effect.flip(facts())).reason._tag, "NotFound")
      })
    ))
})
