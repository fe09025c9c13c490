import { expect, it } from "@effect/vitest"
import type { Journal, MachineRecord } from "effect-microvm-runtime/journal"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { readdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import { stepping, systemError } from "../files.ts"
import { type JournalService, leftovers, machine, tap, using, withDirectory } from "./support.ts"

// Any sequence of changes, with the supervisor dying, or the file system refusing, before each thing that is done to a file:
// a record is the old one or the new one, and what was acknowledged is there.

const Command = Schema.Struct({
  what: Schema.Literals(["open", "open", "claim", "claim", "forget", "over", "label", "update", "close"]),
  id: Schema.Literals(["a", "b"]),
  tap: Schema.Literals(["t0", "t1", "t2"])
})
type Command = typeof Command.Type

/** What there is to be known of a record. */
const Modelled = (record: Pick<MachineRecord.MachineRecord, "claims" | "labels" | "phase">) => ({
  claims: record.claims.map(({ data }) => JSON.stringify(data)),
  labels: { ...record.labels },
  phase: record.phase._tag
})
type Modelled = ReturnType<typeof Modelled>
type World = Readonly<Record<string, Modelled>>

const over: MachineRecord.Phase = { _tag: "Over", exitCode: 0, text: "ended", at: "now" }

/** What a command does to a world; the same world when it is to be refused. */
const apply = (world: World, command: Command): World => {
  const { id, what } = command
  const data = JSON.stringify(tap(command.tap).data)
  const { [id]: record, ...others } = world
  if (what === "open") {
    return record === undefined
      ? { ...world, [id]: { claims: [data], labels: {}, phase: "Up" } }
      : world
  }
  if (record === undefined) return world
  const without = record.claims.filter((claim) => claim !== data)
  switch (what) {
    case "claim":
      return {
        ...world,
        [id]: { ...record, claims: record.claims.includes(data) ? record.claims : [...without, data] }
      }
    case "forget":
      return { ...world, [id]: { ...record, claims: without } }
    case "over":
      return { ...world, [id]: { ...record, phase: "Over" } }
    case "label":
      return { ...world, [id]: { ...record, labels: { ...record.labels, [command.tap]: "1" } } }
    case "update":
      return { ...world, [id]: { ...record, claims: without, phase: "Over" } }
    case "close":
      return others
  }
}

/** The same to the journal. */
const run = Effect.fnUntraced(
  function*(journal: JournalService, entries: Map<string, Journal.Entry>, command: Command) {
    const { id, what } = command
    const claim = tap(command.tap)
    const entry = entries.get(id)
    if (what === "open") {
      if (entry === undefined) entries.set(id, yield* journal.open(machine(id, { claims: [claim] })))
      return
    }
    if (entry === undefined) return
    switch (what) {
      case "claim":
        return yield* entry.claim(claim)
      case "forget":
        return yield* entry.forget(claim)
      case "over":
        return yield* entry.enter(over)
      case "label":
        return yield* entry.label({ [command.tap]: "1" })
      case "update":
        return yield* entry.update({ forget: [claim], phase: over })
      case "close":
        yield* entry.close
        entries.delete(id)
    }
  }
)

const seen = (journal: JournalService) =>
  Effect.gen(function*() {
    const world: Record<string, Modelled> = {}
    for (const entry of yield* journal.entries) world[entry.id] = Modelled(yield* entry.record)
    return world
  })

class Killed extends Error {}

it.effect.prop(
  "killed before any step, the next one finds what was acknowledged, and at most the change that was being made",
  [Schema.Array(Command).check(Schema.isMaxLength(6))],
  ([commands]) =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const runs = Effect.fnUntraced(function*(killAt: number) {
          rmSync(directory, { recursive: true, force: true })
          let steps = 0
          let acknowledged: World = {}
          let next: World = {}
          const files = stepping(() => Effect.suspend(() => ++steps >= killAt ? Effect.die(new Killed()) : Effect.void))
          const exit = yield* Effect.exit(using(directory, (journal) =>
            Effect.gen(function*() {
              const entries = new Map<string, Journal.Entry>()
              for (const command of commands) {
                next = apply(acknowledged, command)
                yield* run(journal, entries, command)
                acknowledged = next
              }
            }), files))
          if (
            Exit.isFailure(exit) &&
            !exit.cause.reasons.some((one) => Cause.isDieReason(one) && one.defect instanceof Killed)
          ) {
            return yield* Effect.die(exit)
          }
          return { acknowledged, next, steps, wasKilled: Exit.isFailure(exit) }
        })
        let killAt = 0
        for (;;) {
          const { acknowledged, next, wasKilled } = yield* runs(++killAt)
          if (!wasKilled) break
          const found = yield* using(directory, (journal) =>
            Effect.gen(function*() {
              expect(yield* journal.quarantined).toEqual([])
              return yield* seen(journal)
            }))
          expect([acknowledged, next]).toContainEqual(found)
          expect(leftovers(directory)).toEqual([])
        }
        expect(killAt).toBeGreaterThan(commands.length)
      })
    ),
  { arbitrary: { runs: 12 } }
)

it.effect.prop(
  "refused at any step, the record is as it was, on the disk too, and the next change can be made",
  [Schema.Array(Command).check(Schema.isMaxLength(6)), Schema.Literals(["ENOSPC", "EROFS", "EIO"])],
  ([commands, code]) =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        for (let failAt = 1;; failAt++) {
          rmSync(directory, { recursive: true, force: true })
          let steps = -Infinity
          const files = stepping(() =>
            Effect.suspend(() => ++steps === failAt ? Effect.fail(systemError(code)) : Effect.void)
          )
          const failed = yield* using(directory, (journal) =>
            Effect.gen(function*() {
              const entries = new Map<string, Journal.Entry>()
              let world: World = {}
              let failures = 0
              steps = 0
              for (const command of commands) {
                const exit = yield* Effect.exit(run(journal, entries, command))
                if (Exit.isSuccess(exit)) {
                  world = apply(world, command)
                } else {
                  failures++
                  const error = Cause.findErrorOption(exit.cause)
                  expect(error).toMatchObject({
                    value: { reason: { _tag: "WriteFailed", id: command.id, isNoSpace: code === "ENOSPC" } }
                  })
                }
                expect(yield* seen(journal)).toEqual(world)
                expect(readdirSync(join(directory, "tmp"))).toEqual([])
              }
              return { failures, world }
            }), files)
          expect(yield* using(directory, seen)).toEqual(failed.world)
          if (steps < failAt) break
        }
      })
    ),
  { arbitrary: { runs: 12 } }
)

it.live("what is done to make a write last, in this order", () =>
  withDirectory((directory) =>
    Effect.gen(function*() {
      const steps: Array<string> = []
      const files = stepping((step) => Effect.sync(() => steps.push(step.replaceAll(`${directory}/`, ""))))
      yield* using(directory, (journal) =>
        Effect.gen(function*() {
          const entry = yield* journal.open(machine("a"))
          steps.length = 0
          yield* entry.claim(tap("t0"))
          expect(steps.map((step) => step.replace(/ \[object.*/, ""))).toEqual([
            "open tmp/a.json",
            "write tmp/a.json",
            "write on tmp/a.json",
            "sync tmp/a.json",
            "rename tmp/a.json machines/a.json",
            "open machines",
            "sync machines"
          ])
        }), files)
    })
  ))
