import { assert, describe, it } from "@effect/vitest"
import { DiskClones, HostError, Templates } from "effect-microvm-runtime/host"
import { ResourceKind } from "effect-microvm-runtime/journal"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import { systemError } from "../files.ts"
import { addBase, image, inDirectory, layer, owner, tree, whole, type World } from "./diskSupport.ts"

const SIZE = 65_536

const using = <A>(
  directory: string,
  use: (clones: DiskClones.DiskClones["Service"]) => Effect.Effect<A, HostError.HostError>,
  world?: World
) => DiskClones.DiskClones.use(use).pipe(Effect.provide(layer(directory, world)))

const clone = (directory: string, options: Partial<DiskClones.CloneOptions> = {}, world?: World) =>
  using(directory, (clones) => clones.clone({ owner, stack: "base", ...options }), world)

const bootId = "a boot"
const reclaim = (
  directory: string,
  options: { readonly dryRun?: boolean; readonly owner?: Partial<typeof owner>; readonly at?: string } = {},
  world?: World
) =>
  DiskClones.kind.reclaim([{
    owner: { ...owner, bootId, ...options.owner },
    data: { directory: options.at ?? join(directory, "clones", options.owner?.id ?? owner.id) }
  }], { dryRun: options.dryRun ?? false }).pipe(
    Effect.map(([verdict]) => verdict ?? assert.fail("no verdict")),
    Effect.provide(layer(directory, world))
  )

/** A directory with template `base`. */
const withBase = <A, E>(use: (directory: string) => Effect.Effect<A, E>) =>
  inDirectory((directory) => Effect.andThen(addBase(directory), use(directory)))

const clonesOf = (directory: string) => tree(join(directory, "clones"))

describe("a clone", () => {
  it.live("is a file of its own, with the digest of its template", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const made = yield* clone(directory)
        const template = join(directory, "templates/base/rootfs.ext4")
        assert.deepStrictEqual(made, {
          id: "vm-1",
          stack: "base",
          digest: readFileSync(join(directory, "clones/vm-1/rootfs.ext4.sha256"), "utf8"),
          size: SIZE,
          how: "sparse-copy",
          path: join(directory, "clones/vm-1/rootfs.ext4")
        })
        assert.deepStrictEqual(readFileSync(made.path), readFileSync(template))
        assert.deepStrictEqual(clonesOf(directory), whole("vm-1"))
        const { ino, mode, nlink } = statSync(made.path)
        assert.notStrictEqual(ino, statSync(template).ino)
        assert.strictEqual(nlink, 1)
        assert.strictEqual(mode & 0o777, 0o600)
        assert.strictEqual(statSync(join(directory, "clones/vm-1")).mode & 0o777, 0o700)
        // What a machine writes is its own.
        writeFileSync(made.path, "gone")
        assert.strictEqual(statSync(template).size, SIZE)
      })
    ))

  it.live("is the same when it is asked for again, with what was written to it", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const made = yield* clone(directory)
        writeFileSync(made.path, image(SIZE, { content: 1 }))
        assert.deepStrictEqual(yield* clone(directory), made)
        assert.strictEqual(readFileSync(made.path)[SIZE - 1], 1)
      })
    ))

  const ways: ReadonlyArray<readonly [how: DiskClones.How, world: World, programs: ReadonlyArray<string>]> = [
    ["reflink", {
      reflink: (from, to) =>
        Effect.sync(() => {
          copyFileSync(from, to)
          return true
        }),
      room: 0
    }, []],
    ["sparse-copy", { reflink: () => Effect.succeed(false) }, ["cp --reflink=never --sparse=auto --"]],
    ["copy", {
      program: () =>
        HostError.fail(new HostError.Unavailable({ what: "cp", why: "it is not there", remedy: "install it" }))
    }, ["cp --reflink=never --sparse=auto --"]]
  ]
  it.live.each(ways)(
    "tells that it is a %s",
    ([how, world, programs]) =>
      withBase((directory) =>
        Effect.gen(function*() {
          const ran: Array<string> = []
          const made = yield* clone(directory, {}, {
            ...world,
            program: (command) => {
              ran.push([command.program, ...command.args.slice(0, -2)].join(" "))
              return world.program?.(command)
            }
          })
          assert.strictEqual(made.how, how)
          assert.deepStrictEqual(ran, programs)
          assert.deepStrictEqual(readFileSync(made.path), readFileSync(join(directory, "base.img")))
          assert.strictEqual((yield* clone(directory)).how, how)
        })
      )
  )

  it.live("grows in a temporary place, and says to which size", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const ran: Array<string> = []
        const made = yield* clone(directory, { size: 2 * SIZE }, {
          program: ({ args, program, within }) => {
            ran.push(program)
            if (program === "cp") return undefined
            assert.strictEqual(statSync(args[0] ?? "").size, 2 * SIZE)
            assert.match(args[0] ?? "", /clones\/\.tmp\//)
            assert.isTrue(Duration.toMinutes(Duration.fromInputUnsafe(within ?? 0)) >= 10)
            return Effect.succeed("")
          }
        })
        assert.deepStrictEqual(ran, ["cp", "resize2fs"])
        assert.strictEqual(made.size, 2 * SIZE)
        const bytes = readFileSync(made.path)
        assert.deepStrictEqual(bytes.subarray(0, SIZE), readFileSync(join(directory, "base.img")))
        assert.isTrue(bytes.subarray(SIZE).every((byte) => byte === 0))
        assert.strictEqual(readFileSync(`${made.path}.size`, "utf8"), String(2 * SIZE))
        assert.strictEqual(statSync(join(directory, "templates/base/rootfs.ext4")).size, SIZE)
        // The same size again runs nothing.
        assert.deepStrictEqual(
          yield* clone(directory, { size: 2 * SIZE }, { program: ({ program }) => Effect.die(new Error(program)) }),
          made
        )
      })
    ))

  it.live("of the size of its template needs no program for it", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const made = yield* clone(directory, { size: SIZE }, {
          program: ({ program }) => program === "cp" ? undefined : Effect.die(new Error(program))
        })
        assert.isFalse(existsSync(`${made.path}.size`))
      })
    ))

  it.live("of a file system that was not unmounted is checked first, twice if that corrected something", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        writeFileSync(join(directory, "base.img"), image(SIZE, { recover: true }))
        yield* addBase(directory)
        const ran: Array<string> = []
        yield* clone(directory, { size: 2 * SIZE }, {
          program: ({ args, program, what }) => {
            ran.push([program, ...args.slice(0, -1).filter((arg) => program !== "cp" && arg !== "")].join(" "))
            return program === "e2fsck" && ran.filter((one) => one.startsWith("e2fsck")).length === 1
              ? HostError.fail(new HostError.CommandFailed({ program, what, status: "exited with code 1", stderr: "" }))
              : undefined
          }
        })
        assert.deepStrictEqual(ran, ["cp", "e2fsck -f -p", "e2fsck -f -p", "resize2fs"])
      })
    ))

  const refused: ReadonlyArray<readonly [options: Partial<DiskClones.CloneOptions>, fields: ReadonlyArray<string>]> = [
    [{ size: SIZE - 1 }, ["size"]],
    [{ size: 1.5 * SIZE + 0.5 }, ["size"]],
    [{ size: Number.NaN }, ["size"]],
    [{ size: 2 ** 60 }, ["size"]],
    [{ stack: "nothing" }, ["stack"]],
    [{ stack: "../base" }, ["stack"]],
    [{ owner: { ...owner, id: "" } }, ["id"]],
    [{ owner: { ...owner, id: "vm/with:weird*chars" } }, ["id"]],
    [{ owner: { ...owner, id: "../vm" }, stack: "", size: -1 }, ["id", "stack", "size"]]
  ]
  it.live.each(refused)(
    "that cannot be is refused with all that is wrong: %j",
    ([options, fields]) =>
      withBase((directory) =>
        Effect.gen(function*() {
          const { reason } = yield* Effect.flip(clone(directory, options))
          assert.strictEqual(reason._tag, "InvalidArgument")
          const faults = reason._tag === "InvalidArgument" ? reason.faults : []
          assert.deepStrictEqual(faults.map(({ field }) => field), [...fields])
          if (options.stack === "nothing") assert.include(reason.message, "choose from base")
          assert.deepStrictEqual(tree(directory).filter((path) => path.startsWith("clones")), [])
          assert.isFalse(existsSync(join(directory, "clones")))
        })
      )
  )

  const inTheWay: ReadonlyArray<readonly [what: string, make: (directory: string) => Effect.Effect<unknown, unknown>]> =
    [
      ["another machine's", (directory) => clone(directory, { owner: { ...owner, token: "f".repeat(16) } })],
      ["one of another size", (directory) => clone(directory, { size: 2 * SIZE })],
      [
        "one of a template that was replaced since",
        (directory) =>
          clone(directory).pipe(
            Effect.andThen(Effect.sync(() => writeFileSync(join(directory, "base.img"), image(SIZE, { content: 3 })))),
            Effect.andThen(
              Templates.Templates.use((templates) =>
                templates.add("base", join(directory, "base.img"), { replace: true })
              ).pipe(Effect.provide(layer(directory)))
            )
          )
      ],
      [
        "nothing of ours",
        (directory) => Effect.sync(() => mkdirSync(join(directory, "clones/vm-1"), { recursive: true }))
      ],
      ["a file", (directory) =>
        Effect.sync(() => {
          mkdirSync(join(directory, "clones"))
          writeFileSync(join(directory, "clones/vm-1"), "")
        })],
      ["one of an earlier boot", (directory) =>
        clone(directory).pipe(Effect.andThen(Effect.sync(() => {
          const file = join(directory, "clones/vm-1/rootfs.ext4.owner.json")
          writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), bootId: "another" }))
        })))]
    ]
  it.live("are not made where everybody may write", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const clones = join(directory, "clones")
        mkdirSync(clones)
        chmodSync(clones, 0o777)
        assert.include((yield* Effect.flip(clone(directory))).message, `everybody may write to it: chmod o-w ${clones}`)
        assert.deepStrictEqual(tree(clones), [])
      })
    ))

  it.live.each(inTheWay)("does not take the place of %s", ([, make]) =>
    withBase((directory) =>
      Effect.gen(function*() {
        yield* make(directory)
        const before = clonesOf(directory)
        const { reason } = yield* Effect.flip(clone(directory))
        assert.strictEqual(reason._tag, "Conflict")
        assert.deepStrictEqual(clonesOf(directory), before)
      })
    ))

  it.live("is not made of a template that is replaced meanwhile", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        const template = join(directory, "templates/base/rootfs.ext4")
        const { reason } = yield* Effect.flip(clone(directory, {}, {
          program: ({ args }) =>
            Effect.sync(() => {
              copyFileSync(args.at(-2) ?? "", args.at(-1) ?? "")
              writeFileSync(join(directory, "new"), image(SIZE, { content: 5 }))
              renameSync(join(directory, "new"), template)
              return ""
            })
        }))
        assert.strictEqual(reason._tag, "Conflict")
        assert.deepStrictEqual(clonesOf(directory), [])
      })
    ))

  const failing = (wanted: string, stderr: string): World["program"] => ({ args, program, what }) =>
    program !== wanted ? undefined : Effect.suspend(() => {
      // Half of it was written.
      if (program === "cp") writeFileSync(args.at(-1) ?? "", "half")
      return HostError.fail(new HostError.CommandFailed({ program, what, status: "exited with code 1", stderr }))
    })
  const troubles: ReadonlyArray<readonly [what: string, world: World, tag: string]> = [
    ["there is no room", { room: 10 }, "NoSpace"],
    ["cp fills the disk", { program: failing("cp", "cp: error writing 'x': No space left on device\n") }, "NoSpace"],
    ["cp fills the quota", { program: failing("cp", "cp: error writing 'x': Disk quota exceeded\n") }, "NoSpace"],
    ["cp fails", { program: failing("cp", "cp: what?\n") }, "CommandFailed"],
    ["resize2fs fails", { program: failing("resize2fs", "") }, "CommandFailed"],
    [
      "the disk is full at the stamp",
      { files: () => ({ writeFileString: () => Effect.fail(systemError("ENOSPC")) }) },
      "NoSpace"
    ],
    [
      "the disk is read-only",
      { files: () => ({ makeDirectory: () => Effect.fail(systemError("EROFS")) }) },
      "IoFailed"
    ],
    ["it cannot be put in place", { files: () => ({ rename: () => Effect.fail(systemError("EIO")) }) }, "IoFailed"]
  ]
  it.live.each(troubles)("leaves nothing when %s", ([, world, tag]) =>
    withBase((directory) =>
      Effect.gen(function*() {
        const { reason } = yield* Effect.flip(clone(directory, { size: 2 * SIZE }, world))
        assert.strictEqual(reason._tag, tag)
        assert.deepStrictEqual(clonesOf(directory), [])
        assert.strictEqual((yield* clone(directory, { size: 2 * SIZE })).size, 2 * SIZE)
      })
    ))

  it.live(
    "is whole or not there, whenever the process that makes it is killed, and nothing is left to the next",
    () =>
      withBase((directory) =>
        Effect.gen(function*() {
          let last = 0
          let isDone = false
          while (!isDone) {
            last++
            let steps = 0
            const hook = () =>
              Effect.suspend(() => ++steps >= last ? Effect.die(new Error(`killed at step ${last}`)) : Effect.void)
            isDone = Exit.isSuccess(yield* Effect.exit(clone(directory, { size: 2 * SIZE }, { hook, isDoomed: true })))
            const found = clonesOf(directory).filter((path) => !path.startsWith(".tmp"))
            if (found.length > 0) {
              assert.deepStrictEqual(found, [...whole("vm-1"), "vm-1/rootfs.ext4.size"])
              assert.strictEqual(statSync(join(directory, "clones/vm-1/rootfs.ext4")).size, 2 * SIZE)
            }
            if (last % 2 === 0) {
              // What a crash leaves is reclaimed by its claim, …
              const { _tag } = yield* reclaim(directory)
              assert.strictEqual(_tag, found.length > 0 ? "Released" : "Absent")
            } else {
              // … or taken as it is, or made anew.
              const made = yield* clone(directory, { size: 2 * SIZE })
              assert.deepStrictEqual(clonesOf(directory), [...whole("vm-1"), "vm-1/rootfs.ext4.size"])
              assert.strictEqual(statSync(made.path).size, 2 * SIZE)
              assert.strictEqual((yield* reclaim(directory))._tag, "Released")
            }
            assert.deepStrictEqual(clonesOf(directory), [])
            assert.isBelow(last, 200)
          }
          assert.isAbove(last, 20)
        })
      ),
    180_000
  )
})

describe("reclaiming a clone", () => {
  it.live("removes it, once", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        yield* clone(directory)
        assert.deepStrictEqual(yield* reclaim(directory, { dryRun: true }), ResourceKind.Verdict.Released())
        assert.deepStrictEqual(clonesOf(directory), whole("vm-1"))
        assert.deepStrictEqual(yield* reclaim(directory), ResourceKind.Verdict.Released())
        assert.deepStrictEqual(clonesOf(directory), [])
        assert.deepStrictEqual(yield* reclaim(directory), ResourceKind.Verdict.Absent())
      })
    ))

  it.live("follows no links", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        yield* clone(directory)
        mkdirSync(join(directory, "precious"))
        writeFileSync(join(directory, "precious/file"), "")
        symlinkSync(join(directory, "precious"), join(directory, "clones/vm-1/link"))
        symlinkSync(join(directory, "clones/vm-1"), join(directory, "clones/vm-2"))
        assert.strictEqual((yield* reclaim(directory, { owner: { id: "vm-2" } }))._tag, "Foreign")
        assert.strictEqual((yield* reclaim(directory))._tag, "Released")
        assert.deepStrictEqual(tree(join(directory, "precious")), ["file"])
      })
    ))

  const foreign: ReadonlyArray<readonly [what: string, Parameters<typeof reclaim>[1], (directory: string) => void]> = [
    ["another token", { owner: { token: "f".repeat(16) } }, () => {}],
    ["another id", { owner: { id: "vm-2" } }, (at) => renameSync(join(at, "clones/vm-1"), join(at, "clones/vm-2"))],
    ["no marker", {}, (at) => rmSync(join(at, "clones/vm-1/rootfs.ext4.owner.json"))],
    ["a marker that is none", {}, (at) => writeFileSync(join(at, "clones/vm-1/rootfs.ext4.owner.json"), "{}")],
    ["a marker that is a link", {}, (at) => {
      const marker = join(at, "clones/vm-1/rootfs.ext4.owner.json")
      renameSync(marker, join(at, "marker"))
      symlinkSync(join(at, "marker"), marker)
    }],
    ["a path that goes elsewhere", { at: "/tmp/../tmp/vm-1" }, () => {}],
    ["a path that is not absolute", { at: "clones/vm-1" }, () => {}],
    ["the root", { at: "/" }, () => {}]
  ]
  it.live.each(foreign)(
    "touches nothing with %s",
    ([, options, make]) =>
      withBase((directory) =>
        Effect.gen(function*() {
          yield* clone(directory)
          make(directory)
          const before = tree(directory)
          assert.strictEqual((yield* reclaim(directory, options))._tag, "Foreign")
          assert.deepStrictEqual(tree(directory), before)
        })
      )
  )

  it.live("tells of one that cannot be removed, and can be called again", () =>
    withBase((directory) =>
      Effect.gen(function*() {
        yield* clone(directory)
        const stuck = yield* reclaim(directory, {}, {
          files: () => ({ rename: () => Effect.fail(systemError("EROFS")) })
        })
        assert.strictEqual(stuck._tag, "Stuck")
        assert.include(stuck._tag === "Stuck" && stuck.why, "EROFS")
        assert.strictEqual((yield* reclaim(directory))._tag, "Released")
      })
    ))

  it.live(
    "is finished by the next one when it was killed at any step",
    () =>
      withBase((directory) =>
        Effect.gen(function*() {
          let isDone = false
          for (let last = 1; !isDone; last++) {
            yield* clone(directory)
            let steps = 0
            const hook = () =>
              Effect.suspend(() => ++steps >= last ? Effect.die(new Error(`killed at step ${last}`)) : Effect.void)
            isDone = Exit.isSuccess(yield* Effect.exit(reclaim(directory, {}, { hook, isDoomed: true })))
            yield* reclaim(directory)
            assert.deepStrictEqual(clonesOf(directory), [])
            assert.isBelow(last, 100)
          }
        })
      ),
    180_000
  )

  const Command = Schema.Struct({
    what: Schema.Literals(["clone", "reclaim", "dryRun"]),
    id: Schema.Literals(["a", "b"]),
    token: Schema.Literals(["1", "2"])
  })
  it.live.prop(
    "answers as a model does, whatever was done before",
    [Schema.Array(Command)],
    ([commands]) =>
      withBase((directory) =>
        Effect.gen(function*() {
          const model = new Map<string, string>()
          for (const { id, token, what } of commands) {
            const there = model.get(id)
            if (what === "clone") {
              const exit = yield* Effect.exit(clone(directory, { owner: { id, token } }))
              assert.strictEqual(Exit.isSuccess(exit), there === undefined || there === token)
              if (there === undefined) model.set(id, token)
            } else {
              const { _tag } = yield* reclaim(directory, { owner: { id, token }, dryRun: what === "dryRun" })
              assert.strictEqual(_tag, there === undefined ? "Absent" : there === token ? "Released" : "Foreign")
              if (_tag === "Released" && what === "reclaim") model.delete(id)
            }
            assert.deepStrictEqual(clonesOf(directory), [...model.keys()].toSorted().flatMap(whole))
          }
        })
      ),
    { arbitrary: { runs: 20 } }
  )

  it("has claims that are JSON", () => {
    const claim = { directory: "/clones/vm-1" }
    assert.deepStrictEqual(Schema.decodeSync(DiskClones.kind.data)(claim), claim)
    assert.strictEqual(DiskClones.kind.describe(claim), "disk /clones/vm-1")
  })
})

describe("clones", () => {
  it.live("are where MICROVM_ROOTFS_CLONES_DIR says, or else in /var/lib/microvm", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const at = (env: Record<string, string>) =>
          DiskClones.DiskClones.use((clones) => Effect.succeed(clones.disk("vm-1"))).pipe(
            Effect.provide(
              DiskClones.layer.pipe(
                Layer.provide([layer(directory), ConfigProvider.layer(ConfigProvider.fromEnv({ env }))])
              )
            )
          )
        assert.deepStrictEqual(yield* at({}), { directory: "/var/lib/microvm/rootfs/vm-1" })
        assert.deepStrictEqual(yield* at({ MICROVM_ROOTFS_CLONES_DIR: "/c" }), { directory: "/c/vm-1" })
      })
    ))
})
