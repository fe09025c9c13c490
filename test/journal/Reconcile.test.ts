import { describe, expect, it } from "@effect/vitest"
import { Journal, type MachineRecord, Reclaimer, Reconcile, ResourceKind } from "effect-microvm-runtime/journal"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { stepping, systemError } from "../files.ts"
import { inMemory, type JournalService, machine, using, withDirectory } from "./support.ts"

const { Absent, Foreign, Released, Stuck } = ResourceKind.Verdict

/** What there is on a host: things of a kind, each with the token of its owner. */
interface Host {
  readonly things: Map<string, string>
  readonly calls: Array<{ readonly kind: string; readonly names: ReadonlyArray<string>; readonly dryRun: boolean }>
  /** Those that cannot be removed. */
  readonly stuck: Set<string>
}

const makeHost = (): Host => ({ things: new Map(), calls: [], stuck: new Set() })

/** A kind whose things have a name, and are ours if they have our token. */
const named = (host: Host, kind: string): ResourceKind.ResourceKind<string> => ({
  kind,
  data: Schema.String,
  describe: (name) => `${kind} ${name}`,
  reclaim: (claims, { dryRun }) =>
    Effect.sync(() => {
      host.calls.push({ kind, names: claims.map(({ data }) => data), dryRun })
      return claims.map(({ data, owner }) => {
        const key = `${kind}/${data}`
        const token = host.things.get(key)
        if (token === undefined) return Absent()
        if (token !== owner.token) return Foreign({ why: `it belongs to ${token}` })
        if (host.stuck.has(key)) return Stuck({ why: "it is busy", remedy: "wait" })
        if (!dryRun) host.things.delete(key)
        return Released()
      })
    })
})

/** Claims a thing and makes it. */
const acquire = (host: Host, entry: Journal.Entry, kind: string, name: string) =>
  Effect.andThen(
    entry.claim(ResourceKind.claim(named(host, kind), name)),
    Effect.sync(() => host.things.set(`${kind}/${name}`, entry.token))
  )

const kindsOf = (host: Host) => ["directory", "tap", "rules"].map((kind) => Reclaimer.make(named(host, kind)))

const journalled = <A, E, R>(test: (journal: JournalService) => Effect.Effect<A, E, R>) =>
  Journal.Journal.use(test).pipe(Effect.provide(inMemory(), { local: true }))

const verdicts = (released: Reconcile.Released | undefined) =>
  released?.claims.map(({ verdict, what }) => `${what} ${verdict._tag}`)

describe("release", () => {
  it.effect("what was acquired last goes first, and the record with the last", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const entry = yield* journal.open(machine("web-1"))
        for (const [kind, name] of [["directory", "d"], ["tap", "t0"], ["rules", "r0"], ["tap", "t1"]] as const) {
          yield* acquire(host, entry, kind, name)
        }
        const released = yield* Reconcile.release(entry, kindsOf(host))
        expect(verdicts(released)).toEqual([
          "rules r0 Released",
          "tap t1 Released",
          "tap t0 Released",
          "directory d Released"
        ])
        expect(released.left).toBe(0)
        expect(host.calls.map(({ names }) => names)).toEqual([["r0"], ["t1", "t0"], ["d"]])
        expect(host.things.size).toBe(0)
        expect(yield* journal.entries).toEqual([])
        // Again: there is nothing to be done, and nothing comes back.
        expect(yield* Reconcile.release(entry, kindsOf(host))).toMatchObject({ left: 0 })
        expect(yield* journal.entries).toEqual([])
      })
    ))

  it.effect("one that stays does not keep the others, and stays claimed; what is foreign is left alone and forgotten", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const entry = yield* journal.open(machine("web-1"))
        for (const name of ["t0", "t1", "t2", "t3"]) yield* acquire(host, entry, "tap", name)
        yield* acquire(host, entry, "directory", "d")
        host.stuck.add("tap/t1")
        host.things.set("tap/t2", "somebody else")
        host.things.delete("tap/t3")
        const released = yield* Reconcile.release(entry, kindsOf(host))
        expect(verdicts(released)).toEqual([
          "tap t3 Absent",
          "tap t2 Foreign",
          "tap t1 Stuck",
          "tap t0 Released",
          "directory d Released"
        ])
        expect(released.left).toBe(1)
        expect((yield* entry.record).claims).toEqual([{ kind: "tap", data: "t1" }])
        expect([...host.things]).toEqual([["tap/t1", entry.token], ["tap/t2", "somebody else"]])
        expect(Reconcile.format([released])).toBe([
          "web-1: 1 of 5 stay",
          "  tap t3: is not there",
          "  tap t2: is not ours, and was left alone: it belongs to somebody else",
          "  tap t1: STAYS, it is busy: wait",
          "  tap t0: removed",
          "  directory d: removed"
        ].join("\n"))
        host.stuck.clear()
        expect((yield* Reconcile.release(entry, kindsOf(host))).left).toBe(0)
        expect(yield* journal.entries).toEqual([])
      })
    ))

  it.effect("a record that is to say how its machine ended stays, with one write", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const entry = yield* journal.open(machine("web-1"))
        yield* acquire(host, entry, "tap", "t0")
        const over: Extract<MachineRecord.Phase, { readonly _tag: "Over" }> = {
          _tag: "Over",
          exitCode: 3,
          text: "exited with 3",
          at: "now"
        }
        expect(yield* Reconcile.release(entry, kindsOf(host), { over })).toMatchObject({ left: 0 })
        expect(yield* entry.record).toMatchObject({ claims: [], phase: over })
        expect(yield* journal.entries).toEqual([entry])
      })
    ))
})

describe("reclaim", () => {
  it.effect("many machines, one call for each kind", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const ids = Array.from({ length: 50 }, (_, index) => `m-${index}`)
        for (const id of ids) {
          const entry = yield* journal.open(machine(id))
          for (const kind of ["directory", "tap", "rules"]) yield* acquire(host, entry, kind, id)
        }
        const entries = yield* journal.entries
        const dry = yield* Reconcile.reclaim(entries, kindsOf(host), { dryRun: true })
        expect([host.things.size, (yield* journal.entries).length]).toEqual([150, 50])
        expect(Reconcile.format(dry.slice(0, 1), { dryRun: true })).toBe([
          "m-0: all would be released",
          "  rules m-0: would be removed",
          "  tap m-0: would be removed",
          "  directory m-0: would be removed"
        ].join("\n"))
        const released = yield* Reconcile.reclaim(entries, kindsOf(host))
        expect(released).toEqual(dry)
        expect(host.calls.map(({ dryRun, kind, names }) => [kind, names.length, dryRun])).toEqual([
          ["rules", 50, true],
          ["tap", 50, true],
          ["directory", 50, true],
          ["rules", 50, false],
          ["tap", 50, false],
          ["directory", 50, false]
        ])
        expect(host.things.size).toBe(0)
        expect(yield* journal.entries).toEqual([])
        // It can be sent to somebody.
        const json = Schema.fromJsonString(Schema.Array(Reconcile.Released))
        expect(yield* Schema.decodeEffect(json)(yield* Schema.encodeEffect(json)(released))).toEqual(released)
      })
    ))

  it.effect("kinds that do not depend on each other go at the same time", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const entry = yield* journal.open(machine("web-1"))
        for (const kind of ["directory", "tap", "rules"]) yield* acquire(host, entry, kind, "x")
        const begun: Array<string> = []
        const slow = (kind: string) => {
          const { reclaim, ...one } = named(host, kind)
          return Reclaimer.make({
            ...one,
            reclaim: (claims, options) =>
              Effect.suspend(() => {
                begun.push(kind)
                return Effect.delay(reclaim(claims, options), "1 second")
              })
          })
        }
        const kinds = [slow("directory"), [slow("tap"), slow("rules")]]
        const fiber = yield* Effect.forkChild(Reconcile.release(entry, kinds), { startImmediately: true })
        yield* TestClock.adjust("500 millis")
        expect(begun).toEqual(["rules", "tap"])
        yield* TestClock.adjust("1500 millis")
        expect(verdicts(yield* Fiber.join(fiber))).toEqual([
          "rules x Released",
          "tap x Released",
          "directory x Released"
        ])
      })
    ))

  it.effect("machines of one id in two journals are two", () =>
    journalled((one) =>
      journalled((other) =>
        Effect.gen(function*() {
          const host = makeHost()
          const first = yield* one.open(machine("web-1"))
          const second = yield* other.open(machine("web-1"))
          yield* acquire(host, first, "tap", "t0")
          yield* acquire(host, second, "rules", "r0")
          const released = yield* Reconcile.reclaim([first, second], kindsOf(host))
          expect(released.map(verdicts)).toEqual([["tap t0 Released"], ["rules r0 Released"]])
        })
      )
    ))

  it.effect("claims that nobody understands stay, and the rest is released", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        const entry = yield* journal.open(machine("web-1", {
          claims: [{ kind: "moon", data: { phase: "full" } }, { kind: "tap", data: { name: "t9" } }]
        }))
        yield* acquire(host, entry, "tap", "t0")
        const released = yield* Reconcile.release(entry, kindsOf(host))
        expect(verdicts(released)).toEqual([
          "moon {\"phase\":\"full\"} Stuck",
          "tap t0 Released",
          "tap {\"name\":\"t9\"} Stuck"
        ])
        expect((yield* entry.record).claims).toHaveLength(2)
        expect(host.calls).toEqual([{ kind: "tap", names: ["t0"], dryRun: false }])
      })
    ))

  const broken: ReadonlyArray<[string, ResourceKind.ResourceKind["reclaim"], RegExp]> = [
    ["dies", () => Effect.die(new Error("no such luck")), /it broke: .*no such luck/],
    ["throws", () => {
      throw new Error("no such luck")
    }, /no such luck/],
    ["hangs", () => Effect.never, /did not come to an end within 1m/],
    ["answers for some", () => Effect.succeed([Absent()]), /1 of 2 were answered for/],
    ["answers for none", () => Effect.succeed([]), /0 of 2/]
  ]
  for (const [name, reclaim, why] of broken) {
    it.effect(`a kind that ${name}: its claims stay, and the others are released`, () =>
      journalled((journal) =>
        Effect.gen(function*() {
          const host = makeHost()
          const bad = Reclaimer.make({ kind: "bad", data: Schema.Json, describe: String, reclaim })
          const entry = yield* journal.open(
            machine("web-1", { claims: [{ kind: "bad", data: 1 }, { kind: "bad", data: 2 }] })
          )
          yield* acquire(host, entry, "tap", "t0")
          const fiber = yield* Effect.forkChild(Reconcile.release(entry, [...kindsOf(host), bad]))
          yield* TestClock.adjust("1 minute")
          const released = yield* Fiber.join(fiber)
          expect(verdicts(released)).toEqual(["2 Stuck", "1 Stuck", "tap t0 Released"])
          const verdict = released.claims[0]?.verdict
          expect(verdict?._tag === "Stuck" && verdict.why).toMatch(why)
        })
      ))
  }

  it.effect("a kind that is there twice is a mistake of the program", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        const entry = yield* journal.open(machine("web-1"))
        const kinds = [Reclaimer.missing("tap"), Reclaimer.missing("tap")]
        expect(Exit.hasDies(yield* Effect.exit(Reconcile.release(entry, kinds)))).toBe(true)
      })
    ))

  it.effect("kinds get what they need from whoever asks", () =>
    journalled((journal) =>
      Effect.gen(function*() {
        class Here extends Context.Service<Here, { readonly name: string }>()("test/Here") {}
        const kind = Reclaimer.make({
          kind: "here",
          data: Schema.String,
          describe: (name) => name,
          reclaim: (claims) =>
            Here.use(({ name }) => Effect.succeed(claims.map(({ data }) => data === name ? Released() : Absent())))
        })
        const entry = yield* journal.open(machine("web-1", { claims: [{ kind: "here", data: "x" }] }))
        const released = yield* Effect.provideService(Reconcile.release(entry, [kind]), Here, { name: "x" })
        expect(verdicts(released)).toEqual(["x Released"])
      })
    ))

  it.live("when the journal cannot be written, it says so; what is gone is found absent the next time", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        let isFull = false
        const files = stepping(() => Effect.suspend(() => isFull ? Effect.fail(systemError("ENOSPC")) : Effect.void))
        const host = makeHost()
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            const entry = yield* journal.open(machine("web-1"))
            for (const name of ["t0", "t1"]) yield* acquire(host, entry, "tap", name)
            host.stuck.add("tap/t1")
            isFull = true
            const released = yield* Reconcile.release(entry, kindsOf(host))
            expect(released.trouble).toMatch(/disk is full/)
            expect(Reconcile.format([released])).toMatch(/disk is full/)
            isFull = false
          }), files)
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            host.stuck.clear()
            const [released] = yield* Reconcile.reclaim(yield* journal.entries, kindsOf(host))
            expect(verdicts(released)).toEqual(["tap t1 Released", "tap t0 Absent"])
            expect(yield* journal.entries).toEqual([])
          }))
      })
    ))
})

const Step = Schema.Struct({
  id: Schema.Literals(["a", "b", "c"]),
  kind: Schema.Literals(["directory", "tap", "rules"]),
  name: Schema.Literals(["x", "y"]),
  fate: Schema.Literals(["there", "there", "never made", "stuck", "replaced"])
})

it.effect.prop(
  "any claims: nothing of ours is left but what is stuck, nothing foreign goes, and what stays is claimed",
  [Schema.Array(Step)],
  ([steps]) =>
    journalled((journal) =>
      Effect.gen(function*() {
        const host = makeHost()
        host.things.set("tap/theirs", "theirs")
        for (const { fate, id, kind, name } of steps) {
          const entry = (yield* journal.entries).find((one) => one.id === id) ?? (yield* journal.open(machine(id)))
          const key = `${kind}/${id}${name}`
          yield* acquire(host, entry, kind, `${id}${name}`)
          if (fate === "never made") host.things.delete(key)
          if (fate === "replaced") host.things.set(key, "theirs")
          if (fate === "stuck") host.stuck.add(key)
        }
        const ours = [...host.things].filter(([, token]) => token !== "theirs")
        const theirs = [...host.things].filter(([, token]) => token === "theirs")
        const stuck = ours.map(([key]) => key).filter((key) => host.stuck.has(key))
        const released = yield* Reconcile.reclaim(yield* journal.entries, kindsOf(host))
        expect([...host.things.keys()].toSorted()).toEqual([...stuck, ...theirs.map(([key]) => key)].toSorted())
        const claims = yield* Effect.forEach(
          yield* journal.entries,
          ({ record }) => Effect.map(record, (one) => one.claims)
        )
        expect(claims.flat().map(({ data, kind }) => `${kind}/${typeof data === "string" ? data : "?"}`).toSorted())
          .toEqual(
            stuck.toSorted()
          )
        expect(released.map(({ left }) => left).reduce((sum, left) => sum + left, 0)).toBe(stuck.length)
      })
    ),
  { arbitrary: { runs: 200 } }
)
