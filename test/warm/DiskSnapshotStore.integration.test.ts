import { afterAll, describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { buildSync } from "esbuild"
import { execFile, execFileSync } from "node:child_process"
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { golden, leftovers, using, withCache, writing } from "./diskSupport.ts"

// In one file, as it is started a hundred times.
const folder = mkdtempSync(join(tmpdir(), "snapshots-fixture-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const fixture = join(folder, "snapshots.mjs")
buildSync({
  entryPoints: [fileURLToPath(new URL("fixtures/snapshots.ts", import.meta.url))],
  outfile: fixture,
  bundle: true,
  platform: "node",
  format: "esm",
  conditions: ["@effect-microvm-runtime/source"],
  banner: { js: "import { createRequire } from \"node:module\"; const require = createRequire(import.meta.url)" }
})

const Said = Schema.fromJsonString(Schema.Struct({ outcome: Schema.String, steps: Schema.Int }))

interface Ended {
  readonly signal: string | null
  readonly said: typeof Said.Type | undefined
}

/** Runs the fixture until it ends, by whatever. */
const run = (command: string, args: ReadonlyArray<string>): Effect.Effect<Ended> =>
  Effect.callback((resume) => {
    const child = execFile(command, args, (error, stdout, stderr) => {
      const signal = error?.signal ?? null
      resume(
        stdout === "" && signal === null
          ? Effect.die(new Error(`it ended without a word: ${stderr}`))
          : Effect.succeed({ signal, said: stdout === "" ? undefined : Schema.decodeUnknownSync(Said)(stdout) })
      )
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const operate = (
  cache: string,
  what: "add" | "replace" | "diff" | "remove",
  name: string,
  killedAt: number | string = 0
) => run(process.execPath, [fixture, cache, what, name, String(killedAt)])

describe("a process that is killed at any step", () => {
  for (const what of ["add", "replace", "diff", "remove"] as const) {
    it.live(`${what}: the store is as it was, or has the whole of it`, () =>
      Effect.gen(function*() {
        const name = what === "add" || what === "diff" ? "new" : "base"
        const trial = Effect.fnUntraced(function*(killedAt: number) {
          return yield* withCache(Effect.fnUntraced(function*(cache) {
            const before = yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
            const ended = yield* operate(cache, what, name, killedAt)
            yield* using(
              cache,
              Effect.fnUntraced(function*(store) {
                const all = yield* store.list
                for (const { id, manifest } of all) {
                  expect([killedAt, manifest?.form]).toEqual([killedAt, "stream"])
                  yield* store.verify(id)
                }
                const names = all.flatMap((one) => one.names).toSorted()
                if (what === "add" || what === "diff") {
                  expect([["base"], ["base", "new"]]).toContainEqual(names)
                  expect(all).toHaveLength(names.length)
                } else if (what === "replace") {
                  // The other one may be there without a name.
                  expect(names).toEqual(["base"])
                } else {
                  expect(all.length === 0 || (all[0]?.id === before.id && names[0] === "base")).toBe(true)
                }
                if (what === "diff" && names.includes("new")) {
                  expect((yield* store.open("new")).base?.id).toBe(before.id)
                  expect((yield* Effect.flip(store.remove("base"))).reason._tag).toBe("SnapshotInUse")
                }
                // The next one sweeps, and has the name.
                yield* store.add(golden({ name, replace: true }), writing())
                expect([killedAt, leftovers(cache)]).toEqual([killedAt, []])
              })
            )
            return ended
          }))
        })
        const undisturbed = yield* trial(0)
        expect(undisturbed).toMatchObject({ signal: null, said: { outcome: "done" } })
        const steps = undisturbed.said?.steps ?? 0
        expect(steps).toBeGreaterThan(10)
        const ends = yield* Effect.forEach(
          Array.from({ length: steps }, (_, index) => index + 1),
          trial,
          { concurrency: 4 }
        )
        expect(ends.map(({ signal }) => signal)).toEqual(ends.map(() => "SIGKILL"))
      }))
  }
})

describe("processes at the same time", () => {
  it.live("one of those that add a name has it", () =>
    withCache(Effect.fnUntraced(function*(cache) {
      const ended = yield* Effect.forEach([1, 2, 3, 4, 5], () => operate(cache, "add", "base"), {
        concurrency: "unbounded"
      })
      expect(ended.map(({ said }) => said?.outcome ?? "").toSorted()).toEqual([
        ...Array.from({ length: 4 }, () => "SnapshotAlreadyExists"),
        "done"
      ])
      const listed = yield* using(cache, (store) => Effect.tap(store.list, () => store.verify("base")))
      expect(listed.map(({ names }) => names)).toEqual([["base"]])
      expect(leftovers(cache)).toEqual([])
    })))

  it.live("so it is when they find the lock of a dead one", () =>
    withCache(Effect.fnUntraced(function*(cache) {
      yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
      // Killed with the lock in its hands.
      yield* operate(cache, "replace", "base", `rename ${join(cache, "snapshots", "tmp")}`)
      expect(leftovers(cache)).toEqual(["snapshots.lock", expect.any(String), expect.any(String)])
      const ended = yield* Effect.forEach([1, 2, 3, 4, 5], () => operate(cache, "add", "new"), {
        concurrency: "unbounded"
      })
      expect(ended.map(({ said }) => said?.outcome).filter((outcome) => outcome === "done")).toHaveLength(1)
      expect(leftovers(cache)).toEqual([])
    })))
})

const isRoot = process.getuid?.() === 0

/** Runs the fixture with `cache` mounted by this command. */
const mounted = (cache: string, mount: string, what: "add" | "replace" | "remove", name: string) =>
  run("unshare", [
    "-m",
    "sh",
    "-c",
    `${mount} || exit 1; "$0" "$@"`,
    process.execPath,
    fixture,
    cache,
    what,
    name
  ])

const canMount = (() => {
  try {
    execFileSync("unshare", ["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stdio: "pipe" })
    return true
  } catch {
    return false
  }
})()
if (!canMount) console.warn("skipped: full and read-only disks, for we cannot mount any here")
if (isRoot) console.warn("skipped: a cache without permission, for root has every")

describe("a disk", () => {
  it.live.skipIf(!canMount)("that is full", () =>
    withCache(Effect.fnUntraced(function*(cache) {
      mkdirSync(cache)
      // Room for some inodes, and none for the content of a second file.
      const { said } = yield* mounted(cache, `mount -t tmpfs -o size=8k,nr_inodes=40 tmpfs ${cache}`, "add", "new")
      expect(said?.outcome).toBe("StoreFailed")
      expect(readdirSync(cache)).toEqual([])
    })))

  it.live.skipIf(!canMount)(
    "that is read-only: nothing is added or removed, and all is opened",
    () =>
      withCache(Effect.fnUntraced(function*(cache) {
        yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
        const readOnly = `mount --bind ${cache} ${cache} && mount -o remount,bind,ro ${cache}`
        expect((yield* mounted(cache, readOnly, "add", "new")).said?.outcome).toBe("StoreFailed")
        expect((yield* mounted(cache, readOnly, "remove", "base")).said?.outcome).toBe("StoreFailed")
        yield* using(cache, (store) => store.verify("base"))
      }))
  )

  it.live.skipIf(!canMount)(
    "of the snapshots alone: they are added, replaced and removed there",
    () =>
      withCache(Effect.fnUntraced(function*(cache) {
        yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
        const disk = `${cache}-disk`
        mkdirSync(disk)
        const inner = join(cache, "snapshots")
        // One file system, and two mounts of it: nothing is renamed from one to the other, though their device is the same.
        const another = `cp -a ${inner}/. ${disk} && mount --bind ${disk} ${inner}`
        for (const what of ["add", "replace", "remove"] as const) {
          expect(yield* mounted(cache, another, what, what === "add" ? "new" : "base")).toMatchObject({
            said: { outcome: "done" }
          })
        }
        expect(readdirSync(join(disk, "tmp"))).toEqual([])
        const names = `mkdir ${disk}/names; mount --bind ${disk}/names ${join(cache, "snapshot-names")}`
        const { said } = yield* mounted(cache, names, "add", "newer")
        expect(said?.outcome).toBe("StoreFailed")
      }))
  )

  it.live.skipIf(isRoot)("that this user may not write to", () =>
    withCache(Effect.fnUntraced(function*(cache) {
      mkdirSync(cache)
      chmodSync(cache, 0o500)
      expect((yield* operate(cache, "add", "new")).said?.outcome).toBe("StoreFailed")
      chmodSync(cache, 0o700)
    })))
})
