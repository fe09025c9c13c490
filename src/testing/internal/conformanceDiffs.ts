/** What backends that can save the difference to another snapshot have to do alike. */
import * as Effect from "effect/Effect"
import * as Snapshot from "../../microvm/Snapshot.ts"
import { expect, refused, type Suite } from "./conformance.ts"

export const diffScenarios = <R>({ rig, scenario }: Suite<R>): void => {
  const booted = rig.booted ?? (() => Effect.void)
  const restored = rig.restored ?? booted

  if (rig.capabilities.snapshot && !rig.capabilities.diff) {
    scenario("a difference is not supported", [], ({ id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* running("a")
        yield* runtime.snapshot(id("a"), "s")
        const diff = runtime.snapshot(id("a"), "d", { base: { machine: id("a"), name: "s" } })
        yield* refused("snapshot", diff, "Unsupported")
        yield* expect("state", yield* stateOf("a"), "running")
      }))
  }

  scenario(
    "a difference holds what was written since its base, and names it",
    ["diff", "remember", "recall"],
    ({ id, kept, machine, running, runtime, store }) =>
      Effect.gen(function*() {
        const recall = (name: string) =>
          Effect.flatMap(machine(name), (found) => rig.recall?.(found) ?? Effect.succeed("nothing"))
        const remember = (name: string, word: string) =>
          Effect.flatMap(machine(name), (found) => rig.remember?.(found, word) ?? Effect.void)
        const key = (of: string, name: string) => ({ machine: id(of), name })
        const clone = Effect.fnUntraced(function*(name: string, of: string, snapshot: string) {
          yield* runtime.restore({ id: id(name), snapshot: key(of, snapshot) })
          yield* restored(yield* machine(name))
          return yield* recall(name)
        })
        yield* booted(yield* running("a"))
        yield* remember("a", "one")
        yield* runtime.snapshot(id("a"), "whole")
        yield* remember("a", "two")
        yield* runtime.snapshot(id("a"), "first", { base: key("a", "whole") })
        yield* remember("a", "three")
        yield* runtime.snapshot(id("a"), "second", { base: key("a", "first") })
        yield* remember("a", "four")
        yield* expect("whole", yield* clone("w", "a", "whole"), "one")
        yield* expect("first", yield* clone("f", "a", "first"), "two")
        yield* expect("second", yield* clone("s", "a", "second"), "three")
        yield* expect("the machine itself", yield* recall("a"), "four")

        yield* remember("s", "of s")
        yield* runtime.snapshot(id("s"), "third", { base: key("a", "second") })
        yield* remember("s", "later")
        yield* expect("of one that was restored", yield* clone("t", "s", "third"), "of s")
        yield* expect("second, again", yield* clone("u", "a", "second"), "three")

        const named = new Map((yield* kept).map((one) => [one.manifest?.labels["name"], one.id]))
        const third = yield* store.open(named.get("third") ?? "")
        const names = Snapshot.layers(third).map(({ manifest }) => manifest.labels["name"])
        yield* expect("what it stands on", names, ["whole", "first", "second", "third"])
        yield* expect("verified", yield* store.verify(third.id), third)
      })
  )

  scenario(
    "a difference to anything but the last snapshot is refused, before the guest is stopped",
    ["diff"],
    ({ create, id, running, runtime, stateOf, store }) =>
      Effect.gen(function*() {
        const key = (of: string, name: string) => ({ machine: id(of), name })
        const diff = (of: string, base: ReturnType<typeof key>) => runtime.snapshot(id(of), "never", { base })
        const a = yield* running("a")
        yield* booted(a)
        yield* runtime.snapshot(id("a"), "first")
        yield* runtime.snapshot(id("a"), "last")
        yield* refused("an earlier one", diff("a", key("a", "first")), "DifferenceUnknown")
        yield* create("b")
        yield* refused("another machine's", diff("b", key("a", "last")), "DifferenceUnknown")
        yield* refused("one that is not there", diff("a", key("a", "no-such")), "SnapshotNotFound")
        const lost = store.add(
          { kind: "saved", spec: Snapshot.specOf(a.spec), labels: { machine: id("a") } },
          (directory) => Effect.andThen(a.save(directory), Effect.fail("no room"))
        )
        yield* expect("failure", yield* Effect.flip(lost), "no room")
        yield* refused("one before a save that was not kept", diff("a", key("a", "last")), "DifferenceUnknown")
        yield* runtime.restore({ id: id("c"), snapshot: key("a", "last") })
        yield* refused("not what it was restored from", diff("c", key("a", "first")), "DifferenceUnknown")
        yield* runtime.snapshot(id("c"), "difference", { base: key("a", "last") })
        yield* refused("no longer the last", diff("c", key("a", "last")), "DifferenceUnknown")
        for (const name of ["a", "c"]) yield* expect("state", yield* stateOf(name), "running")
      })
  )

  scenario(
    "a snapshot that others are the difference to is not removed before them",
    ["diff"],
    ({ id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* booted(yield* running("a"))
        const base = (name: string) => ({ base: { machine: id("a"), name } })
        yield* runtime.snapshot(id("a"), "one")
        yield* runtime.snapshot(id("a"), "two", base("one"))
        yield* runtime.snapshot(id("a"), "three", base("two"))
        for (const name of ["one", "two"]) {
          yield* refused(`remove ${name}`, runtime.removeSnapshot(id("a"), name), "SnapshotInUse")
        }
        yield* runtime.restore({ id: id("b"), snapshot: { machine: id("a"), name: "three" } })
        for (const name of ["three", "two", "one"]) yield* runtime.removeSnapshot(id("a"), name)
        yield* expect("state", yield* stateOf("b"), "running")
      })
  )

  scenario(
    "a difference to a snapshot that is damaged is not loaded",
    ["diff", "corrupt"],
    ({ id, kept, running, runtime, stateOf, store }) =>
      Effect.gen(function*() {
        yield* booted(yield* running("a"))
        yield* runtime.snapshot(id("a"), "s")
        for (const one of yield* kept) yield* rig.corrupt?.(yield* store.open(one.id)) ?? Effect.void
        const snapshot = { machine: id("a"), name: "s" }
        yield* refused("a difference to it", runtime.snapshot(id("a"), "d", { base: snapshot }), "SnapshotUnusable")
        yield* runtime.snapshot(id("a"), "t")
        yield* runtime.snapshot(id("a"), "d", { base: { machine: id("a"), name: "t" } })
        for (const one of yield* kept) {
          if (one.manifest?.labels["name"] === "t") yield* rig.corrupt?.(yield* store.open(one.id)) ?? Effect.void
        }
        const restore = runtime.restore({ id: id("b"), snapshot: { machine: id("a"), name: "d" } })
        yield* refused("restore", restore, "SnapshotUnusable")
        yield* expect("state", yield* stateOf("b"), "absent")
      })
  )
}
