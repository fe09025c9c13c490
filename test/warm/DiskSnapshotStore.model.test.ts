import { expect, it } from "@effect/vitest"
import type { MicroVmError } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { appendFileSync, chmodSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import { golden, leftovers, using, withCache, writing } from "./diskSupport.ts"

// Any operations, one after the other: each answer is as the model says, and what is damaged is never opened.

const Command = Schema.Struct({
  what: Schema.Literals(["add", "add", "replace", "open", "verify", "removeName", "removeId", "damage"]),
  name: Schema.Literals(["a", "b", "none"]),
  /** Which of all that there were. */
  which: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5 })),
  damage: Schema.Literals(["flip", "cut", "grow", "lose", "manifest", "seals", "mode"])
})
type Command = typeof Command.Type

interface Modelled {
  readonly content: string
  readonly directory: string
  sound: boolean
}

const damages: Readonly<Record<Command["damage"], (directory: string) => void>> = {
  flip: (at) => {
    const bytes = readFileSync(join(at, "memory"))
    bytes[0] = (bytes[0] ?? 0) ^ 255
    writeFileSync(join(at, "memory"), bytes)
    // The same place again would undo it.
    appendFileSync(join(at, "memory"), "")
  },
  cut: (at) => truncateSync(join(at, "memory"), 0),
  grow: (at) => appendFileSync(join(at, "state"), "x"),
  lose: (at) => rmSync(join(at, "memory"), { force: true }),
  manifest: (at) => appendFileSync(join(at, "manifest.json"), " "),
  seals: (at) => writeFileSync(join(at, "seals.json"), "{"),
  mode: (at) => chmodSync(join(at, "state"), 0o640)
}

type Store = SnapshotStore["Service"]
type Answer = Effect.Effect<string, MicroVmError.MicroVmError>

it.live.prop(
  "a model of the store",
  [Schema.Array(Command)],
  ([commands]) =>
    withCache((cache) =>
      using(cache, (store: Store) =>
        Effect.gen(function*() {
          const ids: Array<string> = []
          const snapshots = new Map<string, Modelled>()
          const names = new Map<string, string>()
          const at = (nameOrId: string) => names.get(nameOrId) ?? nameOrId
          const answer = (effect: Answer) =>
            Effect.map(Effect.result(effect), (result) =>
              Result.isSuccess(result) ? result.success : result.failure.reason._tag)
          const expected = (nameOrId: string) => {
            const snapshot = snapshots.get(at(nameOrId))
            if (snapshot === undefined) {
              return "SnapshotNotFound"
            }
            return snapshot.sound ? snapshot.content : "SnapshotUnusable"
          }
          const read = (effect: ReturnType<Store["open"]>) =>
            answer(Effect.map(effect, ({ directory }) =>
              readFileSync(join(directory, "memory"), "utf8")))

          for (const [index, { damage, name, what, which }] of commands.entries()) {
            const id = ids[which % Math.max(ids.length, 1)] ?? "0".repeat(64)
            const snapshot = snapshots.get(id)
            switch (what) {
              case "add":
              case "replace": {
                const content = `content ${index}`
                const replace = what === "replace"
                const added = yield* Effect.result(store.add(
                  golden(name === "none" ? {} : { name, replace }),
                  writing({ memory: content, state: "state" })
                ))
                if (name !== "none" && names.has(name) && !replace) {
                  expect(Result.isFailure(added) && added.failure.reason._tag).toBe("SnapshotAlreadyExists")
                  break
                }
                if (Result.isFailure(added)) throw added.failure
                const { directory } = added.success
                ids.push(added.success.id)
                snapshots.set(added.success.id, { content, directory, sound: true })
                if (name !== "none") names.set(name, added.success.id)
                break
              }
              case "open":
                expect(yield* read(store.open(name))).toBe(expected(name))
                expect(yield* read(store.open(id))).toBe(expected(id))
                break
              case "verify":
                expect(yield* read(store.verify(id))).toBe(expected(id))
                break
              case "removeName": {
                const meant = names.get(name)
                expect(yield* store.remove(name)).toBe(meant !== undefined)
                names.delete(name)
                if (meant !== undefined) snapshots.delete(meant)
                break
              }
              case "removeId":
                expect(yield* store.remove(id)).toBe(snapshots.delete(id))
                for (const [one, meant] of names) if (meant === id) names.delete(one)
                break
              case "damage":
                // What is damaged already stays as it is: another damage could mend it.
                if (snapshot === undefined || !snapshot.sound) break
                damages[damage](snapshot.directory)
                snapshot.sound = damage === "seals" || damage === "mode"
                break
            }
          }
          const listed = yield* store.list
          expect(listed.map(({ id }) => id).toSorted()).toEqual(Array.from(snapshots.keys()).toSorted())
          for (const { id, names: known } of listed) {
            expect(known).toEqual(Array.from(names).flatMap(([name, meant]) => meant === id ? [name] : []).toSorted())
            expect(yield* read(store.open(id))).toBe(expected(id))
          }
          expect(leftovers(cache)).toEqual([])
        }))
    ),
  { arbitrary: { runs: 40 } }
)
