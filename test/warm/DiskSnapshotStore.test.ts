import { describe, expect, it } from "@effect/vitest"
import type { MicroVmError } from "effect-microvm-runtime/microvm"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Tracer from "effect/Tracer"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { stepping, systemError } from "../files.ts"
import { contents, golden, leftovers, saved, spec, using, withCache, writing } from "./diskSupport.ts"

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex")

const reasonOf = <A>(effect: Effect.Effect<A, MicroVmError.MicroVmError>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

const whyOf = <A>(effect: Effect.Effect<A, MicroVmError.MicroVmError>) =>
  Effect.map(reasonOf(effect), (reason) => reason._tag === "SnapshotUnusable" ? reason.why : [reason._tag])

describe("DiskSnapshotStore", () => {
  it.live("what it does belongs to the span of its caller, not to that of its layer", () =>
    withCache((cache) => {
      const parents = new Map<string, string | undefined>()
      const tracer = Tracer.make({
        span: (options) => {
          const parent = Option.getOrUndefined(options.parent)
          parents.set(options.name, parent?._tag === "Span" ? parent.name : undefined)
          return new Tracer.NativeSpan(options)
        }
      })
      return using(cache, (store) => store.add(golden({ name: "base" }), writing())).pipe(
        Effect.withSpan("layer"),
        Effect.withTracer(tracer),
        Effect.andThen(Effect.sync(() => {
          expect(parents.get("OwnerLock.acquire")).toBe("DiskSnapshotStore.add")
        }))
      )
    }))

  it.live("refuses labels that make a manifest too large to be read again, before anything is saved", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const labels = { note: "x".repeat(300_000) }
          const write = () => Effect.die("the machine was stopped for it")
          const reason = yield* reasonOf(store.add(golden({ name: "base", labels }), write))
          expect(reason).toMatchObject({ _tag: "InvalidSpec", faults: [{ field: "labels", value: "300011 bytes" }] })
        })
      )
    ))

  it.live("keeps what was written, under its id and its name", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const one = yield* store.add(golden({ name: "base", labels: { image: "abc" } }), writing())
          expect(one.manifest).toMatchObject({
            format: 1,
            kind: "golden",
            ...saved,
            spec,
            labels: { image: "abc" },
            files: [
              { name: "memory", size: 10_000, sha256: sha256(contents.memory) },
              { name: "state", size: 9, sha256: sha256(contents.state) }
            ]
          })
          expect(one.id).toBe(sha256(readFileSync(join(one.directory, "manifest.json"), "utf8")))
          expect(Math.abs(Date.parse(one.manifest.createdAt) - Date.now())).toBeLessThan(60_000)
          for (const [name, content] of Object.entries(contents)) {
            expect(readFileSync(join(one.directory, name), "utf8")).toBe(content)
          }
          expect(yield* store.open("base")).toEqual(one)
          expect(yield* store.open(one.id)).toEqual(one)
          expect(yield* store.verify("base")).toEqual(one)
          expect(yield* store.list).toMatchObject([{ id: one.id, names: ["base"], manifest: one.manifest }])
          expect(statSync(one.directory).mode & 0o777).toBe(0o700)
          expect(statSync(dirname(one.directory)).mode & 0o777).toBe(0o700)
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("an empty store has nothing, and makes nothing", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          expect(yield* store.list).toEqual([])
          expect(yield* store.remove("base")).toBe(false)
          expect(yield* reasonOf(store.open("base"))).toMatchObject({ _tag: "SnapshotNotFound", snapshot: "base" })
          expect((yield* reasonOf(store.verify("0".repeat(64))))._tag).toBe("SnapshotNotFound")
          expect(existsSync(cache)).toBe(false)
        })
      )
    ))

  it.live.each(["", "..", "a/b", "a..b", "x".repeat(65), "a b", "\0"])(
    "refuses the name %j before anything is done",
    (name) =>
      withCache((cache) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            const fault = { _tag: "InvalidSpec", faults: [{ field: "snapshot", value: name }] }
            expect(yield* reasonOf(store.add(golden({ name }), () => Effect.die("it was run")))).toMatchObject(fault)
            expect(yield* reasonOf(store.open(name))).toMatchObject(fault)
            expect(yield* reasonOf(store.remove(name))).toMatchObject(fault)
            expect(existsSync(cache)).toBe(false)
          })
        )
      )
  )

  it.live("refuses what there is no room for before anything is written, and clears up first", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const dead = join(cache, "tmp", "another-boot.1.1.abc")
          const foreign = join(cache, "tmp", "thesis")
          for (const directory of [dead, foreign]) mkdirSync(directory, { recursive: true })
          const reason = yield* reasonOf(store.add(golden({ room: 2 ** 60 }), () => Effect.die("it was run")))
          expect(reason).toMatchObject({ _tag: "StoreFailed" })
          expect(reason.message).toContain("make room")
          expect(readdirSync(join(cache, "tmp"))).toEqual(["thesis"])
        })
      )
    ))

  it.live("what was found to be bad is not opened, though nothing tells that it was written to", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const { directory, id } = yield* store.add(golden(), writing())
          // As when a disk decays: other bytes, and the same seal.
          const seals = join(directory, "seals.json")
          const memory = join(directory, "memory")
          writeFileSync(memory, "x".repeat(statSync(memory).size))
          const { ctimeNs, ino, mtimeNs, size } = statSync(memory, { bigint: true })
          const known = readFileSync(seals, "utf8")
          writeFileSync(
            seals,
            known.replace(/("memory":\s*)"[^"]*"/, `$1"${[ino, size, mtimeNs, ctimeNs].join(" ")}"`)
          )
          yield* store.open(id)
          for (const look of [store.verify(id), store.open(id)]) {
            expect((yield* reasonOf(look))._tag).toBe("SnapshotUnusable")
          }
        })
      )
    ))

  it.live("no name is the id of a snapshot", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const name = "a".repeat(64)
          expect((yield* reasonOf(store.add(golden({ name }), writing())))._tag).toBe("InvalidSpec")
        })
      )
    ))

  it.live("a name that is taken is refused before anything is written, or moves", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const one = yield* store.add(golden({ name: "base" }), writing())
          expect(yield* reasonOf(store.add(golden({ name: "base" }), () => Effect.die("it was run")))).toMatchObject({
            _tag: "SnapshotAlreadyExists",
            snapshot: "base"
          })
          const two = yield* store.add(golden({ name: "base", replace: true }), writing({ state: "two" }))
          expect((yield* store.open("base")).id).toBe(two.id)
          expect((yield* store.open(one.id)).id).toBe(one.id)
          expect((yield* store.list).map(({ id, names }) => [id, names])).toEqual(
            expect.arrayContaining([[one.id, []], [two.id, ["base"]]])
          )
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("a name that is taken while the snapshot is written is refused, and nothing is left of it", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const reason = yield* reasonOf(
            store.add(
              golden({ name: "base" }),
              (directory) =>
                Effect.andThen(Effect.orDie(store.add(golden({ name: "base" }), writing())), writing()(directory))
            )
          )
          expect(reason).toMatchObject({ _tag: "SnapshotAlreadyExists", snapshot: "base" })
          expect(yield* store.list).toHaveLength(1)
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("is removed when its last name is, or at once by its id", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const one = yield* store.add(golden({ name: "a" }), writing())
          // A second name for the same one, as by hand.
          cpSync(join(cache, "snapshot-names", "a.json"), join(cache, "snapshot-names", "b.json"))
          expect((yield* store.list)[0]?.names).toEqual(["a", "b"])
          expect(yield* store.remove("a")).toBe(true)
          expect((yield* store.open("b")).id).toBe(one.id)
          expect(yield* store.remove("a")).toBe(false)
          expect(yield* store.remove("b")).toBe(true)
          expect(yield* store.list).toEqual([])
          const two = yield* store.add(golden({ name: "c" }), writing())
          expect(yield* store.remove(two.id)).toBe(true)
          expect(readdirSync(join(cache, "snapshots"))).toEqual(["tmp"])
          expect(readdirSync(join(cache, "snapshot-names"))).toEqual([])
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("lists the one used last first, with what it takes on the disk", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const add = (name: string) =>
            store.add(golden({ name }), (directory) =>
              Effect.sync(() => {
                writeFileSync(join(directory, "memory"), "x".repeat(100_000))
                truncateSync(join(directory, "memory"), 50_000_000)
                return saved
              }))
          for (const name of ["a", "b", "c"]) yield* add(name)
          const order = Effect.map(store.list, (all) => all.map(({ names }) => names[0]))
          expect(yield* order).toEqual(["c", "b", "a"])
          const before = (yield* store.list).find(({ names }) => names[0] === "b")?.lastUsed ?? 0
          yield* store.open("b")
          expect(yield* order).toEqual(["b", "c", "a"])
          const stored = (yield* store.list)[0]
          expect(stored?.lastUsed).toBeGreaterThan(before)
          // Holes stay holes, and are zeros of the digest.
          expect(stored?.bytes).toBeLessThan(1_000_000)
          expect(stored?.manifest?.files[0]).toEqual({
            name: "memory",
            size: 50_000_000,
            sha256: createHash("sha256").update("x".repeat(100_000)).update(Buffer.alloc(49_900_000)).digest("hex")
          })
        })
      )
    ))

  it.live("reads no file that was not written to since it was read last", () =>
    withCache((cache) => {
      const read: Array<string> = []
      return using(
        cache,
        Effect.fnUntraced(function*(store) {
          const { directory } = yield* store.add(golden({ name: "base" }), writing())
          const during = (effect: Effect.Effect<unknown, MicroVmError.MicroVmError>) =>
            Effect.map(Effect.andThen(Effect.sync(() => void read.splice(0)), effect), () =>
              read.map((path) => path.slice(directory.length + 1)))
          expect(yield* during(store.open("base"))).toEqual([])
          expect(yield* during(store.verify("base"))).toEqual(["memory", "state"])
          // The note of its use disturbs nothing.
          expect(yield* during(store.open("base"))).toEqual([])
          chmodSync(join(directory, "memory"), 0o644)
          expect(yield* during(store.open("base"))).toEqual(["memory"])
          expect(yield* during(store.open("base"))).toEqual([])
          linkSync(join(directory, "state"), join(cache, "elsewhere"))
          expect(yield* during(store.open("base"))).toEqual(["state"])
          for (const seals of ["", "{", "[]", "{\"memory\":1}"]) {
            writeFileSync(join(directory, "seals.json"), seals)
            expect(yield* during(store.open("base"))).toEqual(["memory", "state"])
          }
          rmSync(join(directory, "seals.json"))
          expect(yield* during(store.open("base"))).toEqual(["memory", "state"])
          expect(yield* during(store.open("base"))).toEqual([])
        }),
        {
          onHash: (path) =>
            read.push(path)
        }
      )
    }))

  it.live("a cache that was copied elsewhere is read once, and is good", () =>
    withCache((cache) => {
      const read: Array<string> = []
      const moved = `${cache}-moved`
      return Effect.gen(function*() {
        const one = yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
        cpSync(cache, moved, { recursive: true, preserveTimestamps: true })
        yield* using(
          moved,
          Effect.fnUntraced(function*(store) {
            expect(yield* store.open("base")).toEqual({ ...one, directory: join(moved, "snapshots", one.id) })
            expect(read).toHaveLength(2)
            yield* store.open("base")
            expect(read).toHaveLength(2)
          }),
          { onHash: (path) => read.push(path) }
        )
        expect(leftovers(moved)).toEqual([])
      })
    }))

  const flip = (file: string) => {
    const bytes = readFileSync(file)
    bytes[5] = (bytes[5] ?? 0) ^ 1
    writeFileSync(file, bytes)
  }
  /** As if it had never been written to, as far as a program can. */
  const quietly = (file: string, change: () => void) => {
    const before = `${dirname(dirname(dirname(file)))}/before`
    // Node's own call is not exact to the nanosecond.
    const copyTimes = (from: string, to: string) => execFileSync("touch", ["-r", from, to])
    copyTimes(file, before)
    change()
    copyTimes(before, file)
    rmSync(before)
  }
  const damages: Readonly<Record<string, readonly [(directory: string) => void, ReadonlyArray<string>]>> = {
    "a file is missing": [(at) => rmSync(join(at, "memory")), ["memory is missing"]],
    "the other file is missing": [(at) => rmSync(join(at, "state")), ["state is missing"]],
    "a file is cut short": [
      (at) => truncateSync(join(at, "memory"), 9000),
      ["memory is shorter than it was, 9000 bytes instead of 10000"]
    ],
    "a file is empty": [
      (at) => truncateSync(join(at, "state"), 0),
      ["state is shorter than it was, 0 bytes instead of 9"]
    ],
    "a file has grown": [
      (at) => appendFileSync(join(at, "state"), "!"),
      ["state is longer than it was, 10 bytes instead of 9"]
    ],
    "a byte is another": [(at) => flip(join(at, "memory")), ["memory has changed"]],
    "a byte is another, and the time of the write is hidden": [
      (at) => quietly(join(at, "memory"), () => flip(join(at, "memory"))),
      ["memory has changed"]
    ],
    "a file was replaced by one of the same length and time": [
      (at) =>
        quietly(join(at, "state"), () => {
          writeFileSync(join(at, "other"), "THE STATE")
          renameSync(join(at, "other"), join(at, "state"))
        }),
      ["state has changed"]
    ],
    "two files are swapped": [
      (at) => {
        renameSync(join(at, "state"), join(at, "other"))
        renameSync(join(at, "memory"), join(at, "state"))
        renameSync(join(at, "other"), join(at, "memory"))
      },
      [
        "memory is shorter than it was, 9 bytes instead of 10000",
        "state is longer than it was, 10000 bytes instead of 9"
      ]
    ],
    "all is wrong": [
      (at) => {
        flip(join(at, "memory"))
        rmSync(join(at, "state"))
      },
      ["state is missing", "memory has changed"]
    ],
    "a file is a link": [
      (at) => {
        renameSync(join(at, "state"), join(at, "other"))
        symlinkSync("other", join(at, "state"))
      },
      ["state is no regular file"]
    ],
    "a file is a directory": [
      (at) => {
        rmSync(join(at, "state"))
        mkdirSync(join(at, "state"))
      },
      ["state is no regular file"]
    ],
    "the manifest is missing": [(at) => rmSync(join(at, "manifest.json")), ["its manifest is missing"]],
    "the manifest was edited": [
      (at) =>
        writeFileSync(
          join(at, "manifest.json"),
          readFileSync(join(at, "manifest.json"), "utf8").replace("golden", "saved")
        ),
      ["its manifest has changed"]
    ],
    "the manifest is cut short": [(at) => truncateSync(join(at, "manifest.json"), 50), ["its manifest has changed"]],
    "the manifest is huge": [
      (at) => truncateSync(join(at, "manifest.json"), 8 * 1024 ** 3),
      ["its manifest has changed"]
    ],
    "the manifest is no JSON": [(at) => writeFileSync(join(at, "manifest.json"), "hello"), [
      "its manifest has changed"
    ]],
    "the manifest is a directory": [
      (at) => {
        rmSync(join(at, "manifest.json"))
        mkdirSync(join(at, "manifest.json"))
      },
      ["its manifest has changed"]
    ],
    "the manifest is a pipe": [
      (at) => {
        rmSync(join(at, "manifest.json"))
        execFileSync("mkfifo", [join(at, "manifest.json")])
      },
      ["its manifest has changed"]
    ],
    "the memory is a pipe": [
      (at) => {
        rmSync(join(at, "memory"))
        execFileSync("mkfifo", [join(at, "memory")])
      },
      ["memory is no regular file"]
    ],
    "it is a file": [
      (at) => {
        rmSync(at, { recursive: true })
        writeFileSync(at, "")
      },
      ["its manifest is missing"]
    ]
  }
  for (const [what, [damage, why]] of Object.entries(damages)) {
    it.live(`is not opened when ${what}, and can be removed`, () =>
      withCache((cache) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            const { directory, id } = yield* store.add(golden({ name: "base" }), writing())
            damage(directory)
            expect(yield* whyOf(store.open("base"))).toEqual(why)
            expect(yield* whyOf(store.open(id))).toEqual(why)
            expect(yield* whyOf(store.verify("base"))).toEqual(why)
            const [stored] = yield* store.list
            expect(stored).toMatchObject({ id, names: ["base"] })
            expect(stored?.manifest === undefined).toBe(why.some((one) => one.includes("manifest")))
            expect(yield* store.remove("base")).toBe(true)
            expect(yield* store.list).toEqual([])
            yield* store.add(golden({ name: "base" }), writing())
            expect(leftovers(cache)).toEqual([])
          })
        )
      ))
  }

  it.live("a manifest of another version says so", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const text = JSON.stringify({ format: 2, files: "many" })
          const directory = join(cache, "snapshots", sha256(text))
          mkdirSync(directory, { recursive: true })
          writeFileSync(join(directory, "manifest.json"), text)
          expect(yield* whyOf(store.open(sha256(text)))).toEqual(["its manifest is of another version"])
          expect((yield* store.list)[0]?.manifest).toBeUndefined()
          expect(yield* store.remove(sha256(text))).toBe(true)
        })
      )
    ))

  it.live("what the manifest does not name is not looked at", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const one = yield* store.add(golden({ name: "base" }), writing())
          writeFileSync(join(one.directory, "core"), "")
          writeFileSync(join(cache, "snapshots", "README"), "")
          writeFileSync(join(cache, "snapshot-names", "README"), "")
          expect(yield* store.open("base")).toEqual(one)
          expect(yield* store.list).toHaveLength(1)
        })
      )
    ))

  it.live("a name that leads nowhere, or is garbage, is none", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          yield* store.add(golden({ name: "other" }), writing())
          for (const text of [JSON.stringify({ id: "0".repeat(64) }), "{", "", "{\"id\":\"../other\"}"]) {
            writeFileSync(join(cache, "snapshot-names", "base.json"), text)
            expect((yield* reasonOf(store.open("base")))._tag).toBe("SnapshotNotFound")
            expect(yield* store.remove("base")).toBe(false)
            expect((yield* store.list).flatMap(({ names }) => names)).toEqual(["other"])
            yield* store.add(golden({ name: "base" }), writing())
            yield* store.open("base")
            yield* store.remove("base")
          }
        })
      )
    ))

  const strangers: Readonly<Record<string, (file: string) => void>> = {
    "a directory": mkdirSync,
    "a pipe": (file) => execFileSync("mkfifo", [file]),
    "a link to what has no end": (file) => symlinkSync("/dev/zero", file)
  }
  for (const [what, make] of Object.entries(strangers)) {
    it.live(`${what} in the place of a name is none, and keeps nothing from being listed`, () =>
      withCache((cache) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            yield* store.add(golden({ name: "other" }), writing())
            make(join(cache, "snapshot-names", "base.json"))
            expect((yield* reasonOf(store.open("base")))._tag).toBe("SnapshotNotFound")
            expect((yield* store.list).flatMap(({ names }) => names)).toEqual(["other"])
            expect(yield* store.remove("other")).toBe(true)
          })
        )
      ))
  }

  it.live("a write that comes as soon as the snapshot is there is noticed", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          for (let time = 0; time < 10; time++) {
            const { directory, id } = yield* store.add(golden(), writing())
            quietly(join(directory, "memory"), () => flip(join(directory, "memory")))
            expect(yield* whyOf(store.open(id))).toEqual(["memory has changed"])
          }
        })
      ), tmpdir()))

  it.live("a seal is compared with that before the digest, after the clock has moved on", () =>
    withCache((cache) => {
      const seen: Array<string> = []
      const base = (path: string) => path.slice(path.lastIndexOf("/") + 1)
      return using(
        cache,
        Effect.fnUntraced(function*(store) {
          const order = ["memory", "state", "settle", "hash memory", "memory", "hash state", "state"]
          yield* store.add(golden({ name: "base" }), writing())
          expect(seen.splice(0)).toEqual(order)
          yield* store.verify("base")
          expect(seen.splice(0)).toEqual(["memory", "state", ...order])
        }),
        { onHash: (path) => seen.push(`hash ${base(path)}`), onSeal: (what) => seen.push(base(what)) }
      )
    }))

  it.live("a write between the reading of a file and its seal is noticed, however quick", () =>
    withCache((cache) => {
      let change = (): void => {}
      return using(
        cache,
        Effect.fnUntraced(function*(store) {
          for (let time = 0; time < 10; time++) {
            const { directory, id } = yield* store.add(golden(), writing())
            const memory = join(directory, "memory")
            // Its times are those of this moment, and so would be those of a write that follows at once.
            writeFileSync(memory, contents.memory)
            change = () => flip(memory)
            expect(yield* whyOf(store.open(id))).toEqual(["memory is being written to"])
            change = () => {}
            expect(yield* whyOf(store.open(id))).toEqual(["memory has changed"])
          }
        }),
        { onHash: (path) => path.endsWith("memory") && change() }
      )
    }, tmpdir()))

  const refused: Readonly<Record<string, readonly [(directory: string) => void, string]>> = {
    "a directory": [(at) => mkdirSync(join(at, "disks")), "disks is no regular file"],
    "a link": [(at) => symlinkSync("/etc/passwd", join(at, "disk")), "disk is no regular file"],
    "another name": [(at) => writeFileSync(join(at, "Memory.bin"), ""), "\"Memory.bin\" is no name"]
  }
  for (const [what, [make, why]] of Object.entries(refused)) {
    it.live(`takes no snapshot with ${what} in it`, () =>
      withCache((cache) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            const reason = yield* reasonOf(
              store.add(
                golden({ name: "base" }),
                (directory) => Effect.tap(writing()(directory), () => Effect.sync(() => make(directory)))
              )
            )
            expect(reason._tag === "StoreFailed" && reason.why).toContain(why)
            expect(yield* store.list).toEqual([])
            expect(leftovers(cache)).toEqual([])
          })
        )
      ))
  }

  it.live("an error of the backend is the caller's, and leaves nothing", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const failing = (directory: string) => Effect.andThen(writing()(directory), Effect.fail("it broke"))
          expect(yield* Effect.flip(store.add(golden({ name: "base" }), failing))).toBe("it broke")
          expect(yield* store.list).toEqual([])
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("an interruption while the backend writes leaves nothing", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const begun = yield* Deferred.make<string>()
          const adding = yield* Effect.forkChild(
            store.add(
              golden({ name: "base" }),
              (directory) => Effect.andThen(Deferred.succeed(begun, directory), Effect.never)
            )
          )
          const directory = yield* Deferred.await(begun)
          expect(statSync(directory).mode & 0o777).toBe(0o700)
          yield* Fiber.interrupt(adding)
          expect(existsSync(directory)).toBe(false)
          expect(leftovers(cache)).toEqual([])
        })
      )
    ))

  it.live("a place that cannot be used is told", () =>
    withCache((cache) =>
      Effect.gen(function*() {
        writeFileSync(cache, "")
        const failed = { _tag: "StoreFailed", path: cache }
        yield* using(
          cache,
          Effect.fnUntraced(function*(store) {
            expect(yield* reasonOf(store.add(golden(), writing()))).toMatchObject(failed)
            expect(yield* reasonOf(store.list)).toMatchObject(failed)
            expect(yield* reasonOf(store.open("base"))).toMatchObject(failed)
            expect(yield* reasonOf(store.remove("base"))).toMatchObject(failed)
          })
        )
        rmSync(cache)
        mkdirSync(cache)
        writeFileSync(join(cache, "snapshots"), "")
        yield* using(
          cache,
          Effect.fnUntraced(function*(store) {
            expect(yield* reasonOf(store.add(golden(), writing()))).toMatchObject(failed)
            expect(yield* reasonOf(store.list)).toMatchObject(failed)
            expect(yield* reasonOf(store.open("0".repeat(64)))).toMatchObject(failed)
          })
        )
      })
    ))
})

describe("DiskSnapshotStore, when the file system fails at any step", () => {
  /** One store has a snapshot under "base"; then `run` has its nth step disturbed. */
  const everyStep = (
    run: (store: Parameters<Parameters<typeof using>[1]>[0]) => Effect.Effect<unknown, MicroVmError.MicroVmError>,
    disturb: "fail" | "interrupt",
    check: (cache: string, worked: boolean, step: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  ) =>
    Effect.gen(function*() {
      const trial = (at: number) =>
        withCache(Effect.fnUntraced(function*(cache) {
          yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
          let step = 0
          let reached = "never"
          const files = stepping((name) =>
            Effect.suspend(() => {
              if (++step !== at) return Effect.void
              reached = `${at}: ${name}`
              return disturb === "fail" ? Effect.fail(systemError("EIO")) : Effect.sync(() => fiber.interruptUnsafe())
            })
          )
          const fiber: Fiber.Fiber<unknown, unknown> = yield* Effect.forkChild(using(cache, run, { files }))
          const exit = yield* Fiber.await(fiber)
          yield* check(cache, Exit.isSuccess(exit), reached)
          return reached
        }))
      const steps: Array<string> = []
      while (steps.at(-1) !== "never") {
        const next = Array.from({ length: 8 }, (_, index) => steps.length + index + 1)
        steps.push(...yield* Effect.forEach(next, trial, { concurrency: "unbounded" }))
      }
      expect(steps.indexOf("never")).toBeGreaterThan(10)
    })

  const whole = (cache: string, worked: boolean, step: string) =>
    using(
      cache,
      Effect.fnUntraced(function*(store) {
        const all = yield* store.list
        const names = all.flatMap((one) => one.names).toSorted()
        for (const { id } of all) yield* store.verify(id)
        // The name that is added last is there exactly when it was said to be.
        expect([step, names]).toEqual([step, worked ? ["base", "new"] : ["base"]])
        expect([step, all.length]).toEqual([step, names.length])
        expect([step, (yield* store.add(golden({ name: "new", replace: true }), writing())).id]).toEqual([
          step,
          (yield* store.open("new")).id
        ])
        expect([step, leftovers(cache)]).toEqual([step, []])
      })
    )

  it.live(
    "add leaves the store as it was, or with the snapshot",
    () => everyStep((store) => store.add(golden({ name: "new" }), writing({ state: "new" })), "fail", whole),
    120_000
  )

  it.live(
    "so it does when it is interrupted",
    () =>
      everyStep(
        (store) => store.add(golden({ name: "new" }), writing({ state: "new" })),
        "interrupt",
        (cache, worked, step) =>
          using(
            cache,
            Effect.fnUntraced(function*(store) {
              // An interruption that came too late is still one.
              const names = (yield* store.list).flatMap((one) => one.names)
              yield* whole(cache, worked || names.includes("new"), step)
            })
          )
      ),
    120_000
  )

  it.live(
    "one without a name is not left where nobody finds it",
    () =>
      everyStep(
        (store) => store.add(golden(), writing({ state: "new" })),
        "interrupt",
        (cache, worked, step) =>
          using(
            cache,
            Effect.fnUntraced(function*(store) {
              const names = (yield* store.list).map((one) => one.names)
              expect([step, names.length]).toEqual([step, worked ? 2 : 1])
            })
          )
      ),
    120_000
  )

  it.live("a name that is moved is always somebody's", () =>
    everyStep(
      (store) => store.add(golden({ name: "base", replace: true }), writing({ state: "new" })),
      "fail",
      (cache, worked, step) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            const { directory } = yield* store.verify("base")
            expect([step, readFileSync(join(directory, "state"), "utf8")]).toEqual([
              step,
              worked ? "new" : contents.state
            ])
            expect([step, yield* store.list]).toMatchObject([step, { length: worked ? 2 : 1 }])
          })
        )
    ), 120_000)

  for (const disturb of ["fail", "interrupt"] as const) {
    it.live(
      `remove removes it, or leaves it whole (${disturb})`,
      () =>
        everyStep((store) => store.remove("base"), disturb, (cache, worked, step) =>
          using(
            cache,
            Effect.fnUntraced(function*(store) {
              const all = yield* store.list
              for (const { id } of all) yield* store.verify(id)
              if (worked) {
                expect([step, all]).toEqual([step, []])
              }
              yield* store.add(golden({ name: "base", replace: true }), writing())
              expect([step, leftovers(cache)]).toEqual([step, []])
            })
          )),
      120_000
    )
  }

  it.live.each(
    [["ENOSPC", "no space is left"], ["EDQUOT", "no space is left"], ["EROFS", "make it writable"]] as const
  )(
    "%s has words of its own",
    ([code, words]) =>
      withCache((cache) =>
        using(
          cache,
          (store) =>
            Effect.map(reasonOf(store.add(golden({ name: "new" }), writing())), (reason) => {
              expect(reason).toMatchObject({ _tag: "StoreFailed", path: cache })
              expect(reason.message).toMatch(new RegExp(`${words}.*MICROVM_CACHE_DIR`))
            }),
          { files: stepping((step) => step.startsWith("write ") ? Effect.fail(systemError(code)) : Effect.void) }
        )
      )
  )

  it.live("a seal that cannot be written costs time, and nothing else", () =>
    withCache((cache) =>
      Effect.gen(function*() {
        const one = yield* using(cache, (store) => store.add(golden({ name: "base" }), writing()))
        chmodSync(join(one.directory, "memory"), 0o644)
        const readOnly = stepping((step) =>
          /^(makeTempDirectory|utimes|write|rename)/.test(step) ? Effect.fail(systemError("EROFS")) : Effect.void
        )
        const read: Array<string> = []
        yield* using(
          cache,
          (store) => Effect.andThen(store.open("base"), store.open("base")),
          { files: readOnly, onHash: (path) => read.push(path) }
        )
        expect(read).toHaveLength(2)
      })
    ))
})

describe("DiskSnapshotStore, used by many", () => {
  it.live("opens what is being removed whole, or not at all", () =>
    withCache((cache) =>
      Effect.gen(function*() {
        const worker = (index: number) =>
          using(
            cache,
            Effect.fnUntraced(function*(store) {
              for (let time = 0; time < 3; time++) {
                const name = `n${(index + time) % 3}`
                const text = `${index} ${time}`
                const added = yield* Effect.result(store.add(golden({ name }), writing({ state: text })))
                if (Result.isFailure(added)) expect(added.failure.reason._tag).toBe("SnapshotAlreadyExists")
                for (let look = 0; look < 10; look++) {
                  const opened = yield* Effect.result(store.open(`n${look % 3}`))
                  if (Result.isFailure(opened)) expect(opened.failure.reason._tag).toBe("SnapshotNotFound")
                  yield* store.list
                }
                yield* store.remove(name)
              }
            })
          )
        yield* Effect.forEach([0, 1, 2, 3, 4, 5], worker, { concurrency: "unbounded" })
        expect(leftovers(cache)).toEqual([])
        expect(readdirSync(join(cache, "snapshots"))).toEqual(["tmp"])
      })
    ), 180_000)

  it.live(
    "a name that is moved again and again always opens",
    () =>
      withCache((cache) =>
        using(
          cache,
          Effect.fnUntraced(function*(store) {
            yield* store.add(golden({ name: "base" }), writing())
            const moving = yield* Effect.forkChild(Effect.gen(function*() {
              for (let time = 0; time < 10; time++) {
                const before = yield* store.open("base")
                yield* store.add(golden({ name: "base", replace: true }), writing({ state: `${time}` }))
                yield* store.remove(before.id)
              }
            }))
            while (moving.pollUnsafe() === undefined) yield* store.open("base")
            yield* Fiber.join(moving)
            expect(yield* store.list).toHaveLength(1)
          })
        )
      ),
    180_000
  )

  it.live("a difference is told with all that is wrong with what it stands on", () =>
    withCache((cache) =>
      using(
        cache,
        Effect.fnUntraced(function*(store) {
          const diffOf = (base: string, name: string) =>
            store.add(
              golden({ name }),
              (directory) =>
                Effect.map(writing({ memory: `memory of ${name}` })(directory), (made) => ({ ...made, base }))
            )
          const base = yield* store.add(golden({ name: "base" }), writing())
          const first = yield* diffOf(base.id, "first")
          yield* diffOf(first.id, "second")
          const [baseName, firstName] = [base, first].map(({ id }) => `its base ${id.slice(0, 12)}`)
          truncateSync(join(base.directory, "memory"), 9000)
          const short = `${baseName}: memory is shorter than it was, 9000 bytes instead of 10000`
          for (const look of [store.open, store.verify]) {
            expect(yield* whyOf(look("first"))).toEqual([short])
            expect(yield* whyOf(look("second"))).toEqual([`${firstName}: ${short}`])
          }
          expect(yield* whyOf(diffOf(first.id, "third"))).toEqual([`${firstName}: ${short}`])
          writeFileSync(join(base.directory, "memory"), "n".repeat(10_000))
          expect(yield* whyOf(store.open("first"))).toEqual([`${baseName}: memory has changed`])
          // Another snapshot in its place is not it.
          const other = yield* store.add(golden(), writing({ memory: "other" }))
          rmSync(base.directory, { recursive: true })
          cpSync(other.directory, base.directory, { recursive: true })
          expect(yield* whyOf(store.open("second"))).toEqual([`${firstName}: ${baseName}: its manifest has changed`])
          rmSync(base.directory, { recursive: true })
          expect(yield* whyOf(store.open("second"))).toEqual([`${firstName}: ${baseName} is not there`])
          expect((yield* store.list).map(({ names }) => names.join()).toSorted()).toEqual(["", "first", "second"])
          expect([yield* store.remove("second"), yield* store.remove("first")]).toEqual([true, true])
        })
      )
    ))
})
