import { assert, describe, it } from "@effect/vitest"
import { DiskClones, DiskCollection, Templates } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { cpSync, mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { systemError } from "../files.ts"
import { addBase, image, inDirectory, layer, owner, tree, type World } from "./diskSupport.ts"

const at = (id: string) => ({ id, token: owner.token })

const collect = (directory: string, options: Partial<DiskCollection.CollectOptions> = {}, world?: World) =>
  DiskCollection.collect({ machines: [], ...options }).pipe(
    Effect.map((all) => all.map(({ name, verdict, what, why }) => [`${what} ${name}`, verdict, why])),
    Effect.provide(layer(directory, world))
  )

/** The file system tells the real time. */
const later = (days: number) =>
  Effect.flatMap(
    Effect.sync(() => performance.timeOrigin + performance.now()),
    (now) => TestClock.setTime(now + days * 86_400_000)
  )

/** Templates `base` and `idle`, and these machines' clones of `base`. */
const setUp = (directory: string, ids: ReadonlyArray<string>, world: World = { isDoomed: true }) =>
  Effect.gen(function*() {
    yield* addBase(directory)
    writeFileSync(join(directory, "idle.img"), image(65_536, { content: 2 }))
    const templates = yield* Templates.Templates
    yield* templates.add("idle", join(directory, "idle.img"))
    const clones = yield* DiskClones.DiskClones
    for (const id of ids) yield* clones.clone({ owner: at(id), stack: "base" })
  }).pipe(Effect.provide(layer(directory, world)))

describe("collecting disks", () => {
  it.effect("tells what it would remove, and why, and removes it only when told to", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* setUp(directory, ["dead", "live"])
        yield* later(2)
        const before = tree(directory)
        const machines = [at("live")]
        const stays = [
          ["clone live", "Used", "machine live has a record"],
          ["template base", "Used", "the disk of machine live is a copy of it"]
        ]
        assert.deepStrictEqual(yield* collect(directory, { machines }), [
          ["clone dead", "Unused", "no machine dead has a record"],
          ...stays,
          ["template idle", "Unused", "nothing refers to it"]
        ])
        assert.deepStrictEqual(tree(directory), before)
        assert.deepStrictEqual(yield* collect(directory, { machines, dryRun: false }), [
          ["clone dead", "Removed", "no machine dead has a record"],
          ...stays,
          ["template idle", "Removed", "nothing refers to it"]
        ])
        assert.deepStrictEqual(yield* collect(directory, { machines, dryRun: false }), stays)
        const gone = (path: string) => path.startsWith("clones/dead/") || path.startsWith("templates/idle/")
        assert.deepStrictEqual(tree(directory), before.filter((path) => !gone(path)))
      })
    ))

  it.effect("leaves alone what is younger than was asked for", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* setUp(directory, ["dead"])
        yield* later(0)
        const verdicts = (olderThan?: "2 days" | "1 milli") =>
          Effect.map(collect(directory, { olderThan }), (all) => all.map(([what, verdict]) => `${what} ${verdict}`))
        const recent = ["clone dead Recent", "template base Used", "template idle Recent"]
        assert.deepStrictEqual(yield* verdicts(), recent)
        yield* later(1.5)
        assert.deepStrictEqual(yield* verdicts("2 days"), recent)
        assert.deepStrictEqual(yield* verdicts("1 milli"), [
          "clone dead Unused",
          "template base Unused",
          "template idle Unused"
        ])
        // Having been found is having been used.
        yield* Templates.Templates.use(({ find }) => find("idle")).pipe(Effect.provide(layer(directory)))
        assert.include(yield* verdicts(), "template idle Recent")
      })
    ))

  it.effect("leaves alone what a living process made, what has the same id only, and what is not ours", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* setUp(directory, ["made"], {})
        yield* setUp(directory, ["again"])
        cpSync(join(directory, "clones/again"), join(directory, "clones/copied"), { recursive: true })
        mkdirSync(join(directory, "clones/foreign"))
        writeFileSync(join(directory, "clones/file"), "")
        mkdirSync(join(directory, "templates/own"))
        writeFileSync(join(directory, "templates/own/rootfs.ext4"), image(65_536))
        yield* later(2)
        const all = yield* collect(directory, {
          machines: [{ id: "again", token: "f".repeat(16) }],
          stacks: ["idle"],
          dryRun: false
        })
        assert.deepStrictEqual(all.map(([what, verdict]) => [what, verdict]), [
          ["clone again", "Removed"],
          ["clone copied", "Foreign"],
          ["clone file", "Foreign"],
          ["clone foreign", "Foreign"],
          ["clone made", "Used"],
          ["template base", "Used"],
          ["template idle", "Used"],
          ["template own", "Foreign"]
        ])
      })
    ))

  it.effect("goes on after what it cannot remove", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        yield* setUp(directory, ["a", "b"])
        yield* later(2)
        const all = yield* collect(directory, { dryRun: false }, {
          files: (fs) => ({
            rename: (from, to) => from.endsWith("/a") ? Effect.fail(systemError("EPERM")) : fs.rename(from, to)
          })
        })
        assert.deepStrictEqual(all.map(([what, verdict]) => [what, verdict]), [
          ["clone a", "Stuck"],
          ["clone b", "Removed"],
          ["template base", "Used"],
          ["template idle", "Removed"]
        ])
      })
    ))

  it.effect("has nothing to do where nothing is", () =>
    inDirectory((directory) => Effect.map(collect(directory), (all) => assert.deepStrictEqual(all, []))))
})
