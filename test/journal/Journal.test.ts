import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { describe, expect, it } from "@effect/vitest"
import { Journal, type JournalError, Lease, MachineRecord } from "effect-microvm-runtime/journal"
import { NodeProcessHost, ProcessIdentity } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { dirname, join } from "node:path"
import { stepping, systemError } from "../files.ts"
import {
  inMemory,
  journalAt,
  type JournalService,
  leftovers,
  machine,
  reason,
  tap,
  using,
  withDirectory
} from "./support.ts"

const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn("skipped: a directory of another user, for only root can make one")

/** One and the same for both kinds. */
const both = (name: string, test: (journal: JournalService) => Effect.Effect<unknown, JournalError.JournalError>) => {
  it.live(`${name}, on disk`, () => withDirectory((directory) => using(directory, test)))
  it.live(`${name}, in memory`, () => Effect.provide(Journal.Journal.use(test), inMemory()))
}

const good: MachineRecord.MachineRecord = {
  format: 1,
  id: "web-1",
  token: "0123456789abcdef",
  bootId: "b",
  supervisor: { bootId: "b", pid: 7, startTime: 8 },
  createdAt: "2026-01-01T00:00:00.000Z",
  keep: false,
  phase: { _tag: "Up" },
  claims: [tap("t0")],
  spec: {},
  labels: {}
}

describe("records", () => {
  both("a record from its making to its removal", (journal) =>
    Effect.gen(function*() {
      const self = yield* ProcessIdentity.self.pipe(Effect.provide(NodeProcessHost.layer))
      const entry = yield* journal.open(machine("web-1", { keep: true, labels: { a: "1" }, claims: [tap("t0")] }))
      expect(entry.token).toMatch(/^[0-9a-f]{16}$/)
      yield* entry.claim(tap("t1"), tap("t2"))
      yield* entry.forget(tap("t1"), tap("t9"))
      yield* entry.label({ b: "2" })
      yield* entry.respec({ vcpus: 2 })
      yield* entry.enter({ _tag: "Over", exitCode: 3, text: "exited with 3", at: "now" })
      yield* entry.adopt
      const { createdAt, ...record } = yield* entry.record
      expect(Number.isNaN(Date.parse(createdAt))).toBe(false)
      expect(record).toEqual({
        format: 1,
        id: "web-1",
        token: entry.token,
        bootId: self.bootId,
        supervisor: self,
        keep: true,
        phase: { _tag: "Over", exitCode: 3, text: "exited with 3", at: "now" },
        claims: [tap("t0"), tap("t2")],
        spec: { vcpus: 2 },
        labels: { a: "1", b: "2" }
      })
      expect(yield* journal.entries).toEqual([entry])
      yield* entry.close
      expect(yield* journal.entries).toEqual([])
      expect((yield* entry.record).claims).toEqual([tap("t0"), tap("t2")])
    }))

  both("several changes are one", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1", { claims: [tap("t0"), tap("t1")] }))
      yield* entry.update({ forget: [tap("t0")], claim: [tap("t2")], labels: { a: "1" } })
      const { claims, labels } = yield* entry.record
      expect([claims, labels]).toEqual([[tap("t1"), tap("t2")], { a: "1" }])
    }))

  both("what is forgotten and claimed by one change is claimed", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1", { claims: [tap("t0"), tap("t1")] }))
      yield* entry.update({ forget: [tap("t0")], claim: [tap("t0"), tap("t1")] })
      expect((yield* entry.record).claims).toEqual([tap("t1"), tap("t0")])
    }))

  both("a spec can become any JSON, null included", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1"))
      for (const spec of [null, false, "", 0, [], { a: [null] }]) {
        yield* entry.respec(spec)
        yield* entry.label({ a: JSON.stringify(spec) })
        expect((yield* entry.record).spec).toEqual(spec)
      }
    }))

  both("a claim is known again whatever the order of its keys", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(
        machine("web-1", { claims: [{ kind: "tap", data: { name: "t0", at: [1, { x: 1, y: 2 }] } }] })
      )
      yield* entry.forget({ kind: "tap", data: { at: [2, { x: 1, y: 2 }], name: "t0" } })
      expect((yield* entry.record).claims).toHaveLength(1)
      yield* entry.forget({ data: { at: [1, { y: 2, x: 1 }], name: "t0" }, kind: "tap" })
      expect((yield* entry.record).claims).toEqual([])
    }))

  both("what is claimed already is not claimed twice", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1", { claims: [tap("t0"), tap("t0")] }))
      yield* entry.claim(tap("t0"), tap("t1"), tap("t1"))
      expect((yield* entry.record).claims).toEqual([tap("t0"), tap("t1")])
      yield* entry.forget({ kind: "tap", data: { name: "t0" } })
      expect((yield* entry.record).claims).toEqual([tap("t1")])
    }))

  both("one record for an id, also when two want it at once", (journal) =>
    Effect.gen(function*() {
      const open = Effect.exit(journal.open(machine("web-1")))
      const exits = yield* Effect.all([open, open, open], { concurrency: 3 })
      expect(exits.filter(Exit.isSuccess)).toHaveLength(1)
      expect(yield* reason(journal.open(machine("web-1")))).toMatchObject({ _tag: "RecordExists", id: "web-1" })
      const [entry] = yield* journal.entries
      yield* Effect.asVoid(entry?.close ?? Effect.void)
      const again = yield* journal.open(machine("web-1"))
      expect(again.token).not.toBe(entry?.token)
    }))

  both("changes made at once are all made", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1"))
      const names = Array.from({ length: 30 }, (_, index) => `t${index}`)
      yield* Effect.forEach(names, (name) => entry.claim(tap(name)), { concurrency: "unbounded" })
      expect((yield* entry.record).claims).toHaveLength(30)
    }))

  both("a closed record is not written again", (journal) =>
    Effect.gen(function*() {
      const entry = yield* journal.open(machine("web-1"))
      yield* entry.close
      yield* entry.close
      yield* entry.forget(tap("t0"))
      for (
        const change of [
          entry.claim(tap("t0")),
          entry.adopt,
          entry.label({}),
          entry.respec(1),
          entry.enter({ _tag: "Up" })
        ]
      ) {
        expect(yield* reason(change)).toMatchObject({ _tag: "RecordClosed", id: "web-1" })
      }
      const again = yield* journal.open(machine("web-1"))
      yield* entry.close
      expect(yield* journal.entries).toEqual([again])
    }))

  for (const id of ["", "-a", "a b", "a/b", "..", "a.b", "ä", "a\n", "\0", "a".repeat(65), "$(id)", "A_b"]) {
    both(`${JSON.stringify(id)} is no id`, (journal) =>
      Effect.gen(function*() {
        expect(yield* reason(journal.open(machine(id)))).toMatchObject({ _tag: "InvalidId", id })
        expect(yield* journal.entries).toEqual([])
      }))
  }

  let deep: Schema.Json = []
  for (let level = 0; level < 100_000; level++) deep = [deep]
  const invalid: ReadonlyArray<[string, Partial<Journal.NewRecord>, RegExp]> = [
    ["a kind that is none", { claims: [{ kind: "TAP 1", data: 1 }] }, /kind/],
    ["a number that is none in JSON", { spec: { vcpus: Number.NaN } }, /spec/],
    ["more than a record may have", { spec: "x".repeat(1024 * 1024) }, /1048576 are the most/],
    ["a spec that is nested without end", { spec: deep }, /stack|depth|deep/i]
  ]
  for (const [name, more, why] of invalid) {
    both(name, (journal) =>
      Effect.gen(function*() {
        const refused = yield* reason(journal.open(machine("web-1", more)))
        expect(refused).toMatchObject({ _tag: "InvalidRecord", id: "web-1" })
        expect(refused.message).toMatch(why)
        const entry = yield* journal.open(machine("web-1"))
        if (more.spec !== undefined) {
          expect(yield* reason(entry.respec(more.spec))).toMatchObject({ _tag: "InvalidRecord" })
          expect((yield* entry.record).spec).toEqual({ vcpus: 1 })
        }
      }))
  }

  it.live("once the journal was let go, nothing is written", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const [journal, entry] = yield* using(
          directory,
          (one) => Effect.map(one.open(machine("web-1")), (opened) => [one, opened] as const)
        )
        const before = readFileSync(join(directory, "machines/web-1.json"))
        expect(yield* reason(entry.claim(tap("t0")))).toMatchObject({ _tag: "RecordClosed" })
        expect(yield* reason(entry.close)).toMatchObject({ _tag: "RecordClosed" })
        expect(yield* reason(journal.open(machine("web-2")))).toMatchObject({ _tag: "RecordClosed" })
        expect(readFileSync(join(directory, "machines/web-1.json"))).toEqual(before)
        expect(readdirSync(join(directory, "machines"))).toEqual(["web-1.json"])
      })
    ))

  it.live("the lease is kept until a write that has begun is done", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const begun = yield* Latch.make()
        const go = yield* Latch.make()
        const files = stepping((step) =>
          step.startsWith("rename") && step.includes("web-1") ? Effect.andThen(begun.open, go.await) : Effect.void
        )
        const fiber = yield* Effect.forkChild(using(directory, (journal) =>
          Effect.andThen(
            Effect.forkDetach(journal.open(machine("web-1")), { startImmediately: true }),
            begun.await
          ), files))
        yield* begun.await
        yield* Effect.sleep("20 millis")
        expect(yield* reason(using(directory, () => Effect.void))).toMatchObject({ _tag: "LeaseHeld" })
        yield* go.open
        yield* Fiber.join(fiber)
        const ids = yield* using(directory, (journal) => journal.entries)
        expect(ids.map(({ id }) => id)).toEqual(["web-1"])
      })
    ))

  it.live("an interruption comes before a write or after it, and memory and disk agree", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const begun = yield* Latch.make()
        const go = yield* Latch.make()
        let isHeldUp = false
        const files = stepping((step) =>
          isHeldUp && step.startsWith("rename") ? Effect.andThen(begun.open, go.await) : Effect.void
        )
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            const entry = yield* journal.open(machine("web-1"))
            isHeldUp = true
            const writing = yield* Effect.forkChild(entry.claim(tap("t0")))
            yield* begun.await
            const waiting = yield* Effect.forkChild(entry.claim(tap("t1")), { startImmediately: true })
            yield* Fiber.interrupt(waiting)
            const interrupting = yield* Effect.forkChild(Fiber.interrupt(writing), { startImmediately: true })
            yield* go.open
            yield* Fiber.join(interrupting)
            expect((yield* entry.record).claims).toEqual([tap("t0")])
          }), files)
        const [entry] = yield* using(directory, (journal) => journal.entries)
        expect(yield* entry?.record ?? Effect.void).toMatchObject({ claims: [tap("t0")] })
      })
    ))

  it.live("a journal in memory begins with what it is given", () =>
    Effect.gen(function*() {
      const journal = yield* Journal.Journal
      const [entry] = yield* journal.entries
      expect(yield* entry?.record ?? Effect.void).toEqual(good)
      expect(journal.directory).toBe("/state")
      expect(yield* reason(journal.open(machine("web-1")))).toMatchObject({ _tag: "RecordExists" })
      yield* entry?.adopt ?? Effect.void
      expect((yield* entry?.record ?? Effect.succeed(good)).supervisor.pid).toBe(process.pid)
    }).pipe(Effect.provide(inMemory({ directory: "/state", records: [good] }))))

  it.live("records of the dead are there with the next supervisor, and for whoever only looks", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const record = yield* using(directory, (journal) =>
          Effect.gen(function*() {
            yield* journal.open(machine("web-2"))
            const entry = yield* journal.open(machine("web-1", { claims: [tap("t0")] }))
            return yield* entry.record
          }))
        const look = Effect.provide(Journal.peek({ directory }), [
          NodeFileSystem.layer,
          NodePath.layer,
          NodeProcessHost.layer
        ])
        expect((yield* look).holder).toBeUndefined()
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            const [entry, other] = yield* journal.entries
            expect(other?.id).toBe("web-2")
            expect(yield* entry?.record ?? Effect.void).toEqual(record)
            const seen = yield* look
            expect(seen.records.map(({ id }) => id)).toEqual(["web-1", "web-2"])
            expect(seen.holder?.pid).toBe(process.pid)
            expect(Number.isNaN(Date.parse(seen.since ?? ""))).toBe(false)
          }))
      })
    ))

  it.live("nobody else can look into it, and nothing is left beside it", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        yield* using(directory, (journal) => journal.open(machine("web-1")))
        expect(["", "machines", "quarantine", "tmp"].map((name) => statSync(join(directory, name)).mode & 0o777))
          .toEqual([0o700, 0o700, 0o700, 0o700])
        expect(leftovers(directory)).toEqual([])
        expect(statSync(join(directory, "lease")).size).toBe(0)
      })
    ))
})

describe("what is no record", () => {
  const text = JSON.stringify(good)
  const files: ReadonlyArray<[name: string, file: string, content: string | Uint8Array, why: RegExp]> = [
    ["nothing", "web-1.json", "", /torn/],
    ["zeros, as a power cut leaves them", "web-1.json", new Uint8Array(text.length), /torn/],
    ["half of one", "web-1.json", text.slice(0, 100), /torn/],
    ["bytes that are no text", "web-1.json", new Uint8Array([0xff, 0xfe, 0x00]), /torn/],
    ["another format", "web-1.json", text.replace("\"format\":1", "\"format\":2"), /format 2/],
    ["no format", "web-1.json", text.replace("\"format\":1,", ""), /format/],
    ["a key that nobody knows", "web-1.json", text.replace("\"keep\"", "\"kept\":1,\"keep\""), /kept/],
    ["a key within that nobody knows", "web-1.json", text.replace("\"kind\"", "\"since\":1,\"kind\""), /since/],
    ["a key that is missing", "web-1.json", text.replace("\"keep\":false,", ""), /keep/],
    ["a token of another shape", "web-1.json", text.replace("0123456789abcdef", "* ; rm -rf /"), /token/],
    ["a phase that nobody knows", "web-1.json", text.replace("Up", "Down"), /phase/],
    ["a kind that is none", "web-1.json", text.replace("\"kind\":\"tap\"", "\"kind\":\"../tap\""), /kind/],
    ["the id of another file", "web-2.json", text, /is the record of web-1/],
    ["an id that is none", "a b.json", text.replace("web-1", "a b"), /id/],
    ["a name that is none", "web-1.json~", text, /is the record of web-1/],
    ["a list", "web-1.json", "[]", /./],
    ["a name as long as can be", `${"x".repeat(250)}.json`, "{}", /./],
    ["more than a record may have", "web-1.json", JSON.stringify({ ...good, spec: "x".repeat(1 << 20) }), /at most/],
    [
      "nested without end",
      "web-1.json",
      text.replace("\"spec\":{}", `"spec":${"[".repeat(400_000)}${"]".repeat(400_000)}`),
      /./
    ]
  ]
  const given = (directory: string) => {
    mkdirSync(join(directory, "machines"), { recursive: true, mode: 0o700 })
    chmodSync(directory, 0o700)
    return join(directory, "machines")
  }
  const other = { ...good, id: "other" }

  for (const [name, file, content, why] of files) {
    it.live(`${name}: moved aside, told, and nothing else touched`, () =>
      withDirectory((directory) =>
        Effect.gen(function*() {
          const machines = given(directory)
          writeFileSync(join(machines, file), content)
          writeFileSync(join(machines, "other.json"), JSON.stringify(other))
          const before = readFileSync(join(machines, file))
          yield* using(directory, (journal) =>
            Effect.gen(function*() {
              expect((yield* journal.entries).map(({ id }) => id)).toEqual(["other"])
              expect(readdirSync(machines)).toEqual(["other.json"])
              const [aside, ...rest] = yield* journal.quarantined
              expect(rest).toEqual([])
              expect(aside?.why).toMatch(why)
              expect(dirname(aside?.path ?? "")).toBe(join(directory, "quarantine"))
              expect(readFileSync(aside?.path ?? "").equals(before)).toBe(true)
            }))
          // It is told as long as it is there.
          expect(yield* using(directory, (journal) => journal.quarantined)).toHaveLength(1)
        })
      ))
  }

  it.live("a link is not followed, a directory not entered", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const machines = given(directory)
        const elsewhere = join(dirname(directory), "elsewhere.json")
        writeFileSync(elsewhere, text)
        symlinkSync(elsewhere, join(machines, "web-1.json"))
        symlinkSync("/nonexistent", join(machines, "web-2.json"))
        mkdirSync(join(machines, "web-3.json"))
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            expect(yield* journal.entries).toEqual([])
            const aside = yield* journal.quarantined
            expect(aside.map(({ why }) => why)).toEqual([
              expect.stringMatching(/SymbolicLink/),
              expect.stringMatching(/SymbolicLink/),
              expect.stringMatching(/Directory/)
            ])
            yield* (yield* journal.open(machine("web-1"))).claim(tap("t1"))
          }))
        expect(readFileSync(elsewhere, "utf8")).toBe(text)
      })
    ))

  it.live("what cannot be moved is told of where it is, and is not written over", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const machines = given(directory)
        writeFileSync(join(machines, "web-1.json"), "{")
        const noMove = stepping((step) =>
          step.startsWith("rename") && step.includes("quarantine") ? Effect.fail(systemError("ENOSPC")) : Effect.void
        )
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            const aside = yield* journal.quarantined
            expect(aside.map(({ path }) => path)).toEqual([join(machines, "web-1.json")])
            expect(aside[0]?.why).toMatch(/torn.*ENOSPC/s)
            expect(yield* reason(journal.open(machine("web-1")))).toMatchObject({ _tag: "RecordExists" })
          }), noMove)
        expect(readFileSync(join(machines, "web-1.json"), "utf8")).toBe("{")
        expect(readdirSync(join(directory, "quarantine"))).toEqual([])
      })
    ))

  it.live("what was being written when the last one died is removed", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        given(directory)
        mkdirSync(join(directory, "tmp/some"), { recursive: true })
        writeFileSync(join(directory, "tmp/web-1.json"), "{")
        yield* using(directory, () => Effect.void)
        expect(leftovers(directory)).toEqual([])
      })
    ))

  it.effect.prop(
    "any record is read as it was written",
    [MachineRecord.MachineRecord],
    ([record]) =>
      withDirectory((directory) =>
        Effect.gen(function*() {
          const id = `m${record.id}`.slice(0, 64)
          writeFileSync(join(given(directory), `${id}.json`), JSON.stringify({ ...record, id }))
          yield* using(directory, (journal) =>
            Effect.gen(function*() {
              const [entry] = yield* journal.entries
              yield* entry?.label({ more: "1" }) ?? Effect.void
            }))
          const [entry] = yield* using(directory, (journal) => journal.entries)
          const expected = { ...record, id, labels: { ...record.labels, more: "1" } }
          // As JSON has it: there is no -0, and no object without a prototype.
          expect(JSON.stringify(yield* entry?.record ?? Effect.void)).toBe(JSON.stringify(expected))
        })
      ),
    { arbitrary: { runs: 30 } }
  )
})

describe("the directory", () => {
  const refused = (directory: string) => reason(using(directory, () => Effect.void))

  it.live("one that others can write to", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        mkdirSync(directory)
        chmodSync(directory, 0o770)
        const error = yield* refused(directory)
        expect(error._tag).toBe("DirectoryUnusable")
        expect(error.message).toMatch(/mode 770.*chmod 700/)
        expect(readdirSync(directory)).toEqual([])
      })
    ))

  it.live.skipIf(!isRoot)("one of another user", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        mkdirSync(directory, { mode: 0o700 })
        chownSync(directory, 12345, 0)
        expect((yield* refused(directory)).message).toMatch(/belongs to user 12345/)
        expect(readdirSync(directory)).toEqual([])
      })
    ))

  it.live("one that is no directory, below one, or cannot be", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        writeFileSync(directory, "")
        for (const at of [directory, `${directory}/below`, "/proc/journal", "/proc/self/journal/state", "", "a\0b"]) {
          const error = yield* refused(at)
          expect([at, error._tag]).toEqual([at, "DirectoryUnusable"])
          expect(error.message).toMatch(/cannot be used, .+: .+/)
        }
      })
    ))

  it.live("one whose lock is somebody else's file", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        mkdirSync(directory, { mode: 0o700 })
        writeFileSync(join(directory, "lease"), "pid 7\n".repeat(200))
        expect((yield* refused(directory)).message).toMatch(/not a database: remove its file "lease"/)
      })
    ))

  it.live("one whose lock is a directory", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        mkdirSync(join(directory, "lease"), { recursive: true, mode: 0o700 })
        expect((yield* refused(directory))._tag).toBe("DirectoryUnusable")
      })
    ))

  it.live("one that has no room left can be had, and records removed from it", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        yield* using(directory, (journal) => journal.open(machine("web-1")))
        const files = stepping((step) =>
          /^(write|makeDirectory)/.test(step) ? Effect.fail(systemError("ENOSPC")) : Effect.void
        )
        mkdirSync(join(directory, "tmp"), { recursive: true })
        const full = stepping((step) => step.startsWith("write") ? Effect.fail(systemError("ENOSPC")) : Effect.void)
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            const [entry] = yield* journal.entries
            const error = yield* reason(entry?.claim(tap("t0")) ?? Effect.void)
            expect(error).toMatchObject({ _tag: "WriteFailed", id: "web-1", isNoSpace: true })
            expect(error.message).toMatch(/disk is full/)
            yield* entry?.close ?? Effect.void
          }), full)
        expect(existsSync(join(directory, "machines/web-1.json"))).toBe(false)
        expect((yield* reason(using(`${directory}-2`, () => Effect.void, files))).message).toMatch(/free some space/)
      })
    ))
})

describe("the lease", () => {
  it.live("a second supervisor of this process is told who has it", () =>
    withDirectory((directory) =>
      using(directory, () =>
        Effect.gen(function*() {
          const error = yield* reason(using(directory, () => Effect.void))
          expect(error).toMatchObject({ _tag: "LeaseHeld", directory, holder: { pid: process.pid } })
          expect(error.message).toMatch(/process \d+@\d+ has had the state directory .* since \d{4}-.*Z: end it/)
          // By another way to the same place, too.
          symlinkSync(directory, `${directory}-link`)
          expect((yield* reason(using(`${directory}-link`, () => Effect.void)))._tag).toBe("LeaseHeld")
        })).pipe(Effect.andThen(using(directory, () => Effect.void)))
    ))

  it.live("a holder that cannot be told is not made up", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const taken = Layer.succeed(Lease.Lease, { user: process.getuid?.() ?? 0, lock: () => Effect.succeed(false) })
        const layer = Journal.layer({ directory }).pipe(
          Layer.provide([NodeFileSystem.layer, NodePath.layer, NodeProcessHost.layer, taken])
        )
        const refusal = Effect.flip(Effect.provide(Journal.Journal, layer, { local: true }))
        const notes = [
          "",
          "{",
          "x".repeat(10_000),
          JSON.stringify({ holder: { bootId: "another", pid: 1, startTime: 1 }, since: "2026" })
        ]
        expect((yield* refusal).message).toMatch(/^another process has had/)
        for (const note of notes) {
          writeFileSync(join(directory, "lease.json"), note)
          expect((yield* refusal).message).toMatch(/^another process has had/)
        }
      })
    ))

  it.live("a supervisor that fails to open leaves it to the next", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const files = stepping((step) =>
          step.startsWith("readDirectory") && step.includes("machines")
            ? Effect.fail(systemError("EIO"))
            : Effect.void
        )
        expect((yield* reason(using(directory, () => Effect.void, files)))._tag).toBe("DirectoryUnusable")
        yield* Effect.scoped(Layer.build(journalAt(directory)))
      })
    ))
})
